"""Refuses torch's gradient clipping for as long as gradients are released.

After a backward pass that releases gradients every `grad` is None, and torch's functions would do nothing without a
word. No optimizer takes part in them, so the refusal stands in the functions themselves: every caller passes through
them, however it has imported them.
"""

import functools
import math
from collections.abc import Callable
from types import CellType
from typing import Any

import torch
from torch import Tensor

_NAMES = ("clip_grad_norm_", "clip_grads_with_norm_", "clip_grad_value_")
_guarded: list[tuple[CellType, Callable[..., Any]]] = []  # while they are: where torch keeps each, and the function


def refuse_clipping(is_released: Callable[[Tensor], bool] | None) -> None:
    """Guard torch's functions against parameters for which `is_released`; None restores them."""
    if is_released is None:
        for cell, function in _guarded:
            cell.cell_contents = function
        _guarded.clear()
    elif not _guarded:
        for name in _NAMES:
            cell = _cell_of(getattr(torch.nn.utils, name))
            _guarded.append((cell, cell.cell_contents))
            cell.cell_contents = _guard(name, cell.cell_contents, is_released)


def _cell_of(public: Callable[..., Any]) -> CellType:
    """Where the decorator around a function of torch, which switches gradients off, keeps it."""
    inner = vars(public)["__wrapped__"]
    return next(cell for cell in public.__closure__ or () if cell.cell_contents is inner)


def _guard(name: str, function: Callable[..., Any], is_released: Callable[[Tensor], bool]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        limit = kwargs.get("clip_value" if name == "clip_grad_value_" else "max_norm", args[0] if args else 0.0)
        # Trainer asks for a clipping at infinity to log the norm. Nothing is to be clipped then.
        if not math.isinf(limit) and any(map(is_released, tensors)):
            raise RuntimeError(
                f"{name} cannot clip released gradients: the backward pass has applied and freed each of them before "
                "the last was known, and a norm over all of them needs all at once. Adafactor clips each update by its "
                "RMS instead: use its clipping_threshold, and switch this clipping off (max_grad_norm=0 in "
                "transformers' Trainer). To clip gradients, remove() the release."
            )
        return function(tensors or parameters, *args, **kwargs)  # an empty generator stays one: torch warns of it

    return guarded
