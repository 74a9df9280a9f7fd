"""Recipes in words: what they say is calculated, not read."""

import inspect
import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from adafactor_spec import Recipe, dtypes, factoring, oracle, per_name, recipes, replace, schedules, summary
from parity_tests.profiles import examples
from parity_tests.random_recipes import any_recipe
from parity_tests.test_formulas import calculated, f_of_t

COLUMNS = ["step size", "decay", "factoring", "eps", "momentum", "clipping", "weight decay", "state dtype"]


# --- The whole step --------------------------------------------------------------------------------------------------

MATRIX, VECTOR, LARGE = (6, 5), (7,), (130, 129)  # the large one is factored by every named recipe
# Rounding: of products in another order, and of p at each of five steps. A wrong equation is off by 1e-4.
OF_THE_WAY, OF_THE_SIZE = 1e-9, 5 * 2.0**-52


def described(recipe: Recipe, name: str, shape: tuple[int, ...], grads: list[np.ndarray], p: np.ndarray) -> np.ndarray:
    """p after those steps, calculated from the text of `recipe.describe()` alone."""
    functions = {f.__name__: f for f in map(_function, vars(recipe).values()) if f is not None}
    factored = factoring.plan(recipe.factoring, shape, name).factored
    equations = [line.strip() for line in recipe.describe().partition("\n\n")[0].splitlines() if " = " in line[4:]]
    kept: dict[str, Any] = dict.fromkeys(("R", "C", "V", "V_max", "m"), 0.0)
    for t, g in enumerate(grads, start=1):
        known: dict[str, Any] = kept | functions | {"t": t, "g": g, "p": p}
        known["round"] = lambda x: dtypes.round_to(np.asarray(x, float), recipe.momentum_dtype or "float64")
        decided: set[str] = set()
        for equation in equations[1:]:  # the first line says what RMS is
            symbol, _, text = equation.partition(" = ")
            text, _, case = text.partition(", where ")
            text, _, other = text.partition(", for every")
            if symbol in ("R", "C") or " C " in text:
                if not factored:
                    continue
            elif case == "it is not factored":
                if factored:
                    continue
            elif case or other:
                fits = symbol not in decided and (bool(other) or bool(re.search(case.split("'")[1], name)))
                if not fits:
                    continue
                decided.add(symbol)
            known[symbol] = calculated(text, **known)
        p = known["p"]
        kept = {symbol: known[symbol] for symbol in kept}
        if recipe.beta1 is not None:
            kept["m"] = dtypes.round_to(np.asarray(kept["m"], float), recipe.momentum_dtype or "float64")
    return p


def _function(value: Any) -> Any:
    return value if inspect.isfunction(value) else None


def check_description(recipe: Recipe, name: str = "w", matrix: tuple[int, ...] = MATRIX) -> None:
    rng = np.random.default_rng(5)
    for shape in (matrix, VECTOR):
        start = rng.standard_normal(shape)
        grads = [rng.standard_normal(shape) * 10.0**k for k in (0, -2, 1, 0, -1)]
        p, state = start, oracle.init(recipe, start, name=name)
        for g in grads:
            p, state = oracle.step(recipe, p, g, state, name=name)
        found = described(recipe, name, shape, grads, start)
        way, size = np.max(np.abs(p - start)), np.max(np.abs(p))
        assert np.max(np.abs(found - p)) <= OF_THE_WAY * way + OF_THE_SIZE * size, recipe.describe()


@given(any_recipe())
@settings(max_examples=examples(150))
def test_the_equations_compute_the_step(recipe: Recipe) -> None:
    if recipe.lr is None:
        recipe = replace(recipe, lr=0.1)
    check_description(recipe)
    assert list(summary(recipe)) == COLUMNS and all(summary(recipe).values())


@pytest.mark.parametrize("name", recipes.NAMES)
def test_the_equations_of_a_named_recipe_compute_its_step(name: str) -> None:
    recipe = recipes.shown(name)
    assert ("lr = (to be given)" in recipe.describe()) == (recipe.lr is None)
    check_description(recipe if recipe.lr is not None else replace(recipe, lr=0.1), matrix=LARGE)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1, "weight_decay_by": 2},
        {"weight_decay": schedules.power_decay(), "weight_decay_by": 0.5, "decay_before_scale": True},
        {"beta1": 0.9, "momentum_dtype": "bfloat16", "momentum_of": "step", "momentum_rounding": "use"},
        {"beta1": 0.9, "momentum_dtype": "bfloat16", "momentum_of": "grad", "momentum_rounding": "decay"},
        {"beta1": 0.9, "momentum_dtype": "float16", "debias": True},
        {"beta1": 0.9, "momentum_rounding": "use"},
        {"max_parameter_scale": 0.5, "relative_step": False, "lr": 0.1},
        {"eps1_mode": "floor", "eps1": 0.5, "amsgrad": True},
        {"eps1_mode": "floor", "eps1": 0.5},
        {"multiply_by_parameter_scale": per_name({"w": False, "w2": True}, True)},
        {
            "weight_decay": per_name({"bias": 0.0, "w": schedules.power_decay()}, 0.1),
            "multiply_by_parameter_scale": per_name({"bias": False}, True),
            "factoring": factoring.by_name({"w": factoring.no_factoring}, default=None),
        },
    ],
    ids=str,
)
def test_the_equations_of_settings_that_no_draw_reaches(changes: dict[str, Any]) -> None:
    check_description(replace(Recipe(), **changes))


def test_batch_axes_and_rules_by_name_are_described() -> None:
    rule = factoring.by_name(
        {"expert": factoring.explicit(1, 2, 0), "head": factoring.limited(factoring.explicit((), (), 0), axes=(2, 2))}
    )
    text = Recipe(factoring=rule).describe()
    assert "Every index of the batch axes is a parameter of its own" in text
    assert "rows 1, columns 2, batch 0, where the name has 'expert'" in text
    assert "none, batch 0 (2 axes only), where the name has 'head'" in text
    assert "last two axes, for every other name" in text
    assert "batch" not in Recipe().describe()
    refusing = factoring.by_name({"a": factoring.no_factoring}, default=None)
    assert "other names are refused" in Recipe(factoring=refusing).describe()


def test_only_the_lines_that_the_recipe_has() -> None:
    plain = Recipe(factoring=factoring.no_factoring, clipping_threshold=None).describe()
    for absent in ("R =", "C =", "m =", "beta1", "c =", "V_max", "RMS(u)", "round(", "eps(dtype)"):
        assert absent not in plain, absent
    assert recipes.paper().describe().endswith('No field differs from "paper".')
    changed = Recipe(lr=0.5, weight_decay=f_of_t).describe().splitlines()[-3:]
    assert changed[0] == 'Fields that differ from "paper":' and changed[1] == "  lr = 0.5  (paper: 0.01)"
    assert changed[2].startswith("  weight_decay = <function f_of_t> ")


# --- The row of a table ----------------------------------------------------------------------------------------------

BY_NAME = factoring.by_name({"a": factoring.explicit(0, 1), "b": factoring.no_factoring})


@pytest.mark.parametrize(
    ("changes", "column", "phrase"),
    [
        ({}, "step size", "min(0.01, t^-1/2) * max(0.001, RMS(p))"),
        ({"lr": None}, "step size", "min(lr (to be given), t^-1/2) * max(0.001, RMS(p))"),
        ({"lr": None, "relative_step": False}, "step size", "lr (to be given) * max(0.001, RMS(p))"),
        ({"lr": f_of_t, "relative_step": False}, "step size", "f_of_t(t) * max(0.001, RMS(p))"),
        ({"lr": 1.0, "relative_step": False}, "step size", "max(0.001, RMS(p))"),
        ({"lr": schedules.power_decay(), "relative_step": False}, "step size", "(1 - t^-0.8) * max(0.001, RMS(p))"),
        ({"multiply_by_parameter_scale": False}, "step size", "min(0.01, t^-1/2)"),
        ({"max_parameter_scale": 2.0}, "step size", "min(0.01, t^-1/2) * clip(RMS(p), 0.001, 2)"),
        (
            {"multiply_by_parameter_scale": per_name({"a": False}, True), "lr": 0.1, "relative_step": False},
            "step size",
            "0.1 * (1 or max(0.001, RMS(p)) by name)",
        ),
        ({"amsgrad": True, "beta2": 0.99}, "decay", "0.99, running max of V"),
        ({"factoring": factoring.last_two}, "factoring", "last two axes"),
        ({"factoring": factoring.no_factoring}, "factoring", "none"),
        ({"factoring": factoring.as_matrix}, "factoring", "all axes, reshaped to a matrix"),
        ({"factoring": factoring.largest_two(128)}, "factoring", "two largest axes >= 128"),
        (
            {"factoring": factoring.limited(factoring.largest_two(8, "first"), (0, 3), rows_last=True)},
            "factoring",
            "two largest axes >= 8, of equal ones the first (0 to 3 axes only, the shorter one the last without the "
            "longer)",
        ),
        ({"factoring": factoring.leading_or_last_two(17)}, "factoring", "axes 0 and 1, else the last two, if >= 17"),
        (
            {"factoring": factoring.limited(factoring.explicit((0, 1), -1, 2), (4, 4))},
            "factoring",
            "rows 0 and 1, columns -1, batch 2 (4 axes only)",
        ),
        ({"factoring": BY_NAME}, "factoring", "by name: 2 rules, else last two axes"),
        ({"factoring": factoring.by_name({"a": BY_NAME}, None)}, "factoring", "by name: 1 rule, no others"),
        ({"eps1": None}, "eps", "g^2 + eps(dtype)"),
        ({"eps1": 1e-8, "eps1_mode": "floor"}, "eps", "sqrt(V) >= 1e-08"),
        ({"amsgrad": True}, "eps", "g^2 + 1e-30, root + 1e-30"),
        ({"beta1": None}, "momentum", "none"),
        (
            {"beta1": 0.9, "momentum_of": "grad", "debias": True, "momentum_dtype": "bfloat16"},
            "momentum",
            "0.9 of the gradient, debiased, bfloat16",
        ),
        (
            {"beta1": 0.9, "momentum_of": "step", "momentum_dtype": "bfloat16", "momentum_rounding": "use"},
            "momentum",
            "0.9 of the step, bfloat16, rounded before use",
        ),
        ({"beta1": 0.9, "momentum_rounding": "use"}, "momentum", "0.9 of the update"),
        (
            {"beta1": 0.9, "momentum_rounding": "decay", "state_dtype": "param"},
            "momentum",
            "0.9 of the update, its decay rounded",
        ),
        ({"clipping_threshold": None}, "clipping", "off"),
        ({"clipping_threshold": float("inf")}, "clipping", "off"),
        ({"clipping_threshold": 0.5}, "clipping", "RMS(u) <= 0.5"),
        ({}, "weight decay", "off (wd * alpha)"),
        ({"weight_decay_by": "one"}, "weight decay", "off (wd)"),
        ({"weight_decay": 0.1, "weight_decay_by": "lr"}, "weight decay", "0.1 * lr"),
        ({"weight_decay": 0.1, "weight_decay_by": 2.0}, "weight decay", "0.1 * lr^2"),
        (
            {"weight_decay": schedules.power_decay(), "weight_decay_by": "grad"},
            "weight decay",
            "L2: g + (1 - t^-0.8) * p",
        ),
        ({"weight_decay": per_name({"a": 0.0}, 0.1)}, "weight decay", "(0 or 0.1 by name) * alpha"),
        (
            {"weight_decay": 0.1, "weight_decay_by": "lr", "decay_before_scale": True},
            "weight decay",
            "0.1 * lr, before RMS(p)",
        ),
        ({}, "state dtype", "float32 or wider"),
        ({"state_dtype": "param"}, "state dtype", "the parameter's"),
    ],
)  # fmt: skip
def test_a_phrase_for_every_setting(changes: dict[str, Any], column: str, phrase: str) -> None:
    assert summary(replace(Recipe(), **changes))[column] == phrase


# --- What differs ----------------------------------------------------------------------------------------------------


def test_diff_gives_the_fields_that_differ() -> None:
    mine = Recipe(lr=0.5, beta2=schedules.power_decay(cap=0.9), clipping_threshold=None)
    assert mine.diff(Recipe(clipping_threshold=None, lr=0.5)) == {
        "beta2": (schedules.power_decay(cap=0.9), schedules.power_decay())
    }
    for first, second in itertools.product(recipes.NAMES, repeat=2):
        a, b = recipes.shown(first), recipes.shown(second)
        assert replace(b, **{field: pair[0] for field, pair in a.diff(b).items()}) == a
        assert (a.diff(b) == {}) == (a == b)


def test_diff_takes_recipes_only() -> None:
    with pytest.raises(ValueError, match=r"other must be a Recipe, got 'paper'. Use recipes.resolve\('paper'\)."):
        Recipe().diff("paper")  # type: ignore[arg-type]
