"""The kernels of `adafactor_spec.oracle`, in torch: the same names in the same order.

Each is a pure function of tensors in the computing dtype and plain numbers; the reasons for their forms are in the
oracle.
"""

import math

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import dtypes
from adafactor_spec.factoring import Plan

Number = float | Tensor  # of the step: a Python float, or a tensor without axes


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, rounded to `dtype`, in its own dtype."""
    return x.to(dtype).to(x.dtype)


def mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean over `axes`, kept at size 1. Divides, by a power of two, before it adds; of no elements it is 0."""
    if not axes:  # torch takes an empty tuple for all axes
        return x
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    power = 2 ** (count - 1).bit_length()
    return torch.sum(x / power, dim=axes, keepdim=True) * (power / count)


def mean_square(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean of x^2 over `axes`, kept at size 1."""
    return mean(x * x, axes)


def rms(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """RMS(x) = sqrt(mean(x^2))."""
    return torch.sqrt(mean_square(x, axes))


def statistics(g: Tensor, eps1: float, plan: Plan) -> tuple[Tensor, ...]:
    """Means of s = g^2 + eps1 over the columns and over the rows; not factored: s itself."""
    g = g.reshape(plan.matrix_shape)
    return tuple(mean_square(g, axes) + eps1 for axes in ((plan.cols, plan.rows) if plan.factored else ((),)))


def ema(old: Tensor, new: Tensor, beta: Number, complement: Number) -> Tensor:
    """beta_t * old + (1 - beta_t) * new."""
    return beta * old + complement * new


def lerp(old: Tensor, new: Tensor, beta: Number, complement: Number) -> Tensor:
    """`ema` as torch.lerp forms it, from the nearer end: a rounded average meets ties, which two products can miss."""
    near, far = old + complement * (new - old), new - beta * (new - old)
    return (
        torch.where(complement < 0.5, near, far)
        if isinstance(complement, Tensor)
        else near
        if complement < 0.5
        else far
    )


def root_factors(
    moments: tuple[Tensor, ...], floor: float | None, plan: Plan, row_mean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Factors whose product is sqrt(V), V = R C / mean(R), the mean at least `floor`; not factored: sqrt(V) alone.

    `row_mean` is mean(R), where R is a part of the whole one only.
    """
    if not plan.factored:
        return (torch.sqrt(moments[0]),)
    v_row, v_col = moments
    norm = mean(v_row, plan.rows) if row_mean is None else row_mean
    norm = norm if floor is None else norm.clamp(min=floor)
    return torch.sqrt(v_row) / torch.sqrt(norm), torch.sqrt(v_col)


def second_moment(roots: tuple[Tensor, ...], floor: float | None) -> Tensor:
    """V, at least floor^2, from the factors of its root."""
    root = math.prod(roots[1:], start=roots[0])
    root = root if floor is None else root.clamp(min=floor)
    return root * root


def precondition(x: Tensor, roots: tuple[Tensor, ...], floor: float | None) -> Tensor:
    """x / sqrt(V), where sqrt(V) is at least `floor`; without a floor the factors divide one by one, columns first."""
    if floor is not None:
        return x / math.prod(roots[1:], start=roots[0]).clamp(min=floor)
    for root in reversed(roots):
        x = x / root
    return x


def precondition_amsgrad(x: Tensor, v_max: Tensor, bias: Number, eps1: float) -> Tensor:
    """x / (sqrt(V_max / (1 - beta2_t^t)) + eps1)."""
    return x / (torch.sqrt(v_max / bias) + eps1)


def clip(u: Tensor, u_rms: Tensor, threshold: float) -> Tensor:
    """u / max(1, RMS(u) / d)."""
    return u / clip_factor(u_rms, threshold)


def clip_factor(u_rms: Tensor, threshold: float) -> Tensor:
    """max(1, RMS(u) / d)."""
    return (u_rms / threshold).clamp(min=1.0)


def average(
    m: Tensor, x: Tensor, beta: Number, complement: Number, rounding: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """First moment: (the average that is used, the one that is stored in `dtype`)."""
    if rounding == "use":
        stored = round_to(lerp(m, round_to(x, dtype), beta, complement), dtype)
        return stored, stored
    if rounding == "decay":
        used = round_to(_narrow(beta, dtype) * m, dtype) + complement * x
    else:
        used = ema(m, x, beta, complement)
    return used, round_to(used, dtype)


def parameter_scale(p_rms: Tensor, eps2: float, largest: float | None) -> Tensor:
    """clip(RMS(p), eps2, largest)."""
    return p_rms.clamp(min=eps2, max=largest)


def random_bits(key: int | Tensor, elements: Tensor) -> Tensor:
    """32 random bits for each of `elements`: int32, as torch has no arithmetic in uint32.

    Args:
        key: from `adafactor_spec.rounding_key`, or a 0-dimensional int32 tensor with the same bits.
        elements: int32, the flat indices, in C order and modulo 2^32, of the elements that are asked for.
    """
    x = elements ^ (_signed(key) if isinstance(key, int) else key)
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D  # torch shifts the sign in from the left: the masks take it out
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


def round_stochastically(x: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """x, rounded to one of its two neighbours in `dtype`, the nearer the likelier, in its own dtype.

    Random bits are added to those that are cut off, and carry. Below float16's smallest normal number more bits are cut
    off than there are random ones, so there the fraction is compared as the oracle does it, in units of 2^-24.
    """
    if dtype not in _CUT_BITS:
        return round_to(x, dtype)
    cut, wide = _CUT_BITS[dtype], x.float()
    added = (bits >> (32 - cut)) & (2**cut - 1)
    rounded = ((wide.view(torch.int32) + added) & -(2**cut)).view(torch.float32)
    if dtype == torch.float16:
        q = wide.abs() * 2.0**24
        below = q.floor()
        up = (((q - below) * 2.0**24).int() + ((bits >> 8) & 0xFFFFFF)) >> 24
        small = torch.copysign((below + up) * 2.0**-24, wide)
        rounded = round_to(torch.where(q < 2.0**10, small, rounded), dtype)  # what is too large becomes infinite
    return torch.where(wide.isnan(), wide, rounded).to(x.dtype)


def _narrow(beta: Number, dtype: torch.dtype) -> Number:
    if isinstance(beta, Tensor):
        return round_to(beta, dtype)
    return float(dtypes.round_to(np.asarray(beta, np.float64), dtypes.name_of(dtype)))


_CUT_BITS = {torch.bfloat16: 16, torch.float16: 13}  # bits of a float32 that the format has not


def _signed(bits: int) -> int:
    """The int32 with these 32 bits."""
    return bits - 2**32 if bits >= 2**31 else bits
