"""Loads, stores and roundings of floating-point formats in the Triton kernels.

bfloat16 is taken apart in integers, since Triton's interpreter rounds it wrongly. Comparisons are written so that a NaN
stays one.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def pointer(entry, dtype: tl.constexpr, aligned: tl.constexpr):
    # The address in this entry of a table.
    if dtype == "bfloat16":
        p = tl.load(entry).to(tl.pointer_type(tl.int16))
    elif dtype == "float16":
        p = tl.load(entry).to(tl.pointer_type(tl.float16))
    elif dtype == "float32":
        p = tl.load(entry).to(tl.pointer_type(tl.float32))
    else:
        p = tl.load(entry).to(tl.pointer_type(tl.float64))
    if aligned:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def load(at, mask, dtype: tl.constexpr, o: tl.constexpr):
    x = tl.load(at, mask=mask, other=0)
    if dtype == "bfloat16":
        x = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(o.wide)


@triton.jit
def store(at, x, mask, dtype: tl.constexpr):
    # x is a value of `dtype` already.
    if dtype == "bfloat16":
        x = (x.to(tl.float32).to(tl.int32, bitcast=True) >> 16).to(tl.int16)
    tl.store(at, x.to(at.dtype.element_ty), mask=mask)


@triton.jit
def round_to(x, dtype: tl.constexpr, o: tl.constexpr):
    # x, rounded to the nearest value of `dtype`, ties to even; to 16 bits by way of float32.
    if dtype == "float64":
        rounded = x
    elif dtype == "bfloat16":
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        rounded = tl.where(x != x, 0x7FC00000, nearest).to(tl.float32, bitcast=True)
    elif dtype == "float16":
        rounded = x.to(tl.float32).to(tl.float16)
    else:
        rounded = x.to(tl.float32)
    return rounded.to(o.wide)


@triton.jit
def mix(x):
    # `adafactor_spec._rounding.mix`, x in uint32.
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def round_stochastically(x, bits, dtype: tl.constexpr, o: tl.constexpr):
    # `_kernels.round_stochastically`, bits in uint32.
    cut: tl.constexpr = 16 if dtype == "bfloat16" else 13
    narrow = x.to(tl.float32)
    added = (bits >> (32 - cut)).to(tl.int32)
    rounded = ((narrow.to(tl.int32, bitcast=True) + added) & -(2**cut)).to(tl.float32, bitcast=True)
    if dtype == "float16":
        q = tl.abs(narrow) * 16777216.0
        below = tl.floor(q)
        up = (((q - below) * 16777216.0).to(tl.int32) + (bits >> 8).to(tl.int32)) >> 24
        small = (below + up.to(tl.float32)) * (1.0 / 16777216.0)
        small = tl.where(narrow.to(tl.int32, bitcast=True) < 0, -small, small)
        rounded = round_to(tl.where(q < 1024.0, small, rounded), dtype, o).to(tl.float32)
    return tl.where(x != x, round_to(x, dtype, o), rounded.to(o.wide))


@triton.jit
def sqrt(x):
    # The rounded root: the fast one takes tiny numbers for zeros.
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def divide(x, y):
    # The rounded quotient: the fast one takes huge divisors for infinite ones.
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)
