"""Numbers that depend on the step: learning rates, decay rates of the moments, weight decay.

A schedule is data: a frozen dataclass that can be compared, printed (its text builds it again) and pickled.
Calling it with the step `t` gives its value; **t = 1 at the first update**. `t` is a Python or NumPy number on the
host, or an array or tracer that has the array API (`t.__array_namespace__()`), as JAX's have, so the same formula
runs on the host and inside a compiled step.

Wherever a schedule is taken, a number or a plain Python function of `t` is taken as well.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import check_number, is_array_scalar, is_number, refusal, remedy_for_array

Number: TypeAlias = Any  # a Python or NumPy number, or a JAX array or tracer without axes


class Schedule:
    """A function of the step that also knows its complement.

    The second moment is mixed with weights beta and 1 - beta. Late in training beta is within a few float32 ulp of 1,
    and a difference taken in float32 is wrong by 1e-4 at t = 20,000: a decay rate therefore gives 1 - beta directly.
    """

    def __call__(self, t: Number) -> Number:
        """The value at step `t`, t = 1 at the first update."""
        raise NotImplementedError

    def complement(self, t: Number) -> Number:
        """1 - value at step `t`."""
        return 1.0 - self(t)


ScalarOrSchedule: TypeAlias = float | Callable[[Number], Number]


@dataclass(frozen=True)
class constant(Schedule):
    """The same number at every step."""

    value: Number

    def __call__(self, t: Number) -> Number:
        """The number, whatever `t` is."""
        return self.value


@dataclass(frozen=True)
class function(Schedule):
    """A plain Python function of t, taken as a schedule. Its complement is the difference 1 - f(t)."""

    of_t: Callable[[Number], Number]

    def __call__(self, t: Number) -> Number:
        """`of_t(t)`."""
        return self.of_t(t)


@dataclass(frozen=True)
class zero_based(Schedule):
    """A schedule that counts from 0 at the first update, as optax's do: `f(t - 1)`."""

    of_count: Callable[[Number], Number]

    def __post_init__(self) -> None:
        if not callable(self.of_count):
            raise refusal("of_count", "a function of the count", self.of_count, "Give a number as it is.")

    def __call__(self, t: Number) -> Number:
        """`of_count(t - 1)`."""
        return self.of_count(t - 1)


@dataclass(frozen=True)
class power_decay(Schedule):
    """beta_t = min(cap, 1 - (t - offset)^-exponent): section 7.2 of the paper, where exponent = 0.8.

    Args:
        exponent: at least 0; 0.8 in the paper. transformers, torch and keras write it with a minus sign.
        cap: beta never exceeds it, in [0, 1]; big_vision uses 0.999.
        offset: the step from which a fine-tuning run counts. Up to and including t = offset + 1 beta is 0.
    """

    exponent: float = 0.8
    cap: float = 1.0
    offset: int = 0

    def __post_init__(self) -> None:
        flip = "transformers, torch and keras write the exponent with the opposite sign: use 0.8 for their -0.8."
        check_number("exponent", self.exponent, at_least=0, remedy=flip)
        check_number("cap", self.cap, at_least=0, at_most=1)
        check_number("offset", self.offset, whole=True)

    def __call__(self, t: Number) -> Number:
        """beta_t."""
        return 1.0 - self.complement(t)

    def complement(self, t: Number) -> Number:
        """1 - beta_t = max(1 - cap, (t - offset)^-exponent), without a difference."""
        xp = _namespace(t)
        since = xp.maximum(t - self.offset, 1.0)
        return xp.maximum(since**-self.exponent, 1.0 - self.cap)


@dataclass(frozen=True)
class adam_decay(Schedule):
    """beta_t = b (1 - b^(t-1)) / (1 - b^t): section 7.1 of the paper, Adam's bias correction as a decay rate."""

    b: float

    def __post_init__(self) -> None:
        check_number("b", self.b, at_least=0, below=1)

    def __call__(self, t: Number) -> Number:
        """beta_t, 0 at t = 1."""
        return 1.0 - self.complement(t)

    def complement(self, t: Number) -> Number:
        """1 - beta_t = (1 - b) / (1 - b^t)."""
        if self.b == 0:
            return 1.0
        xp = _namespace(t)
        # expm1, because 1 - b^t is a difference of nearly equal numbers for small t and b near 1.
        return xp.minimum((1.0 - self.b) / -xp.expm1(t * math.log(self.b)), 1.0)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """t^-1/2."""

    def __call__(self, t: Number) -> Number:
        """t^-1/2."""
        return t**-0.5


@dataclass(frozen=True)
class relative_step(Schedule):
    """min(base_t, t^-1/2): the relative step size of the paper, where base = 1e-2."""

    base: ScalarOrSchedule = 1e-2

    def __post_init__(self) -> None:
        check_schedule("base", self.base, at_least=0)

    def __call__(self, t: Number) -> Number:
        """min(base_t, t^-1/2)."""
        base = as_schedule(self.base)(t)
        return _namespace(t, base).minimum(base, t**-0.5)


@dataclass(frozen=True)
class linear_warmup(Schedule):
    """base_t * min(1, t / steps).

    fairseq's and transformers' `warmup_init` is `relative_step(linear_warmup(1.0, steps=1_000_000))`:
    min(1e-6 t, t^-1/2).
    """

    base: ScalarOrSchedule
    steps: int

    def __post_init__(self) -> None:
        check_schedule("base", self.base, at_least=0)
        check_number("steps", self.steps, above=0, whole=True)

    def __call__(self, t: Number) -> Number:
        """base_t * min(1, t / steps)."""
        return as_schedule(self.base)(t) * _namespace(t).minimum(t / self.steps, 1.0)


@dataclass(frozen=True)
class piecewise_constant(Schedule):
    """base_t, multiplied by `factor` once for each boundary <= t.

    Args:
        base: any number or schedule.
        boundaries: steps, increasing. Epochs become steps by the number of updates in one: epoch e (0 is the first)
            begins at t = e * steps_per_epoch + 1.
        factor: positive.
    """

    base: ScalarOrSchedule
    boundaries: Sequence[int]
    factor: float

    def __post_init__(self) -> None:
        check_schedule("base", self.base, at_least=0)
        check_boundaries("boundaries", self.boundaries)
        object.__setattr__(self, "boundaries", tuple(int(boundary) for boundary in self.boundaries))
        check_number("factor", self.factor, above=0)

    def __call__(self, t: Number) -> Number:
        """base_t * factor^(number of boundaries <= t)."""
        value = as_schedule(self.base)(t)
        where = _namespace(t, value).where
        for boundary in self.boundaries:
            value = where(t >= boundary, value * self.factor, value)[()]  # NumPy's where makes an array of a number
        return value


@dataclass(frozen=True)
class at_least(Schedule):
    """max(base_t, floor)."""

    base: ScalarOrSchedule
    floor: float

    def __post_init__(self) -> None:
        check_schedule("base", self.base, at_least=0)
        check_number("floor", self.floor, at_least=0)

    def __call__(self, t: Number) -> Number:
        """max(base_t, floor)."""
        base = as_schedule(self.base)(t)
        return _namespace(t, base).maximum(base, self.floor)


@dataclass(frozen=True)
class product(Schedule):
    """first_t * second_t."""

    first: ScalarOrSchedule
    second: ScalarOrSchedule

    def __post_init__(self) -> None:
        check_schedule("first", self.first)
        check_schedule("second", self.second)

    def __call__(self, t: Number) -> Number:
        """first_t * second_t."""
        return as_schedule(self.first)(t) * as_schedule(self.second)(t)


@dataclass(frozen=True)
class power(Schedule):
    """base_t^exponent."""

    base: ScalarOrSchedule
    exponent: float

    def __post_init__(self) -> None:
        check_schedule("base", self.base, at_least=0)
        check_number("exponent", self.exponent, at_least=0)

    def __call__(self, t: Number) -> Number:
        """base_t^exponent."""
        return as_schedule(self.base)(t) ** self.exponent


def as_schedule(value: ScalarOrSchedule) -> Schedule:
    """A number, a plain function of t or a schedule, as a schedule."""
    if isinstance(value, Schedule):
        return value
    return function(value) if callable(value) else constant(value)


def bias_correction(beta: ScalarOrSchedule, t: Number) -> Number:
    """1 - beta_t^t, from the complement of beta_t and without a difference of nearly equal numbers."""
    rest = as_schedule(beta).complement(t)
    xp = _namespace(t, rest)
    inside = xp.where(rest < 1.0, rest, 0.5)  # the logarithm of beta_t = 0 must not be taken, even if it is not used
    return xp.where(rest < 1.0, -xp.expm1(t * xp.log1p(-inside)), 1.0)


def check_boundaries(argument: str, boundaries: Sequence[int]) -> None:
    """Refuse what is not a sequence of increasing steps."""
    if not hasattr(boundaries, "__len__") or isinstance(boundaries, str):  # a generator could be read only once
        remedy = f"Write ({boundaries},)." if is_number(boundaries) else ""
        raise refusal(argument, "a sequence of steps", boundaries, remedy)
    for boundary in boundaries:
        check_number(argument, boundary, at_least=1, whole=True, remedy="t = 1 is the first update.")
    if any(b >= c for b, c in itertools.pairwise(boundaries)):
        raise refusal(argument, "increasing", boundaries, f"Use {tuple(sorted(set(boundaries)))}.")


def check_schedule(argument: str, value: object, remedy: str = "", **bounds: Any) -> None:
    """Refuse what is neither a function of t nor a number in range (see `errors.check_number`).

    A function is looked at here, where it is built, and not in a traced step: its value at t = 1 stands for all of
    them.
    """
    if isinstance(value, type):
        raise refusal(argument, "a number or a schedule", value, f"Call it: {value.__name__}(...).")
    if callable(value):
        at_first = f"{argument} is called with t = 1, 2, ..."
        check_number(f"{argument}(1)", as_schedule(value)(1), remedy=at_first, **bounds)
    elif not is_number(value) and not is_array_scalar(value):
        must = "a number, a schedule or a function of t"
        raise refusal(argument, must, value, remedy_for_array(value) or remedy)
    else:
        check_number(argument, value, remedy=remedy, **bounds)


def _namespace(*numbers: Number) -> Any:
    """JAX's functions where one of the numbers is JAX's (a traced learning rate at t = 1, say), else NumPy's."""
    spaces = [number.__array_namespace__() for number in numbers if hasattr(number, "__array_namespace__")]
    return next((space for space in spaces if space is not np), np)
