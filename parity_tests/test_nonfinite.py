"""What becomes of infinities, NaN and squares that overflow: what the definition says, the same on every path."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adafactor_jax import adafactor
from adafactor_spec import Recipe, factoring, oracle, recipes, replace

from .nonfinite import Case, Definition, Jax, Path, Torch, Values, cases, gradients, run

RULE = factoring.by_name({"stack": factoring.explicit(1, 2, 0)}, default=factoring.last_two)
FLOOR: dict[str, Any] = {"eps1": None, "eps1_mode": "floor"}
RECIPES: dict[str, Recipe] = {
    "paper": recipes.paper(),
    "torch": recipes.torch(0.1, weight_decay=0.1),
    "floor": Recipe(
        clipping_threshold=None, multiply_by_parameter_scale=False, factoring=factoring.no_factoring, **FLOOR
    ),
    "not clipped": Recipe(clipping_threshold=None, multiply_by_parameter_scale=False),
    "infinite threshold": Recipe(clipping_threshold=np.inf, max_parameter_scale=1.0),
    "amsgrad": recipes.adafactor_pytorch(non_constant_decay=False),
    "amsgrad and a floor": Recipe(amsgrad=True, beta2=0.9, **FLOOR),
    "averages of gradients": Recipe(beta1=0.9, momentum_of="grad", debias=True, clipping_threshold=None, **FLOOR),
    "averages of updates": Recipe(beta1=0.9, multiply_by_parameter_scale=False),
    "averages of steps": Recipe(beta1=0.9, momentum_of="step", weight_decay=0.1, weight_decay_by="one"),
    "L2": Recipe(weight_decay=1e-3, weight_decay_by="grad"),
    "decay first": Recipe(weight_decay=0.1, weight_decay_by="lr", decay_before_scale=True),
}
# A finite result is the definition's but for rounding: float32's error is some 1e-7 of the largest finite element, and
# a 16-bit number a spacing or two of its own.
NEAR = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}

PATHS: dict[str, Callable[..., Path]] = {
    "JAX": Jax,
    "reference": functools.partial(Torch, foreach=False),
    "eager": functools.partial(Torch, fused=False),
    "C++": functools.partial(Torch, fused=True),
}


def assert_alike(found: Values, right: Values, near: float, where: object) -> None:
    """Infinite with the same sign, NaN and finite in the same places, and what is finite is near."""
    assert found.keys() == right.keys()
    for key, expected in right.items():
        x, finite = found[key], np.isfinite(expected)
        assert np.array_equal(x[~finite], expected[~finite], equal_nan=True), (where, key)
        assert np.all(np.isfinite(x[finite])), (where, key)
        # Beside a tie the last bit of a step decides which way p is rounded, and what that cuts off changes by a whole
        # spacing: p itself shows whether the rounding is right.
        if finite.any() and key[0] != "compensation":
            largest = np.max(np.abs(expected[finite]))
            assert np.max(np.abs(x[finite] - expected[finite])) <= near * largest, (where, key)


@functools.cache
def recipe_of(name: str) -> Recipe:
    recipe = RECIPES[name]
    return replace(recipe, factoring=RULE) if recipe.factoring == factoring.last_two else recipe


@functools.cache
def defined(name: str, case: Case, *how: str) -> list[Values]:
    """What the definition says, once for all paths."""
    with np.errstate(all="ignore"):
        return run(Definition(recipe_of(name), *how), case)


def assert_as_defined(path: Path, name: str, case: Case, *how: str) -> None:
    near = NEAR[how[0] if how else "float32"]
    for step, (found, right) in enumerate(zip(run(path, case), defined(name, case, *how), strict=True)):
        assert_alike(found, right, near, (case, step))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_does_what_the_definition_does(path: str, name: str) -> None:
    """Some seconds in JAX, which compiles a program for each recipe."""
    way = PATHS[path](recipe_of(name))
    for case in cases(recipe_of(name)):
        assert_as_defined(way, name, case)


@pytest.mark.parametrize("name", ["torch", "paper"])
def test_jax_does_the_same_compiled_and_operation_by_operation(name: str) -> None:
    """XLA's own maximum loses a NaN in some programs. Seconds, as every operation is compiled."""
    tx, p = adafactor(recipe=recipe_of(name)), jnp.asarray(gradients(0)["large"])
    for value in (np.inf, np.nan, 1e20):
        g = jnp.asarray(Case("g", "one", value).put_into(gradients(1)["large"]), p.dtype)
        for off in (False, True):
            with jax.disable_jit(off):
                updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
            assert not np.any(np.isfinite(updates)), (value, off)


@pytest.mark.parametrize(
    "how",
    ["bfloat16 nearest", "bfloat16 stochastic", "bfloat16 kahan", "float16 stochastic", "float64 nearest"],
)
@pytest.mark.parametrize("path", PATHS)
def test_every_dtype_and_rounding(path: str, how: str) -> None:
    name, (dtype, rounding) = "not clipped", how.split()
    with jax.enable_x64(dtype == "float64"):
        way = PATHS[path](recipe_of(name), dtype, rounding)
        for case in cases(recipe_of(name), dtype):
            assert_as_defined(way, name, case, dtype, rounding)


def test_by_hand() -> None:
    """One infinity in a matrix: R and C are infinite there, and R / mean(R) is NaN in its row and 0 in the others."""
    g = np.ones((3, 3))
    g[1, 2] = np.inf
    with np.errstate(all="ignore"):
        p, state = oracle.step(recipe_of("not clipped"), np.zeros((3, 3)), g, oracle.init(Recipe(), g))
        clipped, _ = oracle.step(Recipe(), np.zeros((3, 3)), g, oracle.init(Recipe(), g))
    assert np.array_equal(np.isfinite(state.v_row.ravel()), [True, False, True])
    assert np.array_equal(np.isfinite(state.v_col.ravel()), [True, True, False])
    inf, nan = np.inf, np.nan
    assert np.array_equal(p, [[-inf, -inf, nan], [nan, nan, nan], [-inf, -inf, nan]], equal_nan=True)
    assert np.all(np.isnan(clipped))  # RMS(u) is NaN
