"""`jax_debug_nans` and `jax_debug_infs` find nothing in a whole run: state, telemetry and steps begin as numbers."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor

from .nonfinite import RECIPES
from .profiles import examples

# Zeros, 16 bits, no elements and no axes.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "empty": ((0, 3), "float32"),
    "kernel": ((4, 6), "float32"),
    "narrow": ((4, 6), "bfloat16"),
    "scalar": ((), "float32"),
    "stack": ((2, 3, 4), "float16"),
}
ROUNDINGS = ("nearest", "stochastic", "kahan")
NAMES = list(RECIPES)[:: examples(4, 1)]  # compiling one takes seconds


@pytest.fixture(autouse=True)
def debugging() -> Iterator[None]:
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def parameters(value: float) -> dict[str, jax.Array]:
    return {name: jnp.full(shape, value, dtype) for name, (shape, dtype) in SHAPES.items()}


@pytest.mark.parametrize(("name", "rounding"), [(n, ROUNDINGS[i % 3]) for i, n in enumerate(NAMES)])
def test_a_run_has_neither(name: str, rounding: Any) -> None:
    """Parameters of zeros, a gradient of zeros at first, and one that comes back to zero."""
    tx = adafactor(recipe=RECIPES[name], telemetry=True, rounding=rounding)
    params = parameters(0.0)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for size in (0.0, 1.0, 0.0, 1e-3):
        params, state = step(params, state, parameters(size))
    assert any(np.any(p) for p in jax.tree.leaves(params))


def test_nor_has_a_step_operation_by_operation() -> None:
    """Then every intermediate result is looked at."""
    tx = adafactor(telemetry=True, beta1=0.9, weight_decay=0.1)
    params = {"kernel": jnp.zeros((4, 6)), "scalar": jnp.zeros(())}
    with jax.disable_jit():
        state = tx.init(params)
        for size in (0.0, 1.0):
            grads = jax.tree.map(lambda p, size=size: jnp.full_like(p, size), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)


def test_they_see_what_there_is() -> None:
    tx, params = adafactor(telemetry=True), parameters(0.5)
    state = tx.init(params)
    with pytest.raises(FloatingPointError):
        jax.block_until_ready(jax.jit(tx.update)(parameters(float("nan")), state, params))
