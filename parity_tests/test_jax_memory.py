"""A compiled step writes nothing of a parameter's size but the parameters and the state, and those in place."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from adafactor_jax import adafactor

from .jax_steps import Tree, compilations, step_of

# Of the parameters' bytes: sums of squares in groups of at least 64, one number of each, and short vectors.
TEMPORARIES = 0.02
# optax.adafactor holds the squares and the updates of all parameters at once, each in float32.
FULL_SIZE = 1.0

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "model": {"up": (2048, 512), "down": (512, 1024), "layers": (4, 256, 512), "bias": (1024,), "scale": (512,)},
    "matrix": {"up": (2048, 512)},
}
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "default": adafactor(),
    "decay": adafactor(weight_decay=1e-2),
    "average of gradients": adafactor(beta1=0.9, momentum_of="grad"),
    "L2": adafactor(weight_decay=1e-2, weight_decay_by="grad"),
    "told, rounded": adafactor(telemetry=True, rounding="stochastic"),
    "optax": optax.adafactor(1e-2),
}
DTYPES = ("float32", "bfloat16")


def parameters(shapes: str, dtype: str) -> Tree:
    return {name: jnp.full(shape, 0.5, dtype) for name, shape in SHAPES[shapes].items()}


def size(values: Tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(values))


@functools.cache
def memory(name: str, shapes: str, dtype: str) -> dict[str, int]:
    """Bytes of the compiled step, by its own account; nothing is run."""
    params = parameters(shapes, dtype)
    state = jax.eval_shape(OPTIMIZERS[name].init, params)
    step: Any = step_of(OPTIMIZERS[name], donate_argnums=(0, 1))
    told = step.lower(params, state, params).compile().memory_analysis()
    return {
        "parameters": size(params),
        "donated": size((params, state)),
        "in place": told.alias_size_in_bytes,
        "temporaries": told.temp_size_in_bytes,
    }


def temporaries(name: str, shapes: str, dtype: str) -> float:
    """The share of the parameters' bytes."""
    told = memory(name, shapes, dtype)
    return told["temporaries"] / told["parameters"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_temporary_of_a_parameters_size(dtype: str) -> None:
    assert temporaries("default", "model", dtype) <= TEMPORARIES


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("decay", "float32"), ("average of gradients", "float32"), ("L2", "float32"), ("told, rounded", "bfloat16")],
)
def test_nor_in_other_recipes(name: str, dtype: str) -> None:
    assert temporaries(name, "matrix", dtype) <= TEMPORARIES


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_measurement_sees_temporaries(dtype: str) -> None:
    assert temporaries("optax", "matrix", dtype) >= FULL_SIZE


@pytest.mark.parametrize(
    ("name", "shapes", "dtype"),
    [*(("default", "model", dtype) for dtype in DTYPES), ("average of gradients", "matrix", "float32")],
)
def test_parameters_and_state_are_written_in_place(name: str, shapes: str, dtype: str) -> None:
    told = memory(name, shapes, dtype)
    assert told["in place"] == told["donated"]


def test_several_steps_compile_once() -> None:
    tx, params = OPTIMIZERS["default"], {dtype: parameters("matrix", dtype) for dtype in DTYPES}
    grads, state = {dtype: parameters("matrix", dtype) for dtype in DTYPES}, tx.init(params)
    step = step_of(tx, donate_argnums=(0, 1))
    with compilations() as seen:
        for _ in range(4):
            params, state = step(params, state, grads)
    assert len([line for line in seen if "step" in line]) == 1
    assert int(state.count) == 4
