"""The compiled step is lowered for every platform, and transformed: exported, mapped over a stack, differentiated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from adafactor_jax import adafactor
from adafactor_spec import Recipe, factoring

from .jax_rounding import EXACT
from .jax_steps import RECIPES, Tree, assert_equal, kinds, run, step_of, structure, tree

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
EVERYTHING: dict[str, dict[str, Any]] = {
    "default": {},
    "momentum": {"beta1": 0.9, "momentum_dtype": "bfloat16", "momentum_of": "grad", "weight_decay": 1e-2},
    "amsgrad": {"recipe": RECIPES["amsgrad"]},
    "stochastic": {"rounding": "stochastic", "seed": 3},
    "compensated, told": {"rounding": "kahan", "telemetry": True},
}


def both(seed: int) -> Tree:
    """Matrices of two dtypes and a vector."""
    shapes = {"float32": {"kernel": (4, 6)}, "bfloat16": {"bias": (6,), "kernel": (4, 6)}}
    return {dtype: tree(seed, dtype, own) for dtype, own in shapes.items()}


@functools.cache
def exported_step(name: str) -> tuple[Any, Any, list[Any]]:
    """(The compiled step, what is exported of it, its arguments), of leaves to leaves: what is exported has no types
    of states unless they are registered."""
    tx, params = adafactor(**EVERYTHING[name]), both(0)
    arguments = (params, tx.init(params), both(1))
    step, outer = step_of(tx), structure(arguments)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(step(*jax.tree.unflatten(outer, leaves)))

    leaves, compiled = jax.tree.leaves(arguments), jax.jit(flat)
    return compiled, export.export(compiled, platforms=PLATFORMS)(*leaves), leaves


@pytest.mark.parametrize("name", EVERYTHING)
def test_lowered_for_every_platform(name: str) -> None:
    step, exported, arguments = exported_step(name)
    assert exported.platforms == PLATFORMS
    made = jax.eval_shape(step, *arguments)
    assert [(x.shape, x.dtype) for x in exported.out_avals] == [(x.shape, x.dtype) for x in made]
    # What is not in StableHLO, a kernel of one vendor say, is a call that only one platform knows.
    assert "custom_call" not in exported.mlir_module()


def test_the_check_sees_what_only_some_platforms_know() -> None:
    solve = export.export(jax.jit(jnp.linalg.eigh), platforms=["cpu"])(jnp.eye(3))
    assert "custom_call" in solve.mlir_module()


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_exported_step_is_the_step(name: str) -> None:
    """`call` compiles the bytes that a file of the exported step holds."""
    step, exported, arguments = exported_step(name)
    assert exported.mlir_module_serialized
    grads = jax.tree.leaves(both(2))
    expected = found = arguments
    for _ in range(2):
        expected, found = ([*call(*old), *grads] for call, old in ((step, expected), (exported.call, found)))
    assert_equal(found, expected)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_mapped_step_rounds_each_of_a_stack_as_if_alone(rounding: Any) -> None:
    """With the same bits: those of an element are of its place in its own parameter."""
    tx = adafactor(recipe=EXACT if rounding == "stochastic" else RECIPES["paper"], rounding=rounding, telemetry=True)
    step = step_of(tx)
    params = [jax.tree.map(lambda p: jnp.asarray(1 + 0.1 * p, "bfloat16"), tree(seed)) for seed in (0, 1)]
    grads = [[jax.tree.map(jnp.sign, tree(10 * seed + t, "bfloat16")) for t in (1, 2)] for seed in (0, 1)]
    separate = [run(tx, step, p, g) for p, g in zip(params, grads, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    together, state = stack(params), jax.vmap(tx.init)(stack(params))
    mapped = jax.jit(jax.vmap(step))
    for now in zip(*grads, strict=True):
        together, state = mapped(together, state, stack(now))
    for index, expected in enumerate(separate):
        found = jax.tree.map(lambda x, i=index: x[i], (together, state))
        assert_equal(found, expected)


# A central difference over h errs by h^2 times a third derivative, and by roundings of 1e-16 over h.
WIDTH, DIFFERENCES = 1e-5, 1e-8
SMOOTH: dict[str, Recipe] = {
    **{name: RECIPES[name] for name in ("paper", "amsgrad")},
    "float64 momentum": Recipe(lr=0.1, beta1=0.9, momentum_of="step", debias=True, weight_decay=1e-2),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_derivative_by_the_gradient_is_that_of_the_step(name: str) -> None:
    """What a step through the optimizer needs, in meta-learning say; after a first step, where all moments count."""
    with jax.enable_x64(True):
        tx, along, weigh = adafactor(recipe=SMOOTH[name]), tree(3, "float64"), tree(4, "float64")

        def moved(grads: Tree, params: Tree, state: Tree) -> tuple[jax.Array, tuple[Tree, Tree]]:
            updates, state = tx.update(grads, state, params)
            new = optax.apply_updates(params, updates)
            return optax.tree_utils.tree_vdot(new, weigh), (new, state)

        slopes = jax.jit(jax.value_and_grad(moved, has_aux=True))
        params: Tree = tree(0, "float64")
        (_, before), _ = slopes(tree(1, "float64"), params, tx.init(params))
        slope = optax.tree_utils.tree_vdot(slopes(tree(2, "float64"), *before)[1], along)
        ends = [
            float(slopes(jax.tree.map(lambda g, d, h=h: g + h * d, tree(2, "float64"), along), *before)[0][0])
            for h in (-WIDTH, WIDTH)
        ]
        assert abs(float(slope)) > 1e-4
        assert float(slope) == pytest.approx((ends[1] - ends[0]) / (2 * WIDTH), rel=0, abs=DIFFERENCES)


WARM: dict[str, dict[str, Any]] = {
    "paper": {},
    "torch": {"recipe": "torch"},
    "amsgrad": {"amsgrad": True},
    "not factored": {"factoring": factoring.no_factoring},
}


@pytest.mark.parametrize("name", WARM)
def test_the_derivative_by_a_learning_rate_of_zero_is_the_update_for_one(name: str) -> None:
    """As at the start of a warm-up."""
    params, grads = tree(0), tree(1)

    def update(lr: Any, grads: Tree) -> Tree:
        tx = adafactor(lambda t: lr, relative_step=False, **WARM[name])
        return tx.update(grads, tx.init(params), params)[0]

    def total(lr: Any, grads: Tree) -> jax.Array:
        return optax.tree_utils.tree_sum(update(lr, grads))

    by_lr, by_grads = jax.jit(jax.grad(total, (0, 1)))(0.0, grads)
    assert float(by_lr) == pytest.approx(float(total(1.0, grads)), rel=1e-5)
    assert all(not np.any(np.asarray(slope)) for slope in jax.tree.leaves(by_grads))


@pytest.mark.parametrize("name", ["momentum", "compensated, told"])
def test_derivatives_are_finite(name: str) -> None:
    """Of what 16 bits round they are those of what is rounded."""
    tx, params = adafactor(**EVERYTHING[name]), both(0)

    def moved(grads: Tree) -> jax.Array:
        updates, _ = tx.update(grads, tx.init(params), params)
        new = jax.tree.map(lambda p: jnp.sum(p, dtype="float32"), optax.apply_updates(params, updates))
        return optax.tree_utils.tree_sum(new)

    slopes = jax.jit(jax.grad(moved))(both(1))
    assert kinds(slopes) == kinds(params)
    for of_dtype in slopes.values():
        found = [np.asarray(x, np.float32) for x in jax.tree.leaves(of_dtype)]
        assert all(np.all(np.isfinite(x)) for x in found)
        assert any(np.any(x != 0) for x in found)
