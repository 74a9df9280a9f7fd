"""The kernels of `adafactor_spec.oracle`, in JAX: the same names in the same order.

Each is a pure function of arrays in the computing dtype and plain numbers; the reasons for their forms are in the
oracle.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from adafactor_spec.factoring import Plan

Array = jax.Array
Number = jax.typing.ArrayLike


def round_to(x: Array, dtype: str) -> Array:
    """x, rounded to `dtype`, in its own dtype. The barrier keeps XLA from removing the pair of conversions."""
    if x.dtype == dtype:
        return x
    return jax.lax.optimization_barrier(x.astype(dtype)).astype(x.dtype)


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean over `axes`, kept at size 1. Divides, by a power of two, before it adds; of no elements it is 0.

    One axis after the other: XLA on a CPU adds the elements of several short axes, those of a convolution's kernel say,
    in one running sum, and equal squares then leave equal rounding errors. The barrier keeps it from merging the sums.
    """
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    power = 2 ** (count - 1).bit_length()
    x = x / power
    for axis in axes:
        x = jax.lax.optimization_barrier(jnp.sum(x, axis=axis, keepdims=True))
    return x * (power / count)


def rms(x: Array, axes: tuple[int, ...]) -> Array:
    """RMS(x) = sqrt(mean(x^2))."""
    return jnp.sqrt(mean(x * x, axes))


def statistics(g: Array, eps1: Number, plan: Plan) -> tuple[Array, ...]:
    """Means of s = g^2 + eps1 over the columns and over the rows; not factored: s itself."""
    s = g.reshape(plan.matrix_shape) ** 2 + eps1
    return (mean(s, plan.cols), mean(s, plan.rows)) if plan.factored else (s,)


def ema(old: Array, new: Array, beta: Array, complement: Array) -> Array:
    """beta_t * old + (1 - beta_t) * new."""
    return beta * old + complement * new


def lerp(old: Array, new: Array, beta: Array, complement: Array) -> Array:
    """`ema` as torch.lerp forms it, from the nearer end: a rounded average meets ties, which two products can miss."""
    return jnp.where(complement < 0.5, old + complement * (new - old), new - beta * (new - old))


def root_factors(moments: tuple[Array, ...], floor: Number | None, plan: Plan) -> tuple[Array, ...]:
    """Factors whose product is sqrt(V), V = R C / mean(R), the mean at least `floor`; not factored: sqrt(V) alone."""
    if not plan.factored:
        return (jnp.sqrt(moments[0]),)
    v_row, v_col = moments
    norm = mean(v_row, plan.rows)
    norm = norm if floor is None else jnp.maximum(norm, floor)
    return jnp.sqrt(v_row) / jnp.sqrt(norm), jnp.sqrt(v_col)


def second_moment(roots: tuple[Array, ...], floor: Number | None) -> Array:
    """V, at least floor^2, from the factors of its root."""
    root: Array = math.prod(roots[1:], start=roots[0])
    root = root if floor is None else jnp.maximum(root, floor)
    return root * root


def precondition(x: Array, roots: tuple[Array, ...], floor: Number | None) -> Array:
    """x / sqrt(V), where sqrt(V) is at least `floor`; without a floor the factors divide one by one, columns first."""
    if floor is not None:
        return x / jnp.maximum(math.prod(roots[1:], start=roots[0]), floor)
    for root in reversed(roots):
        x = x / root
    return x


def precondition_amsgrad(x: Array, v_max: Array, bias: Number, eps1: Number) -> Array:
    """x / (sqrt(V_max / (1 - beta2_t^t)) + eps1)."""
    return x / (jnp.sqrt(v_max / bias) + eps1)


def clip(u: Array, threshold: Number, axes: tuple[int, ...]) -> Array:
    """u / max(1, RMS(u) / d)."""
    return u / jnp.maximum(rms(u, axes) / threshold, 1.0)


def average(m: Array, x: Array, beta: Array, complement: Array, rounding: str, dtype: str) -> tuple[Array, Array]:
    """First moment: (the average that is used, the one that is stored in `dtype`)."""
    if rounding == "use":
        stored = round_to(lerp(m, round_to(x, dtype), beta, complement), dtype)
        return stored, stored
    if rounding == "decay":
        kept = round_to(round_to(beta, dtype) * m, dtype)
        used = kept + complement * x
    else:
        used = ema(m, x, beta, complement)
    return used, round_to(used, dtype)


def parameter_scale(p_rms: Array, eps2: Number, largest: Number | None) -> Array:
    """clip(RMS(p), eps2, largest)."""
    scale = jnp.maximum(p_rms, eps2)
    return scale if largest is None else jnp.minimum(scale, largest)


def random_bits(seed: Number, step: Number, index: Number, shape: tuple[int, ...]) -> Array:
    """32 random bits, uint32, for each element of a parameter of `shape` in one step."""
    seed, step, index = (jnp.asarray(counter, jnp.uint32) for counter in (seed, step, index))
    key = _mix(_mix(_mix(seed ^ np.uint32(0x9E3779B9)) ^ step) ^ index)
    element = jnp.zeros(shape, jnp.uint32)  # the flat index, modulo 2^32
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        element += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    return _mix(element ^ key)


def round_stochastically(x: Array, bits: Array, dtype: str) -> Array:
    """x, rounded to one of its two neighbours in `dtype`, the nearer the likelier, in its own dtype.

    Random bits are added to those that are cut off, and carry: XLA takes numbers below float32's smallest normal one,
    which bfloat16 has, for 0, but not their bits. Below float16's smallest normal number more bits are cut off than
    there are random ones, so there the fraction is compared as the oracle does it, in units of 2^-24.
    """
    if dtype not in _CUT_BITS:
        return round_to(x, dtype)
    cut, wide = _CUT_BITS[dtype], x.astype(jnp.float32)
    moved = jax.lax.bitcast_convert_type(wide, jnp.uint32) + (bits >> np.uint32(32 - cut))
    rounded = jax.lax.bitcast_convert_type(moved & np.uint32(2**32 - 2**cut), jnp.float32)
    if dtype == "float16":
        q = jnp.abs(wide) * 2.0**24
        below = jnp.floor(q)
        up = (((q - below) * 2.0**24).astype(jnp.uint32) + (bits >> np.uint32(8))) >> np.uint32(24)
        small = jnp.copysign((below + up.astype(jnp.float32)) * 2.0**-24, wide)
        rounded = round_to(jnp.where(q < 2.0**10, small, rounded), dtype)  # what is too large becomes infinite
    return jnp.where(jnp.isnan(wide), wide, rounded).astype(x.dtype)


_CUT_BITS = {"bfloat16": 16, "float16": 13}  # bits of a float32 that the format has not


def _mix(x: Array) -> Array:
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)
