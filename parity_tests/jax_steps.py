"""What the tests of optax's contract share: recipes, a small tree, compiled steps, the oracle over a tree."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle, recipes

Tree = Any
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]

# A step is a few hundred roundings of 1.1e-16 each; the issue allows 1e-12 after 20 steps.
FLOAT64 = 1e-12
# The oracle's own distance between float32 and float64 is one draw of float32's rounding. XLA adds in another order and
# contracts products and sums: another draw, of the same size. The issue allows 4 of them.
FLOAT32_GAPS = 4

RECIPES = {
    "paper": recipes.paper(),
    "optax": recipes.optax(
        1e-2, min_dim_size_to_factor=2, momentum=0.9, dtype_momentum="bfloat16", weight_decay_rate=1e-3
    ),
    "adafactor_pytorch": recipes.adafactor_pytorch(),
    "amsgrad": recipes.adafactor_pytorch(non_constant_decay=False),
    "torch": recipes.torch(),
    "step": Recipe(beta1=0.9, momentum_of="step", momentum_dtype="bfloat16", weight_decay=1e-2),
}

SHAPES: Tree = {"layer": {"bias": (6,), "kernel": (4, 6)}, "scale": ()}


def tree(seed: int, dtype: str = "float32", shapes: Tree = SHAPES, scale: float = 1.0) -> Tree:
    """Normal numbers, the same ones in every dtype but for their rounding."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(scale * rng.standard_normal(shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


def step_of(tx: optax.GradientTransformation, **options: Any) -> Step:
    """A compiled step: (parameters, state, gradients) -> (parameters, state)."""

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, **options)


@functools.cache
def optimizer(name: str) -> tuple[optax.GradientTransformationExtraArgs, Step]:
    """The optimizer of a recipe of this file and its step, compiled once for all tests of a process."""
    tx = adafactor(recipe=RECIPES[name])
    return tx, step_of(tx)


def run(tx: optax.GradientTransformation, step: Step, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    """The parameters and the state after these gradients."""
    state = tx.init(params)
    for grad in grads:
        params, state = step(params, state, grad)
    return params, state


def distance(actual: Tree, expected: Tree) -> float:
    """The worst difference of two trees of one kind, relative to the largest element of its leaf."""
    assert structure(actual) == structure(expected)
    worst = 0.0
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert kind(one) == kind(other)
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.all(np.isfinite(a))
        if not np.array_equal(a, b):
            worst = max(worst, float(np.max(np.abs(a - b)) / np.max(np.abs(b))))
    return worst


def kind(x: Any) -> tuple[Any, ...]:
    """Shape, dtype and weak type: what decides whether a step is compiled again."""
    return jnp.shape(x), jnp.result_type(x).name, bool(getattr(x, "weak_type", False))


def structure(values: Tree) -> Any:
    """The tree without its leaves."""
    return jax.tree.structure(values)


def kinds(values: Tree) -> tuple[list[tuple[Any, ...]], Any]:
    """`kind` of every leaf, and the structure."""
    return [kind(leaf) for leaf in jax.tree.leaves(values)], structure(values)


def assert_equal(actual: Tree, expected: Tree) -> None:
    """Bit for bit, structure and dtypes included; NaN equals NaN."""
    assert kinds(actual) == kinds(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects what is compiled inside: one line for each."""
    seen: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()).startswith("Compiling "):
                seen.append(line)

    logger, collector = logging.getLogger("jax"), Collector()
    logger.addHandler(collector)
    try:
        with jax.log_compiles(True):
            yield seen
    finally:
        logger.removeHandler(collector)


def oracle_run(recipe: Recipe, params: Tree, grads: list[Tree], dtype: str, compute: Any = np.float64) -> list[Any]:
    """Each leaf by the definition: an array of dtype `compute`, its first axis the step, 0 before the first."""
    leaves = []
    for index, leaf in enumerate(jax.tree.leaves(params)):
        path = [np.asarray(leaf).astype(compute)]
        state = oracle.init(recipe, path[0], dtype=dtype, compute=compute)
        for grad in grads:
            g = np.asarray(jax.tree.leaves(grad)[index]).astype(compute)
            p, state = oracle.step(recipe, path[-1], g, state, dtype=dtype, compute=compute)
            path.append(p)
        leaves.append(np.stack(path))
    return leaves
