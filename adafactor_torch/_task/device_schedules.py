"""The numbers of a step as tensors, computed from step counts on a device, with nothing read back to the host.

A schedule is a formula in `t` that runs on anything with the array API. torch's tensors lack it, so `t` is wrapped.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe, seed_key
from adafactor_spec.errors import refusal
from adafactor_spec.schedules import as_schedule

from .. import _kernels as kernels


class OnDevice:
    """A tensor with as much of the array API as a schedule needs."""

    __slots__ = ("value",)
    shape, dtype = (), np.dtype(np.float64)  # one number for each parameter, but to a schedule it is one

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __array_namespace__(self) -> Any:
        return _Namespace

    def __bool__(self) -> bool:
        raise TypeError("A function of t asks for the value of a t that is on a device")

    __float__ = __int__ = __index__ = __array__ = __bool__

    def __getitem__(self, key: tuple[()]) -> "OnDevice":
        return self

    def __neg__(self) -> "OnDevice":
        return OnDevice(-self.value)

    def __abs__(self) -> "OnDevice":
        return OnDevice(abs(self.value))


def _unwrapped(x: Any) -> Any:
    return x.value if isinstance(x, OnDevice) else x


def _operator(name: str) -> Callable[[OnDevice, Any], OnDevice]:
    def operator(self: OnDevice, other: Any) -> OnDevice:
        return OnDevice(getattr(self.value, name)(_unwrapped(other)))

    return operator


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "floordiv", "mod"):
    setattr(OnDevice, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge"):
    setattr(OnDevice, f"__{_name}__", _operator(f"__{_name}__"))


def _unary(name: str) -> Any:
    def function(x: Any) -> Any:
        return OnDevice(getattr(torch, name)(x.value)) if isinstance(x, OnDevice) else getattr(math, name)(x)

    return staticmethod(function)


class _Namespace:
    """The functions that `adafactor_spec.schedules` asks an array for. A number of the host may stand in any place."""

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Any:
        if not isinstance(condition, OnDevice):
            return x if condition else y
        return OnDevice(torch.where(condition.value, _like(x, condition), _like(y, condition)))

    @staticmethod
    def maximum(x: Any, y: Any) -> Any:
        pair = _pair(x, y)
        return max(x, y) if pair is None else OnDevice(torch.maximum(*pair))

    @staticmethod
    def minimum(x: Any, y: Any) -> Any:
        pair = _pair(x, y)
        return min(x, y) if pair is None else OnDevice(torch.minimum(*pair))

    @staticmethod
    def clip(x: Any, low: float, high: float) -> Any:
        return OnDevice(x.value.clamp(low, high)) if isinstance(x, OnDevice) else min(max(x, low), high)

    cos, exp, expm1, log1p, sqrt = (_unary(name) for name in ("cos", "exp", "expm1", "log1p", "sqrt"))


def _like(x: Any, other: OnDevice) -> Tensor:
    if isinstance(x, OnDevice):
        return x.value
    return torch.full((), float(x), dtype=_widest(other.value.device), device=other.value.device)


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor] | None:
    """Both as tensors; None where both are numbers of the host."""
    first = next((one for one in (x, y) if isinstance(one, OnDevice)), None)
    return None if first is None else (_like(x, first), _like(y, first))


def check_schedules(recipe: Recipe, device: torch.device) -> None:
    """Refuse functions of t that cannot be computed where steps are counted on that device.

    Raises:
        ValueError: one is not written with operators: it branches, say, or asks for a float.
    """
    t = OnDevice(wide(torch.ones((), dtype=torch.float32, device=device)))
    for field in ("lr", "beta2", "beta1", "weight_decay"):
        value = getattr(recipe, field)
        if value is None:
            continue
        try:
            as_schedule(value)(t)
        except (TypeError, AttributeError) as error:
            must = (
                "written with operators, or one of adafactor_spec.schedules, with capturable=True or nonfinite='skip'"
            )
            raise refusal(field, must, value, f"{error}.") from error


def wide(x: Tensor) -> Tensor:
    """x in the widest dtype that its device has."""
    return x.to(_widest(x.device))


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def numbers_on_device(recipe: Recipe, steps: list[Tensor]) -> list[Numbers]:
    """The numbers of each step count, as 0-dimensional tensors, in as many operations for many as for one.

    Args:
        recipe: of the parameters; its `lr` may be an `OnDevice`.
        steps: 0-dimensional int64 tensors on one device, the steps that are taken now, 1 at the first.
    """
    t = OnDevice(wide(torch.stack(steps)))
    columns = {name: _column(value, t.value) for name, value in vars(recipe.at(t)).items()}
    return [
        Numbers(**{name: None if column is None else column[i] for name, column in columns.items()})
        for i in range(len(steps))
    ]


def _column(value: Any, like: Tensor) -> Tensor | None:
    if value is None:
        return None
    value = _unwrapped(value)
    if not isinstance(value, Tensor):
        return torch.full_like(like, float(value))
    return value.to(like).expand_as(like)


def keys_on_device(seed: int, steps: list[Tensor], positions: tuple[int, ...]) -> Tensor:
    """`adafactor_spec.rounding_key` of every parameter, int32, from step counts that live on its device."""
    of_step = kernels.random_bits(seed_key(seed), torch.stack(steps).to(torch.int32))
    return kernels.random_bits(of_step, _positions(positions, steps[0].device))


@functools.lru_cache(maxsize=64)
def _positions(positions: tuple[int, ...], device: torch.device) -> Tensor:
    # Kept, because a CUDA graph cannot hold a copy from memory that is the host's own.
    return torch.tensor(positions, dtype=torch.int32, device=device)
