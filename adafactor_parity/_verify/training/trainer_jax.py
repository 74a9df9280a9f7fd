"""Trains the character transformer in JAX, with its own backward pass and optimizer."""

import contextlib
from typing import Any

import jax
import numpy as np
import optax

import adafactor_jax
from adafactor_spec import Recipe

from ..stepping.runners import precision
from ..stepping.zoo import Arrays
from .corpus import Codes
from .model import Config, Weights
from .model_jax import loss


class JaxTrainer:
    """`step` trains on one batch; the weights are read as float64 NumPy arrays by name."""

    def __init__(self, config: Config, weights: Weights, recipe: Recipe, dtype: str, device: jax.Device) -> None:
        self._dtype, self._device = dtype, device
        transform = adafactor_jax.adafactor(recipe=recipe)

        def step(params: Any, state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any, Any]:
            value, grads = jax.value_and_grad(loss)(params, inputs, targets, config)
            updates, state = transform.update(grads, state, params)
            return value, optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._loss = jax.jit(loss, static_argnums=3)
        self._config = config
        with self._settings():
            self._params = {name: jax.device_put(value.astype(dtype), device) for name, value in weights.items()}
            self._state = jax.device_put(transform.init(self._params), device)

    def step(self, inputs: Codes, targets: Codes) -> float:
        """One update; returns the loss before it, in nats per character."""
        with self._settings():
            value, self._params, self._state = self._step(self._params, self._state, *self._put(inputs, targets))
        return float(value)

    def loss(self, inputs: Codes, targets: Codes) -> float:
        """The loss on a batch that is not learned from."""
        with self._settings():
            return float(self._loss(self._params, *self._put(inputs, targets), self._config))

    def weights(self) -> Arrays:
        """The weights now, by name."""
        return {name: np.asarray(value).astype(np.float64) for name, value in self._params.items()}

    def state_bytes(self) -> int:
        """Bytes of the arrays that the optimizer keeps from step to step."""
        return _bytes(self._state)

    def adam_bytes(self) -> int:
        """Bytes that `optax.adam` would keep for the same weights."""
        with self._settings():
            return _bytes(jax.eval_shape(optax.adam(1e-3).init, self._params))

    def _put(self, *codes: Codes) -> list[jax.Array]:
        return [jax.device_put(value, self._device) for value in codes]

    def _settings(self) -> Any:
        # "highest": unlike torch, JAX multiplies float32 matrices in fewer bits on a GPU or TPU unless told not to.
        stack = contextlib.ExitStack()
        stack.enter_context(precision(self._dtype))
        stack.enter_context(jax.default_matmul_precision("highest"))
        return stack


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
