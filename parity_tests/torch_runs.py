"""Small deterministic runs of the torch optimizer, and the oracle's answer to the same gradients."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import Recipe, oracle

Array = Any  # a NumPy array of float64 or float32
Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((4, 3), (5,), (2, 3, 4), ())
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Two orders of the same float64 arithmetic differ by some 1e-16 per operation; 20 steps of some 50 stay far below this.
FLOAT64 = 1e-12
# Another order of the same float32 arithmetic may be as far from float64 as the oracle's own run is, and the two errors
# add; where that run is lucky in an element, another one need not be. Hence the largest gap of an array, four times.
GAPS = 4.0


def values(shape: Shape, seed: int) -> Array:
    """Normal float64 numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def parameters(dtype: torch.dtype = torch.float32, shapes: Iterable[Shape] = SHAPES) -> list[torch.nn.Parameter]:
    """The same parameters at every call."""
    return [torch.nn.Parameter(torch.tensor(values(shape, seed)).to(dtype)) for seed, shape in enumerate(shapes)]


def gradient(t: int, index: int, shape: Shape) -> Array:
    """The gradient of step t; over ten steps its size varies a hundredfold."""
    return values(shape, 1000 * t + index + 1) * 10.0 ** math.cos(t)


def all_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(t: int, tensors: Iterable[Tensor], sign: float = 1.0) -> None:
    for index, p in enumerate(tensors):
        p.grad = torch.empty_like(p).copy_(torch.tensor(sign * gradient(t, index, tuple(p.shape))))


def advance(optimizer: torch.optim.Optimizer, first: int, last: int, sign: float = 1.0) -> None:
    """Steps `first` to `last`, with gradients that depend on the step only."""
    for t in range(first, last + 1):
        set_gradients(t, all_parameters(optimizer), sign)
        optimizer.step()


def oracle_run(
    recipe: Recipe | Callable[[int], Recipe], param: Array, grads: Iterable[Array], *, compute: Any = np.float64
) -> Array:
    """The float64 parameter after a step for each gradient. A function gives the recipe of step t."""
    recipe_at = recipe if callable(recipe) else lambda t: recipe
    state = oracle.init(recipe_at(1), param, compute=compute)
    for t, grad in enumerate(grads, 1):
        param, state = oracle.step(recipe_at(t), param, grad, state, compute=compute)
    return param


def float32_budget(recipe: Recipe, param: Array, grads: Sequence[Array]) -> tuple[Array, float]:
    """(the float64 answer to float32 parameters and gradients, how far a float32 run may be from it)."""
    recipe = dataclasses.replace(recipe, eps1=recipe.eps1_for("float32"))
    exact, single = (oracle_run(recipe, param, grads, compute=compute) for compute in (np.float64, np.float32))
    return exact, GAPS * float(np.max(np.abs(exact - single), initial=0.0))


def assert_near(actual: Tensor, expected: Array, budget: float | None = None) -> None:
    """Within `budget`; the default is that of float64."""
    if budget is None:
        budget = FLOAT64 * float(np.max(np.abs(expected), initial=1.0))
    deviation = np.max(np.abs(actual.detach().double().numpy() - expected), initial=0.0)
    assert deviation <= budget, f"{deviation} is more than {budget}"


def bits(tensor: Tensor) -> tuple[torch.dtype, Shape, bytes]:
    """What two tensors have in common exactly when they are bit-identical."""
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.detach().reshape(-1).contiguous().view(torch.uint8).tolist())


def frozen(value: Any) -> Any:
    """A copy of nested values in which every tensor is its bits: equal exactly when nothing has changed."""
    if isinstance(value, Tensor):
        return bits(value)
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return [frozen(item) for item in value] if isinstance(value, list | tuple) else value


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Everything that a step may change: parameters, state and groups."""
    tensors = all_parameters(optimizer)
    return frozen([tensors, [dict(optimizer.state.get(p, {})) for p in tensors], optimizer.param_groups])


def parameter_bits(optimizer: torch.optim.Optimizer) -> Any:
    return frozen(all_parameters(optimizer))


def leaves(value: Any) -> Iterator[Any]:
    """What stands in nested plain containers, keys included; another kind of container is a leaf."""
    if type(value) is dict:
        for key, item in value.items():
            yield from (key, *leaves(item))
    elif type(value) in (list, tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def through_disk(state_dict: Any, folder: Path) -> Any:
    """The state dict as a checkpoint gives it back, after a look at whether it is tensors and plain values only."""
    assert {type(leaf) for leaf in leaves(state_dict)} <= {Tensor, bool, int, float, str, type(None)}
    torch.save(state_dict, folder / "optimizer.pt")
    return torch.load(folder / "optimizer.pt", weights_only=True)


def twins(optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None) -> list[torch.nn.Parameter]:
    """New parameters with the same values, as a checkpoint of the model would give them."""
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in all_parameters(optimizer)]
