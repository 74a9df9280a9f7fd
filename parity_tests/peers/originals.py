"""The originals behind one interface: built with a case's arguments, stepped with its gradients."""

import importlib
import importlib.util
import os
import sys
import types
from importlib.metadata import version
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity_tests.peers.cases import Array, Arrays, Case

DISTRIBUTIONS = {"timm_big_vision": "timm"}  # where it is not the name of the recipe


class Original(Protocol):
    """Steps a dict of parameters."""

    def step(self, grads: Arrays, lr: float | None) -> None:
        """One update; `lr` is written before it unless it is None."""

    def params(self) -> Arrays:
        """The parameters now, in float64."""


def version_of(peer: str) -> str:
    """`transformers 5.23.0`."""
    name = DISTRIBUTIONS.get(peer, peer)
    return f"{name} {version(name)}"


def original(case: Case) -> Original:
    """A new optimizer of the case's original."""
    if case.peer == "optax":
        return _Optax(case)
    return _Keras(case) if case.peer == "keras" else _Torch(case)


class _Torch:
    """A torch.optim.Optimizer."""

    def __init__(self, case: Case) -> None:
        dtype = getattr(torch, case.dtype)
        self._params = {name: torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for name, p in case.params.items()}
        kwargs = dict(case.kwargs)
        if "momentum_dtype" in kwargs:
            kwargs["momentum_dtype"] = getattr(torch, kwargs["momentum_dtype"])
        if case.maximize:
            kwargs["maximize"] = True
        self._optimizer = _torch_class(case.peer)(list(self._params.values()), **kwargs)

    def step(self, grads: Arrays, lr: float | None) -> None:
        for name, p in self._params.items():
            p.grad = torch.tensor(grads[name], dtype=p.dtype)
        if lr is not None:
            self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()

    def params(self) -> Arrays:
        return {name: _float64(p.detach().numpy()) for name, p in self._params.items()}


class _Optax:
    def __init__(self, case: Case) -> None:
        self._tx = optax.adafactor(**case.kwargs, weight_decay_mask=case.mask)
        self._params: Any = {name: jnp.asarray(p, case.dtype) for name, p in case.params.items()}
        self._state = self._tx.init(self._params)

    def step(self, grads: Arrays, lr: float | None) -> None:
        values = {name: jnp.asarray(g, self._params[name].dtype) for name, g in grads.items()}
        updates, self._state = self._tx.update(values, self._state, self._params)
        self._params = optax.apply_updates(self._params, updates)

    def params(self) -> Arrays:
        return {name: _float64(p) for name, p in self._params.items()}


class _Keras:
    def __init__(self, case: Case) -> None:
        os.environ["KERAS_BACKEND"] = "torch"  # without a compilation for each shape
        keras = importlib.import_module("keras")
        kwargs = dict(case.kwargs)
        if callable(schedule := kwargs.get("learning_rate")):
            base = keras.optimizers.schedules.LearningRateSchedule
            kwargs["learning_rate"] = type("Schedule", (base,), {"__call__": lambda _, step: schedule(step)})()
        self._optimizer = keras.optimizers.Adafactor(**kwargs)
        self._params = {name: keras.Variable(p, dtype=case.dtype, name=name) for name, p in case.params.items()}

    def step(self, grads: Arrays, lr: float | None) -> None:
        if lr is not None:
            self._optimizer.learning_rate = lr
        values = [torch.tensor(grads[name], dtype=torch.float32) for name in self._params]
        with torch.no_grad():
            self._optimizer.apply(values, list(self._params.values()))

    def params(self) -> Arrays:
        return {name: _float64(p.value.detach().numpy()) for name, p in self._params.items()}


def _torch_class(peer: str) -> Any:
    if peer == "torch":
        return torch.optim.Adafactor
    if peer == "transformers":
        return importlib.import_module("transformers.optimization").Adafactor
    if peer == "pytorch_optimizer":
        return importlib.import_module("pytorch_optimizer").AdaFactor
    # timm's __init__ files lead to torchvision, whose binary loads with the one build of torch it was made for. These
    # two modules need neither: they are imported as parts of empty packages of the same names.
    for package in ("timm", "timm.optim"):
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise ModuleNotFoundError("timm is not installed. `make peers` installs it.")
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = list(spec.submodule_search_locations)
    if peer == "timm":
        return importlib.import_module("timm.optim.adafactor").Adafactor
    return importlib.import_module("timm.optim.adafactor_bv").AdafactorBigVision


def _float64(x: Any) -> Array:
    return np.asarray(x).astype(np.float64)  # a copy: an array of a float64 tensor would move with it
