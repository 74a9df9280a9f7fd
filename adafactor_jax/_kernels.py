"""The kernels of `adafactor_spec.oracle`, in JAX: the same names in the same order.

Each is a pure function of arrays in the computing dtype and plain numbers; the reasons for their forms are in the
oracle.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from adafactor_spec.factoring import Plan

from ._recomputed import Recomputed, recomputed
from ._xla import larger

Array = jax.Array
Number = jax.typing.ArrayLike

# Numbers whose squares are added before they are divided: 256 * 1e36 is a float32, and the sums of 64 take 1.6 % of x.
SMALLEST_GROUP, LARGEST_GROUP = 64, 256
# So many of their sums are averaged as one product, in which they are added one after the other.
MOST_GROUPS = 128


def round_to(x: Array, dtype: str) -> Array:
    """x, rounded to `dtype`, in its own dtype. The barrier keeps XLA from removing the pair of conversions."""
    if x.dtype == dtype:
        return x
    return jax.lax.optimization_barrier(x.astype(dtype)).astype(x.dtype)


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean over `axes`, kept at size 1. Divides, by a power of two, before it adds; of no elements it is 0."""
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    power = 2 ** (count - 1).bit_length()
    return _total(x / power, axes) * (power / count)


def mean_square(x: Array | Recomputed, axes: tuple[int, ...]) -> Array:
    """Mean of x^2 over `axes`, kept at size 1.

    Squares are divided before they are added. XLA on a CPU squares and adds in one operation, and takes a fifth longer
    for three: there the squares of what is in memory are first added in groups along the axis that lies closest, small
    enough for the squares of 1e18, and the groups' sums are divided before they are added. Of x / d, where d has one
    number for all of that axis, it is the norms of x along it that are divided, and x is lifted as far as it can be, so
    that squares of its smaller rows do not vanish.
    """
    x = recomputed(x)
    if not axes:
        return x.value * x.value
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    axis, root = max(axes), 2 ** -((count - 1).bit_length() // -2)
    size = x.shape[axis]
    if x.floored is not None:
        divided = x.floored.read(1 / root)
        return _total(divided * divided, axes) * (root**2 / count) * mean(x.floored.lost, axes)
    if x.quotient is not None and x.quotient.d.shape[axis] == 1:
        dividend, divisor, lift = x.quotient.x.read(x.quotient.lift), x.quotient.d.value, x.quotient.lift
        norms = _root(_total(dividend * dividend, (axis,))) / lift / divisor / root
        return _total(norms * norms, tuple(other for other in axes if other != axis)) * (root**2 / count)
    group, whole = _group(size), x.value

    def at_once(values: Array, _: Array) -> Array:
        return mean(values * values, axes)

    if x.source is None or group is None or _is_split(x.source[0], axis):
        return at_once(whole, whole)
    groups = size // max(group, 1)
    # A group that is the whole axis needs no reshape, for which XLA copies 16-bit arrays of three axes and more.
    grouped = x if groups == 1 else x.reshape((*x.shape[:axis], groups, group, *x.shape[axis + 1 :]))

    def in_groups(_: Array, values: Array) -> Array:
        sums = jnp.sum(values * values, axis=axis + (groups != 1), keepdims=groups == 1)
        power = 2 ** (count // max(group, 1) - 1).bit_length()
        if axes == (len(x.shape) - 1,) and 1 < groups <= MOST_GROUPS:
            # A product with a vector: XLA draws what follows a sum into the loop of the sum, and that is slower.
            weights = jnp.full((groups, 1), 1 / power, sums.dtype)
            return jax.lax.dot_general(sums, weights, (((axis,), (0,)), ((), ())), precision="highest") * (
                power / count
            )
        return _total(jax.lax.optimization_barrier(sums) / power, axes) * (power / count)

    return jax.lax.platform_dependent(whole, grouped.value, cpu=in_groups, default=at_once)


def rms(x: Array | Recomputed, axes: tuple[int, ...]) -> Array:
    """RMS(x) = sqrt(mean(x^2))."""
    return _root(mean_square(x, axes))


def statistics(g: Array | Recomputed, eps1: Number, plan: Plan) -> tuple[Array, ...]:
    """Means of s = g^2 + eps1 over the columns and over the rows; not factored: s itself."""
    g = g if plan.view is None else g.reshape(plan.view)
    return tuple(mean_square(g, axes) + eps1 for axes in ((plan.cols, plan.rows) if plan.factored else ((),)))


def ema(old: Array, new: Array, beta: Array, complement: Array) -> Array:
    """beta_t * old + (1 - beta_t) * new."""
    return beta * old + complement * new


def lerp(old: Array, new: Array, beta: Array, complement: Array) -> Array:
    """`ema` as torch.lerp forms it, from the nearer end: a rounded average meets ties, which two products can miss."""
    return jnp.where(complement < 0.5, old + complement * (new - old), new - beta * (new - old))


def root_factors(
    moments: tuple[Array, ...], floor: Number | None, plan: Plan, norm: Array | None = None
) -> tuple[Array, ...]:
    """Factors whose product is sqrt(V), V = R C / mean(R), the mean at least `floor`; not factored: sqrt(V) alone.

    `norm` is mean(R) where these rows are not all of them.
    """
    if not plan.factored:
        return (jnp.sqrt(moments[0]),)
    v_row, v_col = moments
    norm = mean(v_row, plan.rows) if norm is None else norm
    norm = norm if floor is None else larger(norm, floor)
    return jnp.sqrt(v_row) / jnp.sqrt(norm), jnp.sqrt(v_col)


def second_moment(roots: tuple[Array, ...], floor: Number | None) -> Array:
    """V, at least floor^2, from the factors of its root."""
    root: Array = math.prod(roots[1:], start=roots[0])
    root = root if floor is None else larger(root, floor)
    return root * root


def precondition(x: Array, roots: tuple[Array, ...], floor: Number | None) -> Array:
    """x / sqrt(V), where sqrt(V) is at least `floor`; without a floor the factors divide one by one, columns first."""
    if floor is not None:
        return x / larger(math.prod(roots[1:], start=roots[0]), floor)
    for root in reversed(roots):
        x = x / root
    return x


def precondition_amsgrad(x: Array, v_max: Array, bias: Number, eps1: Number) -> Array:
    """x / (sqrt(V_max / (1 - beta2_t^t)) + eps1)."""
    return x / (jnp.sqrt(v_max / bias) + eps1)


def clip(u: Array, u_rms: Array, threshold: Number) -> Array:
    """u / max(1, RMS(u) / d)."""
    return u / clip_factor(u_rms, threshold)


def clip_factor(u_rms: Array, threshold: Number) -> Array:
    """max(1, RMS(u) / d)."""
    return larger(u_rms / threshold, 1.0)


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
    scale = larger(p_rms, eps2)
    return scale if largest is None else jnp.where(scale > largest, largest, scale)


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


def _total(x: Array, axes: tuple[int, ...]) -> Array:
    """Sum over `axes`, one after the other, those that lie closest in memory first.

    XLA on a CPU adds the elements of several short axes, those of a convolution's kernel say, in one running sum, and
    equal squares then leave equal rounding errors. The barrier keeps it from merging the sums.
    """
    for axis in sorted(axes, reverse=True):
        x = jax.lax.optimization_barrier(jnp.sum(x, axis=axis, keepdims=True))
    return x


def _root(x: Array) -> Array:
    """sqrt(x), with the derivative 0 at 0, where it is infinite."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def _group(size: int) -> int | None:
    """How many elements of an axis are added before they are divided: a short axis whole, else a divisor, if there is
    one: the largest of those whose groups up to 8 devices, or as many as can, share evenly, or share themselves, which
    takes a sum over devices more."""
    if size <= LARGEST_GROUP:
        return size

    def fits(k: int) -> tuple[int, int]:
        groups = size // k
        return 8 if 8 % groups == 0 else math.gcd(groups, 8), k

    return max((k for k in range(SMALLEST_GROUP, LARGEST_GROUP + 1) if size % k == 0), key=fits, default=None)


def _is_split(x: Array, axis: int) -> bool:
    """Whether an axis lies on several devices, as far as the array's type says so: on an Explicit mesh."""
    spec = jax.typeof(x).sharding.spec
    return axis < len(spec) and spec[axis] is not None


def _mix(x: Array) -> Array:
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)
