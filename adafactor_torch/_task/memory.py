"""Which tensors a kernel may read and write by address, and which only torch's operators can read.

A kernel is given an address and strides. That is right for a tensor with memory in which each element has its own
place. A tensor subclass may stand for something else: for values that it computes, for several tensors, or for none.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from adafactor_spec.errors import refusal

# How long to look for two indices of one element in other ways than by listing all elements: some 0.2 seconds.
_SEARCH: Any = 10**6


def has_address(x: Tensor) -> bool:
    """Whether the elements of a tensor lie at its address, as its strides say.

    Of a subclass that overrides what operators do with it, or a tensor without storage, nobody can know.
    """
    if not _is_ordinary(type(x)):
        return False
    try:
        return x.is_meta or not x.numel() or x.data_ptr() != 0
    except RuntimeError:  # of function transforms
        return False


def has_dense_values(part: Tensor) -> bool:
    """Whether a part of a DTensor may be copied into a plain tensor and back: it is of a class that was made for FSDP2.

    Such a class says what processes gather of it in the place of its elements, of which it has one for each index.
    """
    return hasattr(part, "fsdp_pre_all_gather")


def zeros_like(p: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor beside p; where p is of a class with other values than numbers, as that class makes them."""
    if _is_ordinary(type(p)):
        return torch.zeros(shape, dtype=dtype, device=p.device)
    # Some classes make plain tensors of their zeros, and their own of new ones: they are asked for zeros first.
    return torch.zeros_like(p, dtype=dtype).new_zeros(shape)


def outside_modes() -> contextlib.AbstractContextManager[None]:
    """What the host counts in a tensor is a number, also where a mode makes all tensors fake ones."""
    return torch._C._DisableTorchDispatch() if torch._C._len_torch_dispatch_stack() else contextlib.nullcontext()


@functools.cache
def _is_ordinary(kind: Any, base: Any = Tensor) -> bool:
    function = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    functions = torch._C._disabled_torch_function_impl, base.__torch_function__.__func__
    return kind.__torch_dispatch__ is base.__torch_dispatch__ and function in functions


def called(name: str, p: Tensor) -> str:
    """How messages call a parameter."""
    if name:
        return f"parameter {name!r}"
    return "parameter" if is_lazy(p) or p.is_nested else f"parameter of shape {tuple(p.shape)}"


def check_memory(who: str, p: Tensor, own: Callable[[Tensor], Tensor]) -> bool:
    """Refuse a parameter that cannot be written in place, element by element; whether it `has_address`.

    Args:
        who: what a message calls the parameter.
        p: the parameter.
        own: gives of one that processes share the part that is held here, of any other itself: that is looked at.

    Raises:
        ValueError: it has no memory yet, elements that share theirs, or a form of which only some elements are kept; or
            of a shared one the part is of a class that nobody knows how to step.
    """
    if is_lazy(p):
        remedy = "Run the model once, which gives the parameters of its lazy modules their shapes."
        raise refusal(who, "one with a shape", type(p).__name__, remedy)
    if p.is_nested or p.layout != torch.strided:
        raise refusal(f"layout of the {who}", "torch.strided", "nested" if p.is_nested else str(p.layout))
    with torch.no_grad():
        part = own(p)
    if part.is_inference():
        remedy = "Outside it nobody may write that one. Make the model outside, or give a copy, p.clone(), made there."
        raise refusal(who, "made outside torch.inference_mode", "an inference tensor", remedy)
    if not has_address(part):
        if part is not p and not has_dense_values(part):
            must = "a torch.Tensor, or of a class that FSDP2 can gather"
            raise refusal(f"part of the {who} on this process", must, type(part).__name__)
        return False
    if part.is_neg() or overlaps(part.shape, part.stride()):
        remedy = "Give a copy of its own, p.clone()."
        raise refusal(f"memory of the {who}", "one number for each element", "a view that is not", remedy)
    return True


def overlaps(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements of an array lie in the same place."""
    if 0 in shape:
        return False
    axes = sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1)
    nested, reach, count = True, 0, 1
    for stride, size in axes:
        nested &= stride > reach  # a step along this axis leads beyond all that the axes before it reach
        reach, count = reach + stride * (size - 1), count * size
    if nested or count > reach + 1:
        return not nested
    strides, sizes = zip(*axes, strict=True)
    return _meet(sizes, strides)


@functools.lru_cache
def _meet(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """The same of strides that do not say it at once. NumPy solves the equation, where that is not too much work."""
    # A number for each element, none of which is looked at.
    left = np.lib.stride_tricks.as_strided(np.empty(0, np.int8), sizes, strides)
    try:
        for _ in sizes:  # where two indices differ first, one of them can be taken for 0
            if np.shares_memory(left[:1], left[1:], max_work=_SEARCH):
                return True
            left = left[0]
    except np.exceptions.TooHardError:
        along = [np.arange(size) * stride for size, stride in zip(sizes, strides, strict=True)]
        places = functools.reduce(np.add.outer, along)
        return len(np.unique(places)) < places.size
    return False
