"""Whatever a named recipe, a schedule or a factoring rule is given, it takes for what it is or refuses in form."""

import inspect
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adafactor_spec import Recipe, factoring, from_plain, recipes, schedules, to_plain, values_of
from adafactor_spec.schedules import Schedule, as_schedule

from .hostile import (
    ANYTHING,
    CONSTANTS,
    FLAGS,
    FLOATS,
    INTS,
    NOTHING,
    Hostile,
    cases,
    numbers,
    refusal_of,
    words,
)
from .hostile_fields import FIELDS, SCHEDULES, is_rule, number, one_of, schedule
from .peers import arguments as originals
from .test_fuzz_constructors import assert_plain

STEPS = (1, 2, 1000, 2**31 - 1)
EASY = (0.8, -0.8, 0.5, 1e-3, 1.0, 0.0, 1e-30, 1, 2, 100)
WORDS = ("adam", "pow", "standard", "moe", "float32", "bfloat16", "int8", ".*", "ROW", "HEURISTIC_RULE", "w")


def pairs(values: Any) -> Any:
    """Sequences and dicts of hostile values."""

    def together(drawn: tuple[list[Hostile], str]) -> Hostile:
        items, kind = drawn
        raw, sure = [item.value for item in items], all(item.sure for item in items)
        plain = NOTHING if any(item.plain is NOTHING for item in items) else [item.plain for item in items]
        make: dict[str, Callable[[list[Any]], Any]] = {
            "list": list,
            "tuple": tuple,
            "pattern": lambda x: {".*": x[0]} if x else {},
            "patterns": lambda x: [(".*", one) for one in x],
        }
        value = make[kind](raw)
        return Hostile(f"{kind} of {items}", value, NOTHING if plain is NOTHING else make[kind](plain), sure)

    kinds = st.sampled_from(["list", "tuple", "pattern", "patterns"])
    return st.tuples(st.lists(values, max_size=3), kinds).map(together)


SCALARS = st.one_of(numbers((*EASY, *EASY, *FLOATS, *INTS)), FLAGS, CONSTANTS, words(WORDS), ANYTHING)
ARGUMENTS = st.one_of(
    SCALARS,
    SCALARS,
    pairs(SCALARS),
    pairs(pairs(SCALARS)),
    st.sampled_from([Hostile(repr(schedule), schedule, schedule) for schedule in SCHEDULES]),
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Hostile]]:
    """A recipe, arguments that its original takes, and one or two hostile ones in place of them."""
    name = draw(st.sampled_from(recipes.NAMES))
    parameters = inspect.signature(recipes.function(name)).parameters
    known = list(parameters)
    drawn = getattr(originals, name, None)
    seed = draw(st.integers(0, 1000))
    usual = {} if drawn is None else drawn(np.random.default_rng(seed))
    usual |= {"decay_method": "pow", "decay_pow": 0.8} if name == "praxis" else {}
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True)) if known else []
    is_original = name in recipes.ORIGINALS  # a flag of ours is True or False
    flags = {argument for argument, one in parameters.items() if is_original and isinstance(one.default, bool)}
    return name, usual, {one: _flag(draw(ARGUMENTS)) if one in flags else draw(ARGUMENTS) for one in chosen}


def _flag(given: Hostile) -> Hostile:
    """What stands for a flag is its truth, as in the originals; pairs of patterns and flags are left out."""
    try:
        plain: Any = bool(given.value)
    except Exception:
        plain = NOTHING
    in_pairs = isinstance(given.value, list | tuple | dict)
    return Hostile("False", False, False) if in_pairs else Hostile(repr(given), given.value, plain)


def assert_in_range(recipe: Recipe) -> None:
    """Every field is one that a `Recipe` may have, written down a second time in `hostile_fields`."""
    assert_plain(recipe)
    for name, field in FIELDS.items():
        for value in values_of(getattr(recipe, name)):
            if name == "lr" and value is None:
                continue
            if callable(value):
                assert_values(value, field.fits)
            else:
                assert field.fits(value), (name, value)


def assert_values(schedule: Any, fits: Callable[[Any], bool]) -> None:
    """A schedule runs on the host and under JAX, and its value at t = 1 is in range."""
    first = as_schedule(schedule)(1)
    assert fits(float(first)), (schedule, first)
    for t in STEPS:
        with np.errstate(all="ignore"):
            host = float(as_schedule(schedule)(t))
        traced = float(as_schedule(schedule)(jnp.asarray(t)))
        with jax.enable_x64(True):
            wide = float(as_schedule(schedule)(jnp.asarray(t)))
        # A few roundings of each framework's own power and exponential.
        assert wide == host or abs(wide - host) <= 1e-12 * max(abs(host), 1.0), (schedule, t, host, wide)
        assert math.isnan(traced) == math.isnan(host), (schedule, t, host, traced)


@cases(60, 5000)
@given(calls())
def test_recipes(drawn: tuple[str, dict[str, Any], dict[str, Hostile]]) -> None:
    """A named recipe takes an argument in any form for the plain one, and nothing that leads out of range."""
    name, usual, given = drawn
    build, known = recipes.function(name), inspect.signature(recipes.function(name)).parameters
    recipe, why = refusal_of(lambda: build(**{**usual, **{n: v.value for n, v in given.items()}}), known)
    plain = {n: v.plain for n, v in given.items() if v.plain is not NOTHING}
    # What stands for nothing is taken only where it has no effect.
    twin, reason = refusal_of(lambda: build(**{**{n: v for n, v in usual.items() if n not in given}, **plain}), known)
    if recipe is None:
        refusable = len(plain) < len(given) or not all(value.sure for value in given.values())
        assert refusable or twin is None, f"refused in this form only: {why}"
        return
    assert twin is not None, f"taken in this form only: {reason}"
    assert recipe == twin
    assert_in_range(recipe)
    assert recipe.describe()
    assert pickle.loads(pickle.dumps(recipe)) == recipe


# -------------------------------------------------------------------------------------------- schedules and rules


def whole(**limits: Any) -> Callable[[Any], bool]:
    fits = number(**limits)
    return lambda plain: fits(plain) and float(plain).is_integer()


def is_sequence(plain: Any) -> bool:
    return isinstance(plain, list | tuple)


BASE = schedule(at_least=0)
LIMITS: dict[type, dict[str, Callable[[Any], bool]]] = {
    schedules.constant: {"value": number()},
    schedules.power_decay: {
        "exponent": number(at_least=0),
        "cap": lambda plain: number(at_least=0)(plain) and plain <= 1,
        "offset": whole(),
    },
    schedules.adam_decay: {"b": number(at_least=0, below=1)},
    schedules.inverse_sqrt: {"flat_until": number(at_least=1)},
    schedules.relative_step: {"base": BASE},
    schedules.linear_warmup: {"base": BASE, "steps": whole(above=0)},
    schedules.linear_cooldown: {"base": BASE, "steps": whole(above=0), "end": whole(above=0)},
    schedules.cosine_decay: {"base": BASE, "start": whole(at_least=0), "end": whole(above=0)},
    schedules.at_least: {"base": BASE, "floor": number(at_least=0)},
    schedules.product: {"first": schedule(), "second": schedule()},
    schedules.power: {"base": BASE, "exponent": number(at_least=0)},
    schedules.piecewise_constant: {"base": BASE, "boundaries": is_sequence, "factor": number(at_least=0)},
    factoring.largest_two: {"min_dim": whole(at_least=0), "ties": one_of("last", "first")},
    factoring.leading_or_last_two: {"min_dim": whole(at_least=0)},
    factoring.explicit: dict.fromkeys(("rows", "cols", "batch"), lambda plain: plain is not None),
    factoring.limited: {
        "rule": is_rule,
        "axes": lambda plain: plain is None or is_sequence(plain),
        "rows_last": one_of(True, False),
    },
    factoring.by_name: {
        "rules": lambda plain: isinstance(plain, dict),
        "default": lambda plain: plain is None or is_rule(plain),
    },
}
GOOD: dict[str, Any] = {
    **{"value": 0.5, "exponent": 0.8, "cap": 1.0, "offset": 0, "b": 0.9, "flat_until": 1.0, "base": 0.1, "steps": 10},
    **{"end": 100, "start": 5, "floor": 0.01, "first": 0.5, "second": 2.0, "boundaries": (2, 5), "factor": 0.5},
    **{"min_dim": 2, "ties": "last", "rows": (0,), "cols": (1,), "batch": (), "rule": factoring.last_two, "axes": None},
    **{"rows_last": False, "rules": {"w": factoring.no_factoring}, "default": factoring.last_two},
}
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=5).map(tuple)


@st.composite
def kinds(draw: st.DrawFn) -> tuple[type, dict[str, Hostile]]:
    kind = draw(st.sampled_from(list(LIMITS)))
    chosen = draw(st.lists(st.sampled_from(list(LIMITS[kind])), min_size=1, max_size=2, unique=True))
    rules = [Hostile(repr(rule), rule, rule) for rule in (factoring.last_two, factoring.largest_two(2))]
    axes = pairs(numbers((0, 1, 2, -1, 5, 0.0, 1.5, 2**31, True)))
    patterns = pairs(st.one_of(st.sampled_from(rules), ANYTHING))
    special = {"axes": axes, "rows": axes, "cols": axes, "batch": axes, "boundaries": axes, "rules": patterns}
    special |= dict.fromkeys(("rule", "default"), st.sampled_from(rules)) | {"ties": words(("last", "first"))}
    return kind, {name: draw(st.one_of(special.get(name, SCALARS), ARGUMENTS)) for name in chosen}


@cases(60, 3000)
@given(kinds(), SIZES)
def test_schedules_and_rules(drawn: tuple[type, dict[str, Hostile]], shape: tuple[int, ...]) -> None:
    """Data of plain values, whatever it is made of; its text and its plain form make it again."""
    kind, given = drawn
    usual = {name: GOOD[name] for name in LIMITS[kind]}
    plain = {name: value.plain for name, value in given.items()}
    made, why = refusal_of(lambda: kind(**{**usual, **{n: v.value for n, v in given.items()}}), usual)
    if any(value is NOTHING or not LIMITS[kind][name](value) for name, value in plain.items()):
        # A factor may have any values, those of a function of the user's too.
        assert made is None or kind is schedules.product, f"taken, although it is out of range: {made}"
        return
    twin, reason = refusal_of(lambda: kind(**{**usual, **plain}), usual)
    if made is None:
        assert twin is None or not all(value.sure for value in given.values()), f"refused in this form only: {why}"
        return
    assert twin is not None, f"taken in this form only: {reason}"
    assert made == twin
    assert repr(made) == repr(twin)
    assert pickle.loads(pickle.dumps(made)) == made
    assert from_plain(json.loads(json.dumps(to_plain(made))), made) == made
    if isinstance(made, Schedule):
        assert_values(made, number())
    else:
        plan, _ = refusal_of(lambda: factoring.plan(made, shape, "w"))
        axes = () if plan is None else (*plan.rows, *plan.cols, *plan.batch)
        assert len(set(axes)) == len(axes)
        assert plan is None or math.prod(plan.matrix_shape) == math.prod(shape)
