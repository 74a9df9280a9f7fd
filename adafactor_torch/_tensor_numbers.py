"""The numbers of a step as tensors, from step counts that live on a device: nothing is read back to the host.

A schedule is a formula in `t`, and runs on whatever has the array API; torch's tensors have not, so `t` is wrapped.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe, seed_key

from . import _kernels as kernels


class OnDevice:
    """A tensor with as much of the array API as a schedule needs."""

    __slots__ = ("value",)
    shape = ()  # one number for each parameter, but to a schedule it is one

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __array_namespace__(self) -> Any:
        return _Namespace

    def __bool__(self) -> bool:
        must = (
            "A function of t is asked for a branch, and with capturable=True or nonfinite='skip' t is on the device. "
        )
        raise TypeError(must + "Write it with operators, or as one of adafactor_spec.schedules.")

    __float__ = __int__ = __index__ = __bool__

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


class _Namespace:
    """The functions that `adafactor_spec.schedules` asks an array for."""

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> OnDevice:
        return OnDevice(torch.where(condition.value, _like(x, condition), _like(y, condition)))

    @staticmethod
    def maximum(x: Any, y: Any) -> OnDevice:
        return OnDevice(torch.maximum(*_pair(x, y)))

    @staticmethod
    def minimum(x: Any, y: Any) -> OnDevice:
        return OnDevice(torch.minimum(*_pair(x, y)))

    @staticmethod
    def clip(x: OnDevice, low: float, high: float) -> OnDevice:
        return OnDevice(x.value.clamp(low, high))

    cos = staticmethod(lambda x: OnDevice(torch.cos(x.value)))
    exp = staticmethod(lambda x: OnDevice(torch.exp(x.value)))
    expm1 = staticmethod(lambda x: OnDevice(torch.expm1(x.value)))
    log1p = staticmethod(lambda x: OnDevice(torch.log1p(_unwrapped(x))))
    sqrt = staticmethod(lambda x: OnDevice(torch.sqrt(x.value)))


def _like(x: Any, other: OnDevice) -> Tensor:
    if isinstance(x, OnDevice):
        return x.value
    dtype = torch.float32 if other.value.device.type == "mps" else torch.float64
    return torch.full((), float(x), dtype=dtype, device=other.value.device)


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    first = x if isinstance(x, OnDevice) else y
    return _like(x, first), _like(y, first)


def numbers_on_device(recipe: Recipe, steps: list[Tensor]) -> list[Numbers]:
    """The numbers of each step count, as 0-dimensional tensors, in as many operations for many as for one.

    Args:
        recipe: of the parameters; its `lr` may be an `OnDevice`.
        steps: 0-dimensional float32 tensors on one device, the steps that are taken now, 1 at the first.
    """
    stacked = torch.stack(steps)
    t = OnDevice(stacked if stacked.device.type == "mps" else stacked.double())
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


def keys_on_device(seed: int, steps: list[Tensor], positions: list[int]) -> Tensor:
    """`adafactor_spec.rounding_key` of every parameter, int32, from step counts that live on its device."""
    device = steps[0].device
    of_step = kernels.random_bits(seed_key(seed), torch.stack(steps).to(torch.int32))
    return kernels.random_bits(of_step, torch.tensor(positions, dtype=torch.int32, device=device))
