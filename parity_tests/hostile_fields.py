"""What each field of a recipe may be, written down a second time, and values for it on both sides of its limits."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import strategies as st

from adafactor_spec import dtypes, factoring, per_name, schedules

from .hostile import ANYTHING, FLAGS, NOTHING, Hostile, numbers, words

LARGEST = float(np.finfo(np.float32).max)  # a step is computed in float32


def number(
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    infinite: bool = False,
    optional: bool = False,
) -> Callable[[Any], bool]:
    """Whether a plain value is a number in the range, or None where that is `optional`.

    A number that is larger than a float32 is none, but where an infinite one means the same.
    """

    def fits(plain: Any) -> bool:
        if plain is None:
            return optional
        if type(plain) not in (int, float):
            return False
        if type(plain) is int and abs(plain) > 2**1023:
            return False
        x = float(plain)
        if abs(x) > LARGEST and not (infinite and x > 0):
            return False
        return x > above and x >= at_least and (x < below or (infinite and x == math.inf))

    return fits


def _of_step(t: Any) -> Any:
    return 0.5 / (t + 1.0)


SCHEDULES = (schedules.power_decay(), schedules.adam_decay(0.5), schedules.inverse_sqrt(4), _of_step)


def schedule(**limits: Any) -> Callable[[Any], bool]:
    """Whether a plain value is a number in the range or one of our functions, whose values are in every range."""
    fits = number(**limits)
    return lambda plain: any(plain is known for known in SCHEDULES) or fits(plain)


def one_of(*choices: Any) -> Callable[[Any], bool]:
    return lambda plain: any(type(plain) is type(choice) and plain == choice for choice in choices)


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field may be.

    Attributes:
        fits: whether it may be a plain value.
        good: values that it may be.
        more: further values in a form of their own.
    """

    fits: Callable[[Any], bool]
    good: tuple[Any, ...]
    more: Any = ANYTHING

    @property
    def values(self) -> Any:
        """Valid values and others, in every form, as often as each other."""
        return st.one_of(numbers(self.good), numbers(), self.more) if self.is_number else st.one_of(self.more, ANYTHING)

    @property
    def is_number(self) -> bool:
        return type(self.good[0]) is float


def _functions() -> Any:
    return st.sampled_from([Hostile(repr(function), function, function) for function in SCHEDULES])


def _dtypes() -> Any:
    known = [Hostile(repr(kind), kind, name) for name in dtypes.NAMES for kind in _kinds(name)]
    return st.one_of(st.sampled_from(known), words(dtypes.NAMES))


def _kinds(name: str) -> list[Any]:
    kinds = [getattr(torch, name), jnp.dtype(name), getattr(jnp, name)]
    return kinds if name == "bfloat16" else [*kinds, np.dtype(name), getattr(np, name)]


def _rules() -> Any:
    rules = (factoring.last_two, factoring.no_factoring, factoring.as_matrix, factoring.largest_two(2))
    known = [Hostile(repr(rule), rule, rule) for rule in rules]
    wrong = [Hostile(repr(kind), kind) for kind in (factoring.largest_two, factoring.Rule, "last_two")]
    return st.sampled_from([*known, *wrong])


def is_rule(plain: Any) -> bool:
    return isinstance(plain, factoring.Rule)


def _per_name(values: Any) -> Any:
    """A value for every parameter, written as a `per_name`."""

    def wrap(inner: Hostile) -> Hostile:
        plain = NOTHING if inner.plain is NOTHING else per_name({".*": inner.plain})
        return Hostile(f"per_name({{'.*': {inner!r}}})", per_name({".*": inner.value}), plain, inner.sure)

    return values.map(wrap)


def _or_per_name(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda plain: fits(plain.rules[0][1] if isinstance(plain, per_name) else plain)


_FLAG = Field(one_of(True, False), (True,), FLAGS)
_DECAY = number(at_least=0)

FIELDS: Mapping[str, Field] = {
    "lr": Field(schedule(at_least=0, optional=True), (0.01, 0.5, 1, 0.0), _functions()),
    "relative_step": _FLAG,
    "multiply_by_parameter_scale": Field(
        _or_per_name(one_of(True, False)), (True,), st.one_of(FLAGS, _per_name(st.one_of(FLAGS, ANYTHING)))
    ),
    "eps2": Field(number(at_least=0), (1e-3, 0.5, 0.0, 1)),
    "max_parameter_scale": Field(number(above=0, optional=True), (0.5, 1e-3, 1)),
    "beta2": Field(schedule(at_least=0, below=1), (0.5, 0.0, 0.999), _functions()),
    "factoring": Field(is_rule, (factoring.last_two,), _rules()),
    "eps1": Field(number(at_least=float(np.float32(1e-37)), optional=True), (1e-30, 1e-37, 1)),
    "eps1_mode": Field(one_of("add", "floor"), ("add",), words(("add", "floor"))),
    "amsgrad": _FLAG,
    "clipping_threshold": Field(number(above=0, infinite=True, optional=True), (1.0, 0.3, math.inf, 2)),
    "beta1": Field(schedule(at_least=0, below=1, optional=True), (0.9, 0.0), _functions()),
    "momentum_of": Field(one_of("grad", "update", "step"), ("grad",), words(("grad", "update", "step"))),
    "debias": _FLAG,
    "momentum_dtype": Field(one_of(None, *dtypes.NAMES), (None,), _dtypes()),
    "momentum_rounding": Field(one_of("store", "use", "decay"), ("store",), words(("store", "use", "decay"))),
    "weight_decay": Field(
        lambda plain: plain is None or _or_per_name(schedule(at_least=0))(plain),
        (0.1, 0.0, 1),
        st.one_of(_functions(), _per_name(numbers((0.1, 0.0, -1.0, math.nan, 10**400)))),
    ),
    "weight_decay_by": Field(
        lambda plain: one_of("step", "lr", "one", "grad")(plain) or _DECAY(plain),
        (2.0, 0.5, 0, 1),
        words(("step", "lr", "one", "grad")),
    ),
    "decay_before_scale": _FLAG,
    "state_dtype": Field(one_of(None, "param"), (None,), words((None, "param"))),
}


@st.composite
def crossed(draw: st.DrawFn, most: int = 3) -> dict[str, Hostile]:
    """Values for one to three fields."""
    names = draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=most, unique=True))
    return {name: draw(FIELDS[name].values) for name in names}


def plain(given: Mapping[str, Hostile]) -> dict[str, Any]:
    return {name: value.plain for name, value in given.items()}


def must_be_refused(given: Mapping[str, Hostile], base: Mapping[str, Any]) -> bool:
    """Whether a field is wrong by itself, or two contradict each other."""
    if any(value.plain is NOTHING or not FIELDS[name].fits(value.plain) for name, value in given.items()):
        return True
    fields = {**base, **plain(given)}
    largest, by = fields["max_parameter_scale"], fields["weight_decay_by"]
    first = fields["decay_before_scale"] and by in ("step", "grad")
    return first or (largest is not None and fields["eps2"] > largest)
