"""The recipe behind the same interface: in the definition, and in the framework of the original."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import adafactor_jax
import adafactor_torch
from adafactor_spec import Recipe, oracle, recipes, replace
from parity_tests.peers.cases import Arrays, Case


def recipe_of(case: Case) -> Recipe:
    """The recipe, called with the arguments that the original is called with."""
    recipe: Recipe = getattr(recipes, case.peer)(**case.kwargs)
    return recipe


class Oracle:
    """The definition, computing in `compute`, the parameters rounded to the case's dtype after every step."""

    def __init__(self, case: Case, recipe: Recipe, compute: Any = np.float64) -> None:
        self._case, self._how = case, {"dtype": case.dtype, "compute": compute}
        self._recipes = dict.fromkeys(case.params, recipe)
        for name, decays in (case.mask or {}).items():
            self._recipes[name] = recipe if decays else replace(recipe, weight_decay=0.0)
        self._params = {name: p.astype(compute) for name, p in case.params.items()}
        self._states = {name: oracle.init(recipe, p, **self._how) for name, p in self._params.items()}

    def step(self, grads: Arrays, lr: float | None) -> None:
        for name, grad in grads.items():
            recipe = self._recipes[name] if lr is None else replace(self._recipes[name], lr=lr)
            signed = -grad if self._case.maximize else grad
            self._params[name], self._states[name] = oracle.step(
                recipe, self._params[name], signed.astype(self._how["compute"]), self._states[name], **self._how
            )

    def params(self) -> Arrays:
        return {name: p.astype(np.float64) for name, p in self._params.items()}


class Torch:
    """adafactor_torch.Adafactor."""

    def __init__(self, case: Case, recipe: Recipe) -> None:
        dtype = getattr(torch, case.dtype)
        self._params = {name: torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for name, p in case.params.items()}
        self._optimizer = adafactor_torch.Adafactor(self._params.items(), recipe=recipe, maximize=case.maximize)

    def step(self, grads: Arrays, lr: float | None) -> None:
        for name, p in self._params.items():
            p.grad = torch.tensor(grads[name], dtype=p.dtype)
        if lr is not None:
            self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()

    def params(self) -> Arrays:
        return {name: p.detach().numpy().astype(np.float64) for name, p in self._params.items()}


class Jax:
    """adafactor_jax.adafactor, one operation at a time: compiling a case takes far longer than running it."""

    def __init__(self, case: Case, recipe: Recipe) -> None:
        self._tx = adafactor_jax.adafactor(recipe=recipe, weight_decay_mask=case.mask)
        self._params: Any = {name: jnp.asarray(p, case.dtype) for name, p in case.params.items()}
        self._state = self._tx.init(self._params)

    def step(self, grads: Arrays, lr: float | None) -> None:
        values = {name: jnp.asarray(g, self._params[name].dtype) for name, g in grads.items()}
        with jax.disable_jit():
            updates, self._state = self._tx.update(values, self._state, self._params)
        self._params = optax.apply_updates(self._params, updates)

    def params(self) -> Arrays:
        return {name: np.asarray(p).astype(np.float64) for name, p in self._params.items()}
