"""Whatever stands in place of a number, a flag or a word is taken for what it is, as a plain value, or refused."""

import dataclasses
import inspect
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adafactor_spec import Recipe, factoring, oracle, per_name, recipes, replace, rounding_key, schedules, to_plain
from adafactor_spec.errors import LAST_STEP, check_choice

from .odd_values import (
    FRACTIONS,
    NO_FIELD,
    NO_NUMBER,
    WHOLE,
    Elementwise,
    Unspeakable,
    Word,
    in_form,
    is_plain,
)

NUMBERS = (
    *("lr", "eps2", "max_parameter_scale", "beta2", "eps1"),
    *("clipping_threshold", "beta1", "weight_decay", "weight_decay_by"),
)
REFUSED = NO_NUMBER | NO_FIELD
ODD = REFUSED | {
    f"{kind} {key}": value for kind, of in (("fraction", FRACTIONS), ("whole", WHOLE)) for key, (value, _) in of.items()
}
ODD |= {
    "2^31": 2**31,
    "2^63": 2**63,
    "1e300": 1e300,
    "tiny": 1e-300,
    "-0.0": -0.0,
    "infinity": math.inf,
    "None": None,
    "-1": -1,
}


def outcome(make: Any, *args: Any, **fields: Any) -> Any:
    """What was made, of plain values that can be hashed, compared, shown and saved; or None after a refusal in form."""
    try:
        made = make(*args, **fields)
    except Exception as error:
        if in_form(error):
            return None
        raise
    assert is_plain(made), repr(made)
    assert hash(made) == hash(made) and made == made and len(repr(made)) < 100_000
    json.dumps({name: to_plain(value) for name, value in vars(made).items()})
    assert pickle.loads(pickle.dumps(made)) == made
    return made


# --- Numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_of_any_kind_is_a_plain_one(field: str) -> None:
    base = replace(Recipe(), eps2=0.0)
    of_jax = [(jnp.asarray(0.25, dtype), 0.25) for dtype in ("float32", "bfloat16", "float16")]
    for value, plain in [*FRACTIONS.values(), *of_jax]:
        made = outcome(replace, base, **{field: value})
        assert made == replace(base, **{field: plain})
    for value, plain in WHOLE.values():
        given, exact = (value - 3, 0) if field in ("beta1", "beta2") else (value, plain)
        assert outcome(replace, base, **{field: given}) == replace(base, **{field: exact})


def test_both_ways_to_make_a_recipe_check_alike() -> None:
    for field in dataclasses.fields(Recipe):
        for value in ODD.values():
            made = outcome(Recipe, **{field.name: value})
            again = outcome(replace, Recipe(), **{field.name: value})
            assert made == again and (made is None or list(vars(made)) == list(vars(again)))


@pytest.mark.parametrize("field", NUMBERS)
def test_what_is_no_number_is_refused(field: str) -> None:
    for key, value in REFUSED.items():
        assert outcome(Recipe, **{field: value}) is None, key


def test_what_is_no_number_for_some_parameters_is_refused() -> None:
    for key, value in (REFUSED | {"None": None}).items():
        assert outcome(Recipe, weight_decay=per_name({"a": value})) is None, key
    made = outcome(Recipe, weight_decay=per_name({"a": np.float32(0.25)}, default=np.array(3)))
    assert made == Recipe(weight_decay=per_name({"a": 0.25}, default=3))


@pytest.mark.parametrize("field", ["lr", "eps2", "max_parameter_scale", "weight_decay"])
def test_a_number_that_no_float32_can_be_is_refused(field: str) -> None:
    """A step is computed in float32: there it would be infinite, or an error of the framework."""
    must = r"must be (positive|at least 0) and no larger than a float32 can be, got "
    for value in (1e39, 10**39, np.float64(1e300)):
        fields: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=rf"^{field} {must}"):
            Recipe(**fields)
    with pytest.raises(ValueError, match=rf"^lr\(1\) {must}"):
        Recipe(lr=lambda t: 1e39)
    assert Recipe(clipping_threshold=1e300) == Recipe(clipping_threshold=math.inf)  # of a float32 it is the same


def test_a_number_that_is_0_in_float32_is_not_positive() -> None:
    """A gradient of 0 divided by a threshold of 0 would be NaN."""
    values: list[Any] = [1e-39, np.float64(1e-300), np.float32(1e-40)]
    for value in values:
        with pytest.raises(
            ValueError, match=r"^clipping_threshold must be positive in float32, at least 1\.175494e-38"
        ):
            Recipe(clipping_threshold=value)


def test_the_second_moment_of_a_first_gradient_of_0_is_not_0() -> None:
    with pytest.raises(ValueError, match=r"^eps1 must be at least 1\.2e-35 with beta2 = 0\.999, got 1e-37\. The"):
        Recipe(beta2=0.999, eps1=1e-37)
    with pytest.raises(ValueError, match=r"^eps1 must be at least 1\.1e-22 with beta2 = 0\.9999999999999999, got"):
        replace(Recipe(), beta2=1 - 2.0**-53)
    for fine in (Recipe(eps1=1e-37), Recipe(eps1=1e-37, beta2=0), Recipe(eps1=1.2e-35, beta2=0.999)):
        state = oracle.init(fine, np.ones(3), dtype="float32")
        np.testing.assert_array_equal(oracle.step(fine, np.ones(3), np.zeros(3), state, dtype="float32")[0], np.ones(3))


def test_negative_zero_is_zero() -> None:
    made = Recipe(lr=-0.0, eps2=-0.0, weight_decay=-0.0, beta1=-0.0)
    assert "-0.0" not in repr(made) and not made.decays
    with pytest.raises(ValueError, match=r"clipping_threshold must be positive, got -0\.0"):
        Recipe(clipping_threshold=-0.0)


def test_large_whole_numbers_are_floats_where_they_may_be() -> None:
    """Frameworks would make an int32 of them."""
    assert type(Recipe(eps2=2**31).eps2) is float and Recipe(eps2=2**31).eps2 == 2.0**31
    assert type(Recipe(eps2=2**31 - 1).eps2) is int


# --- Flags and words ------------------------------------------------------------------------------------------------


def test_flags() -> None:
    for flag in ("relative_step", "amsgrad", "debias", "multiply_by_parameter_scale"):
        for value in (True, False):
            assert outcome(Recipe, **{flag: np.bool_(value)}) == outcome(Recipe, **{flag: value})
        for key, value in ODD.items():
            assert "True" in key or outcome(Recipe, **{flag: value}) is None
    made = outcome(Recipe, multiply_by_parameter_scale=per_name({"a": np.True_}, default=np.False_))
    assert made == Recipe(multiply_by_parameter_scale=per_name({"a": True}, default=False))


def test_words() -> None:
    for word in (np.str_("floor"), Word("floor")):
        assert outcome(Recipe, eps1_mode=word) == Recipe(eps1_mode="floor")
    for value in ODD.values():
        assert outcome(Recipe, eps1_mode=value) is None
    assert check_choice("fused", np.True_, (None, True, False)) is True
    for value in (1, 0, 1.0, np.ones(2), Elementwise(), Unspeakable()):
        with pytest.raises(ValueError, match=r"^fused must be one of None, True, False, got "):
            check_choice("fused", value, (None, True, False))


def test_patterns_are_plain() -> None:
    for word in (np.str_("a"), Word("a")):
        rules = outcome(factoring.by_name, {word: factoring.no_factoring})
        assert rules == factoring.by_name({"a": factoring.no_factoring})
    for pattern in ("(" * 100, "a{9999999999999999999}", "[", "(?P<" + "n" * 100_000 + ">a)(?P=m)"):
        assert outcome(factoring.by_name, {pattern: factoring.last_two}) is None


# --- Schedules, rules, recipes: every argument of every constructor ---------------------------------------------------

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"value": 1.0},
    "power_decay": {},
    "adam_decay": {"b": 0.5},
    "inverse_sqrt": {},
    "relative_step": {},
    "linear_warmup": {"base": 1.0, "steps": 5},
    "linear_cooldown": {"base": 1.0, "steps": 5, "end": 9},
    "cosine_decay": {"base": 1.0, "start": 2, "end": 7},
    "piecewise_constant": {"base": 1.0, "boundaries": (1, 2), "factor": 0.5},
    "at_least": {"base": 1.0, "floor": 0.5},
    "product": {"first": 1.0, "second": 2.0},
    "power": {"base": 1.0, "exponent": 2.0},
    "function": {"of_t": abs},
    "zero_based": {"of_count": abs},
}
RULES: dict[str, dict[str, Any]] = {
    "largest_two": {"min_dim": 3},
    "leading_or_last_two": {"min_dim": 3},
    "explicit": {"rows": 0, "cols": 1},
    "limited": {"rule": factoring.largest_two(3), "axes": (1, 2)},
    "by_name": {"rules": {"a": factoring.last_two}},
}


def test_the_tables_are_complete() -> None:
    of_module = {
        name
        for module, base in ((schedules, schedules.Schedule), (factoring, factoring.Rule))
        for name in module.__all__
        if isinstance(kind := getattr(module, name), type) and issubclass(kind, base) and kind is not base
    }
    assert of_module == SCHEDULES.keys() | RULES.keys()


@pytest.mark.parametrize("name", [*SCHEDULES, *RULES])
def test_every_argument_of_a_schedule_or_rule(name: str) -> None:
    make = getattr(schedules if name in SCHEDULES else factoring, name)
    base = (SCHEDULES | RULES)[name]
    for argument in inspect.signature(make).parameters:
        for value in ODD.values():
            for given in (value, (value,), [0, value], {"a": value}):
                outcome(make, **{**base, argument: given})


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_argument_of_a_recipe(name: str) -> None:
    make, base = recipes.function(name), {"praxis": {"decay_method": "pow", "decay_pow": 0.8}}.get(name, {})
    for argument, parameter in inspect.signature(make).parameters.items():
        for value in ODD.values():
            outcome(make, **{**base, argument: value})
        default = None if argument in base else parameter.default
        odd: list[Any] = [np.bool_(default)] if isinstance(default, bool) else []
        if isinstance(default, int | float) and not odd:
            odd = [np.array(default), jnp.asarray(default)] if isinstance(default, int) else [np.float64(default)]
        for value in odd:  # what is the original's default, in another class, is its default
            assert outcome(make, **{**base, argument: value}) == make(**base)


class FailsToIterate:
    """Something of the user's that has a length and whose elements cannot be had."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        raise RuntimeError("There are none.")

    def __contains__(self, value: object) -> bool:
        return False


def test_axes_and_boundaries_that_cannot_be_iterated_over() -> None:
    for field in ("rows", "cols", "batch"):
        assert outcome(factoring.explicit, **{"rows": 0, "cols": 1, field: FailsToIterate()}) is None
    assert outcome(schedules.piecewise_constant, 0.1, FailsToIterate(), 0.5) is None


def test_axes_and_boundaries_of_numpy() -> None:
    rule = outcome(factoring.explicit, np.array([0, 1]), np.int64(2), batch=[np.uint8(3)])
    assert rule == factoring.explicit((0, 1), (2,), (3,))
    for boundaries in (np.array([3, 10]), [10.0, np.int32(3)], jnp.asarray([3, 10]), range(3, 17, 7), {10, 3}):
        made = outcome(schedules.piecewise_constant, 0.1, boundaries, 0.5)
        assert made == schedules.piecewise_constant(0.1, (3, 10), 0.5)
    for nothing in ({3: 1, 10: 2}, "37", np.array(3), np.array([[3, 10]]), (3, 10.5), (3, math.nan)):
        assert outcome(schedules.piecewise_constant, 0.1, nothing, 0.5) is None


# --- Steps that an int32 can count ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda step: schedules.piecewise_constant(0.1, (step,), 0.5),
        lambda step: schedules.linear_warmup(0.1, step),
        lambda step: schedules.linear_cooldown(0.1, 5, step),
        lambda step: schedules.cosine_decay(0.1, 1, step),
        lambda step: schedules.power_decay(offset=step),
        lambda step: schedules.power_decay(offset=-step),
    ],
)
def test_a_step_is_one_that_both_frameworks_can_count(make: Callable[[int], Any]) -> None:
    """JAX counts in int32: there a larger number would be an error in the step, or another number."""
    with pytest.raises(ValueError, match=rf"must be at (most|least) -?{LAST_STEP}, got .*\. Steps are counted in 32 "):
        make(LAST_STEP + 1)
    schedule = make(LAST_STEP)
    compiled = jax.jit(lambda t: (jnp.asarray(schedule(t)), jnp.asarray(schedule.complement(t))))
    for t in (1, 2, 1_000_000, LAST_STEP - 1, LAST_STEP):
        # Two roundings to float32 of what goes in, a power of it, and what comes out is rounded.
        expected = [schedule(t), schedule.complement(t)]
        np.testing.assert_allclose(compiled(jnp.int32(t)), expected, rtol=4 * 2.0**-24, atol=4 * 2.0**-24)


def test_seeds_and_the_bits_that_they_make() -> None:
    state = oracle.init(Recipe(), np.ones(3), dtype="bfloat16")

    def step(seed: Any) -> Any:
        how: dict[str, Any] = {"dtype": "bfloat16", "rounding": "stochastic", "seed": seed}
        return oracle.step(Recipe(), np.ones(3), np.ones(3), state, **how)[0]

    for seed, plain in ((np.int64(2**32 - 1), 2**32 - 1), (np.uint32(7), 7), (np.array(7), 7), (7.0, 7)):
        np.testing.assert_array_equal(step(seed), step(plain))
    for value in (*REFUSED.values(), -1, 2**32, 0.5, np.array(7.0), None):
        with pytest.raises(ValueError, match=r"^seed must be ") as caught:
            step(value)
        assert in_form(caught.value)
    numbers: Any = np.int64(2**32 - 1), np.int32(5), np.uint8(2)
    assert rounding_key(*numbers) == rounding_key(2**32 - 1, 5, 2)


# --- What a function of t gives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.float32(0.25), np.array(0.25), jnp.float32(0.25)], ids=["NumPy", "array", "JAX"])
def test_a_function_may_give_any_number(value: Any) -> None:
    assert Recipe(lr=lambda t: value).at(1).lr == 0.25


@pytest.mark.parametrize("value", [*REFUSED.values(), None, -1.0, jnp.ones(1)], ids=[*REFUSED, "None", "-1", "axis"])
def test_a_function_that_gives_no_number_is_refused(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^lr\(1\) must be .*lr is called with t = 1, 2, \.\.\.\.?$|Give its val"
    ) as caught:
        Recipe(lr=lambda t: value)
    assert in_form(caught.value)


def test_a_function_that_fails_is_refused() -> None:
    for function, why in (
        (lambda t: 1 / (t - 1), "division by zero."),
        (lambda: 1.0, "takes 0 positional arguments but 1 was given."),
        (lambda t: {"rates": 0.1}["rate"], "'rate'."),
        (lambda t: next(iter(())), "StopIteration."),
    ):
        with pytest.raises(ValueError, match=r"^lr must be a function of the step, got <function") as caught:
            Recipe(lr=function)  # type: ignore[arg-type]
        assert in_form(caught.value) and str(caught.value).endswith(why)
