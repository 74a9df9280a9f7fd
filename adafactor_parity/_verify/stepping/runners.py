"""One interface to step the oracle, the JAX optimizer and the torch optimizer. Values go in and come out as NumPy."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import adafactor_jax
import adafactor_torch
from adafactor_spec import Recipe, dtypes, oracle

from .zoo import Array, Arrays


class Runner(Protocol):
    """Steps a dict of parameters; values go in and come out as float64 arrays that fit the dtype."""

    def step(self, grads: Arrays) -> None:
        """One update of every parameter."""

    def params(self) -> Arrays:
        """The parameters now."""


class OracleRunner:
    """The definition, computing in `compute`; parameters are rounded to `dtype` after every step.

    With `by_addition` the parameter reaches its new value as optax prescribes: a difference, itself in `dtype`, is
    added to it.
    """

    def __init__(
        self, recipe: Recipe, params: Arrays, dtype: str, compute: Any = np.float64, by_addition: bool = False
    ) -> None:
        self._recipe, self._how = recipe, {"dtype": dtype, "compute": compute}
        self._compute, self._dtype, self._by_addition = compute, dtype, by_addition
        self._params = {name: value.astype(compute) for name, value in params.items()}
        self._states = {
            name: oracle.init(recipe, value, name=name, dtype=dtype, compute=compute)
            for name, value in self._params.items()
        }

    def step(self, grads: Arrays) -> None:
        """One update of every parameter."""
        for name, grad in grads.items():
            old, state = self._params[name], self._states[name]
            new, self._states[name] = oracle.step(
                self._recipe, old, grad.astype(self._compute), state, name=name, **self._how
            )
            self._params[name] = self._added(old, new) if self._by_addition else new

    def params(self) -> Arrays:
        """The parameters now."""
        return {name: value.astype(np.float64) for name, value in self._params.items()}

    def _added(self, old: Array, new: Array) -> Array:
        return dtypes.round_to(old + dtypes.round_to(new - old, self._dtype), self._dtype)


class JaxRunner:
    """`adafactor_jax.adafactor` under one jit over all parameters, applied by `optax.apply_updates`."""

    def __init__(self, recipe: Recipe, params: Arrays, dtype: str, device: jax.Device) -> None:
        self._device, self._dtype = device, dtype
        transform = adafactor_jax.adafactor(recipe=recipe)

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step)
        with precision(dtype):
            self._params = self._arrays(params)
            # Put where the steps will leave it: a state that starts elsewhere costs a second compilation.
            self._state = jax.device_put(transform.init(self._params), device)

    def step(self, grads: Arrays) -> None:
        """One update of every parameter."""
        with precision(self._dtype):
            self._params, self._state = self._step(self._params, self._state, self._arrays(grads))

    def params(self) -> Arrays:
        """The parameters now."""
        return {name: np.asarray(value).astype(np.float64) for name, value in self._params.items()}

    def _arrays(self, values: Arrays) -> dict[str, jax.Array]:
        kind = jnp.dtype(self._dtype)
        return {name: jax.device_put(value.astype(kind), self._device) for name, value in values.items()}


class TorchRunner:
    """`adafactor_torch.Adafactor` over named parameters; with `plain` in the path that its kernels make up."""

    def __init__(
        self, recipe: Recipe, params: Arrays, dtype: str, device: torch.device, *, plain: bool = False
    ) -> None:
        self._dtype, self._device = getattr(torch, dtype), device
        self._params = {name: torch.nn.Parameter(self._tensor(value)) for name, value in params.items()}
        self._optimizer = adafactor_torch.Adafactor(
            self._params.items(), recipe=recipe, foreach=False if plain else None
        )

    def step(self, grads: Arrays) -> None:
        """One update of every parameter."""
        for name, grad in grads.items():
            self._params[name].grad = self._tensor(grad)
        self._optimizer.step()

    def params(self) -> Arrays:
        """The parameters now."""
        return {name: as_numpy(value) for name, value in self._params.items()}

    def learning_rate(self) -> float:
        """The learning rate of the last step, as the optimizer's group says."""
        return float(self._optimizer.param_groups[0]["lr"])

    def _tensor(self, value: Array) -> torch.Tensor:
        return torch.tensor(value, dtype=self._dtype, device=self._device)


def as_numpy(value: torch.Tensor) -> Array:
    """A float64 copy: without one, the array of a float64 tensor on the CPU would move with it."""
    array: Array = value.detach().to("cpu", torch.float64, copy=True).numpy()
    return array


def precision(dtype: str) -> AbstractContextManager[Any]:
    """JAX with 64 bits for float64 only, so that the other dtypes run as in a program that never asked for them."""
    return jax.enable_x64(dtype == "float64")
