"""What the compiled step computes where floating point is hard: tiny and huge gradients, zeros, 16-bit parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import Recipe, replace
from parity_tests.jax_steps import FLOAT32_GAPS, RECIPES, Step, Tree, assert_equal, oracle_run, run, step_of, tree

every_recipe = pytest.mark.parametrize("name", RECIPES)


@functools.cache
def large_steps(name: str) -> tuple[Recipe, optax.GradientTransformation, Step]:
    """A recipe of large steps and a momentum in float32: parameters of zeros become updates, with all their digits.

    Every update is clipped, so that RMS(u) is in it."""
    momentum_dtype = None if RECIPES[name].momentum_dtype is None else "float32"
    clips = None if RECIPES[name].clipping_threshold is None else 0.1
    recipe = replace(RECIPES[name], lr=1.0, eps2=1.0, momentum_dtype=momentum_dtype, clipping_threshold=clips)
    tx = adafactor(recipe=recipe)
    return recipe, tx, step_of(tx)


WIDE = {"bias": (6,), "kernel": (4, 1000), "scale": ()}  # a row's sum of squares of 1e18 is beyond float32
SCALES = {
    "1e-18": [1e-18, 1e-18],
    "1": [1.0, 1.0],
    "1e18": [1e18, 1e18],
    "falling": [1e18, 1.0, 1e-18],
    "rising": [1e-18, 1.0, 1e18],
}


MIXED = ("rows of different size", "a large row", "zeros in a row and a column")


def gradients(case: str, amsgrad: bool) -> list[Tree]:
    if case in SCALES:
        return [tree(t, shapes=WIDE, scale=scale) for t, scale in enumerate(SCALES[case], 1)]
    rows, columns = [0.0, 1e18, 1e18, 1e18], jnp.ones(1000).at[0].set(0.0)
    if case == "rows of different size":
        # V = R C / mean(R) itself, which only amsgrad keeps, leaves float32's range where a row is 1e-36 of another.
        rows, columns = [1e-9, 1e-3, 1e3, 1e9] if amsgrad else [1e-18, 1e-6, 1e6, 1e18], jnp.ones(1000)
    if case == "a large row":
        rows, columns = [1e-9, 1e-9, 1e-9, 1e9] if amsgrad else [1e-14, 1e-14, 1e-14, 1e18], jnp.ones(1000)
    grads = [tree(t, shapes=WIDE) for t in (1, 2)]
    for grad in grads:
        grad["kernel"] *= jnp.asarray(rows)[:, None] * columns
    return grads


def deviation(actual: list[Any], paths: list[Any]) -> float:
    """The worst deviation of an element from the end of its path, relative to the way its leaf has come."""
    assert all(np.all(np.isfinite(a)) for a in actual)
    ways = [sum(np.max(np.abs(step)) for step in np.diff(path, axis=0)) for path in paths]
    worst = [np.max(np.abs(a - path[-1])) / way for a, path, way in zip(actual, paths, ways, strict=True)]
    return float(max(worst))


@pytest.mark.sampled
@every_recipe
def test_gradients_of_any_size(name: str) -> None:
    recipe, tx, step = large_steps(name)
    zeros = jax.tree.map(jnp.zeros_like, tree(0, shapes=WIDE))
    gap, ours = {}, {}
    for case in (*SCALES, *MIXED):
        grads = gradients(case, recipe.amsgrad)
        paths = oracle_run(recipe, zeros, grads, "float32")
        gap[case] = deviation([path[-1] for path in oracle_run(recipe, zeros, grads, "float32", np.float32)], paths)
        leaves = jax.tree.leaves(run(tx, step, zeros, grads)[0])
        ours[case] = deviation([np.asarray(leaf, np.float64) for leaf in leaves], paths)
    assert 0 < max(gap.values()) < 1e-6  # a few times the 6e-8 of float32
    assert max(ours.values()) <= FLOAT32_GAPS * max(gap.values()), ours


@pytest.mark.sampled
@every_recipe
def test_a_zero_gradient_moves_nothing(name: str) -> None:
    recipe = replace(RECIPES[name], lr=1.0, weight_decay=0.0)
    tx = adafactor(recipe=recipe)
    step = step_of(tx)
    dtypes = ("float32", "bfloat16", "float16")
    params, grads = ({dtype: tree(seed, dtype)["layer"]["kernel"] for dtype in dtypes} for seed in (0, 1))
    zero = jax.tree.map(jnp.zeros_like, grads)
    moved, state = run(tx, step, params, [zero, zero])  # the first step too
    assert_equal(moved, params)
    moved, state = step(moved, state, grads)
    assert all(bool(jnp.any(p != q)) for p, q in zip(*map(jax.tree.leaves, (params, moved)), strict=True))
    still, state = step(moved, state, zero)
    if recipe.beta1 is None:
        assert_equal(still, moved)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((still, state)))


@every_recipe
def test_a_zero_parameter_moves_by_eps2(name: str) -> None:
    recipe, tx, step = large_steps(name)
    moved, _ = run(tx, step, jax.tree.map(jnp.zeros_like, tree(0, shapes=WIDE)), [tree(1, shapes=WIDE)])
    # rho = eps2 = 1, and u of one element is +-1, up to torch's floor of 1e-7 and float32, which is clipped to a tenth;
    # of the average, a tenth of that.
    first = 0.01 if recipe.beta1 is not None and recipe.momentum_of == "step" else 0.1
    assert float(jnp.abs(moved["scale"])) == pytest.approx(first, rel=1e-6)


@pytest.mark.sampled
@every_recipe
def test_narrow_parameters_round_once(name: str) -> None:
    recipe = RECIPES[name]
    tx = adafactor(recipe=recipe)
    shapes = {"kernel": (64, 80)}  # so large that a second rounding shows in some elements
    start = np.random.default_rng(0).uniform(0.5, 2.0, shapes["kernel"])
    dtypes = [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")]  # parameters', gradients'
    params = [jnp.asarray(start, dtype) for dtype, _ in dtypes]
    grads = [[tree(t, dtype, shapes)["kernel"] for _, dtype in dtypes] for t in (1, 2, 3)]
    moved, _ = run(tx, step_of(tx), params, grads)
    for index, (dtype, _) in enumerate(dtypes):
        gradients = [grad[index] for grad in grads]
        exact, single = (
            oracle_run(recipe, params[index], gradients, dtype, compute)[0][-1] for compute in (np.float64, np.float32)
        )
        # Nearer to the middle of two numbers than float32 can tell, the two oracles differ.
        told = exact == single
        assert told.mean() > 0.99
        assert np.array_equal(np.asarray(moved[index], np.float64)[told], exact[told])
        assert not np.array_equal(exact, np.asarray(params[index], np.float64))
