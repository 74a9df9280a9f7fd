"""The definition: one step of any recipe, in the order of the paper (arXiv 1804.04235), in plain NumPy.

The kernels below have the same names, in the same order, in `adafactor_jax._kernels` and `adafactor_torch._kernels`;
code that disagrees with this file is wrong. Run with `compute=np.float32`, its distance from float64 is what float32
costs, and the yardstick for every tolerance of the project.

Ranges: in float32, gradients from 1e-18 to 1e+18 have finite squares but not finite sums, so a mean divides before it
adds, and square roots are taken before a ratio is.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._recipe import Numbers, Recipe
from ._rounding import LOW, ROUNDINGS, check_seed, mix, rounding_key
from .dtypes import is_narrow, round_by, round_to
from .errors import check_choice, check_whole, refusal
from .factoring import Plan
from .factoring import plan as plan_for

Array = Any  # a NumPy array of the computing dtype


@dataclass(frozen=True)
class State:
    """What is kept of one parameter between steps; None where the recipe keeps no such thing.

    Attributes:
        step: finished steps.
        v_row, v_col: R and C, the reduced axes at size 1.
        v: V of a parameter that is not factored.
        v_max: running maximum of V (amsgrad), in `plan.matrix_shape`.
        m: first moment, in the parameter's shape.
        compensation: what the last rounding of a 16-bit parameter cut off, rounded to bfloat16 (rounding="kahan").
    """

    step: int = 0
    v_row: Array = None
    v_col: Array = None
    v: Array = None
    v_max: Array = None
    m: Array = None
    compensation: Array = None


# --- Kernels: pure functions of arrays and plain numbers -----------------------------------------------------------


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean over `axes`, kept at size 1; of no elements it is 0.

    Divides by a power of two before it adds, which is exact. Dividing by the count itself would turn equal elements,
    such as the squares of a first update, into equal rounding errors, which add up.
    """
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    power = 2 ** (count - 1).bit_length()
    return np.sum(x / x.dtype.type(power), axis=axes, keepdims=True) * x.dtype.type(power / count)


def mean_square(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean of x^2 over `axes`, kept at size 1."""
    return mean(x * x, axes)


def rms(x: Array, axes: tuple[int, ...]) -> Array:
    """RMS(x) = sqrt(mean(x^2))."""
    return np.sqrt(mean_square(x, axes))


def statistics(g: Array, eps1: float, plan: Plan) -> tuple[Array, Array] | tuple[Array]:
    """Means of s = g^2 + eps1 over the columns and over the rows; not factored: s itself."""
    g, eps1 = g.reshape(plan.matrix_shape), g.dtype.type(eps1)
    return tuple(mean_square(g, axes) + eps1 for axes in ((plan.cols, plan.rows) if plan.factored else ((),)))


def ema(old: Array, new: Array, beta: float, complement: float) -> Array:
    """beta_t * old + (1 - beta_t) * new."""
    return beta * old + complement * new


def lerp(old: Array, new: Array, beta: float, complement: float) -> Array:
    """`ema` as torch.lerp forms it, from the nearer end: a rounded average meets ties, which two products can miss."""
    return old + complement * (new - old) if complement < 0.5 else new - beta * (new - old)


def root_factors(moments: tuple[Array, ...], floor: float | None, plan: Plan) -> tuple[Array, ...]:
    """Factors whose product is sqrt(V), V = R C / mean(R), the mean at least `floor`; not factored: sqrt(V) alone."""
    if not plan.factored:
        return (np.sqrt(moments[0]),)
    v_row, v_col = moments
    norm = mean(v_row, plan.rows)
    norm = norm if floor is None else np.maximum(norm, norm.dtype.type(floor))
    return np.sqrt(v_row) / np.sqrt(norm), np.sqrt(v_col)


def second_moment(roots: tuple[Array, ...], floor: float | None) -> Array:
    """V, at least floor^2, from the factors of its root."""
    root: Array = math.prod(roots[1:], start=roots[0])
    root = root if floor is None else np.maximum(root, root.dtype.type(floor))
    return root * root


def precondition(x: Array, roots: tuple[Array, ...], floor: float | None) -> Array:
    """x / sqrt(V), where sqrt(V) is at least `floor`.

    Without a floor the factors divide one after the other, columns first: their product can underflow where both of
    them belong to zeros, and |x| / sqrt(C) is at most about the square root of the number of rows.
    """
    if floor is not None:
        return x / np.maximum(math.prod(roots[1:], start=roots[0]), x.dtype.type(floor))
    for root in reversed(roots):
        x = x / root
    return x


def precondition_amsgrad(x: Array, v_max: Array, bias: float, eps1: float) -> Array:
    """x / (sqrt(V_max / (1 - beta2_t^t)) + eps1)."""
    return x / (np.sqrt(v_max / bias) + x.dtype.type(eps1))


def clip(u: Array, u_rms: Array, threshold: float) -> Array:
    """u / max(1, RMS(u) / d)."""
    return u / clip_factor(u_rms, threshold)


def clip_factor(u_rms: Array, threshold: float) -> Array:
    """max(1, RMS(u) / d)."""
    return np.maximum(u_rms / u_rms.dtype.type(threshold), 1.0)


def average(m: Array, x: Array, beta: float, complement: float, rounding: str, dtype: str) -> tuple[Array, Array]:
    """First moment: (the average that is used, the one that is stored in `dtype`)."""
    if rounding == "use":
        stored = round_to(lerp(m, round_to(x, dtype), beta, complement), dtype)
        return stored, stored
    if rounding == "decay":
        kept = round_to(round_to(np.asarray(beta, x.dtype), dtype) * m, dtype)
        used = kept + complement * x
    else:
        used = ema(m, x, beta, complement)
    return used, round_to(used, dtype)


def parameter_scale(p_rms: Array, eps2: float, largest: float | None) -> Array:
    """clip(RMS(p), eps2, largest)."""
    scale = np.maximum(p_rms, p_rms.dtype.type(eps2))
    return scale if largest is None else np.minimum(scale, p_rms.dtype.type(largest))


def random_bits(seed: int, step: int, index: int, shape: tuple[int, ...]) -> Array:
    """32 random bits, uint32, for each element of a parameter of `shape` in one step.

    `mix(e ^ key)`, e the index of the element in C order modulo 2^32, key = rounding_key(seed, step, index).
    """
    elements = np.arange(math.prod(shape), dtype=np.uint64) & LOW
    return mix(elements ^ rounding_key(seed, step, index)).astype(np.uint32).reshape(shape)


def round_stochastically(x: Array, bits: Array, dtype: str) -> Array:
    """x, rounded to one of its two neighbours in a 16-bit `dtype`, each the likelier the nearer it is.

    The one farther from zero is taken where f + r >= 1: f is the distance from the other one in units of that between
    the two, r = floor(bits / 2^8) / 2^24 in [0, 1). Wider dtypes are rounded to nearest.
    """

    def rule(q: Array) -> Array:
        fraction, below = np.modf(q)
        up = np.floor(np.abs(fraction) * 2.0**24) + (bits >> 8) >= 2.0**24  # in whole multiples of 2^-24: exact
        return below + np.copysign(up, q)

    return round_by(rule, x, dtype)


# --- One step ------------------------------------------------------------------------------------------------------


def numbers(recipe: Recipe, t: int, compute: Any) -> Numbers:
    """The numbers of step t, every one a scalar of the computing dtype.

    A schedule may give a Python or NumPy number of any dtype, and one of float64 would turn all that it meets to
    float64.
    """
    now = vars(recipe.at(t if compute == np.float64 else compute(t)))
    return Numbers(**{name: None if value is None else compute(value) for name, value in now.items()})


def init(
    recipe: Recipe,
    param: Array,
    *,
    name: str = "",
    dtype: str = "float64",
    compute: Any = np.float64,
    rounding: str = "nearest",
) -> State:
    """The state before the first step.

    Args:
        recipe: the algorithm.
        param: array of any shape.
        name: of the parameter, for rules that go by name.
        dtype: storage dtype of the parameter, by name.
        compute: NumPy dtype of the arithmetic.
        rounding: the one that `step` will be given.
    """
    rounding = check_choice("rounding", rounding, ROUNDINGS)
    recipe = recipe.for_name(name)
    plan = plan_for(recipe.factoring, np.shape(param), name)
    zeros = {
        "v_row": plan.row_shape if plan.factored else None,
        "v_col": plan.col_shape if plan.factored else None,
        "v": None if plan.factored else plan.matrix_shape,
        "v_max": plan.matrix_shape if recipe.amsgrad else None,
        "m": None if recipe.beta1 is None else plan.shape,
        "compensation": plan.shape if rounding == "kahan" and is_narrow(dtype) else None,
    }
    return State(0, **{key: None if shape is None else np.zeros(shape, compute) for key, shape in zeros.items()})


def step(
    recipe: Recipe,
    param: Array,
    grad: Array,
    state: State,
    *,
    name: str = "",
    dtype: str = "float64",
    compute: Any = np.float64,
    rounding: str = "nearest",
    seed: int = 0,
    index: int = 0,
) -> tuple[Array, State]:
    """One update of one parameter.

    Args:
        recipe: the algorithm.
        param, grad: arrays of one shape whose values fit the parameter's dtype.
        state: from `init` or from the step before; arrays of another dtype are converted to `compute`.
        name: of the parameter, for rules that go by name.
        dtype: storage dtype of the parameter, by name. The result is rounded to it, once.
        compute: NumPy dtype of the arithmetic.
        rounding: how the new value of a 16-bit parameter becomes one of `dtype`; a wider one is rounded to nearest.
            "nearest": ties to even. "stochastic": see `round_stochastically`. "kahan": to nearest, and what that cuts
            off is kept in bfloat16 and added to the parameter before the next step.
        seed, index: of the random bits: see `adafactor_spec.rounding_key`.

    Returns:
        The new parameter and state, arrays of dtype `compute`; nothing is changed in place.
    """
    rounding = check_choice("rounding", rounding, ROUNDINGS)
    seed, index = check_seed(seed), check_whole("index", index, at_least=0)
    compensated = rounding == "kahan" and is_narrow(dtype)
    if compensated != (state.compensation is not None):
        raise refusal("rounding", "the one that `init` was given", rounding)
    recipe = recipe.for_name(name)
    p, g = np.asarray(param, compute), np.asarray(grad, compute)
    done, *kept = vars(state).values()
    state = State(done, *(None if value is None else np.asarray(value, compute) for value in kept))
    p = p + state.compensation if compensated else p
    plan = plan_for(recipe.factoring, p.shape, name)
    v_dtype, m_dtype = recipe.state_dtype_for(dtype), recipe.momentum_dtype_for(dtype)
    eps1 = recipe.eps1_for(dtype)
    added, floor = (eps1, None) if recipe.eps1_mode == "add" else (0.0, eps1)
    now = numbers(recipe, state.step + 1, compute)

    averages = None if recipe.beta1 is None else recipe.momentum_of

    def averaged(x: Array, m: Array) -> tuple[Array, Array]:
        used, kept = average(m, x, now.beta1, now.beta1_complement, recipe.momentum_rounding, m_dtype)
        return used / now.bias1 if recipe.debias else used, kept

    if recipe.decays and recipe.weight_decay_by == "grad":  # L2: a part of the gradient
        g = g + now.weight_decay * p

    # Phase 1, statistics: means of g^2 and p^2.
    new = statistics(g, added, plan)
    p_rms = rms(p, plan.rms_axes)

    # Phase 2, norm: the second moment, the direction, RMS(u).
    old = (state.v_row, state.v_col) if plan.factored else (state.v,)
    means = [ema(o, n, now.beta2, now.beta2_complement) for o, n in zip(old, new, strict=True)]
    moments = tuple(round_to(moment, v_dtype) for moment in means)  # what is stored is what is used
    roots = root_factors(moments, floor, plan)
    x, m, v_max = g, state.m, state.v_max
    if averages == "grad":
        x, m = averaged(x, m)
    x = x.reshape(plan.matrix_shape)
    if recipe.amsgrad:
        v_max = round_to(np.maximum(v_max, second_moment(roots, floor)), v_dtype)
        u = precondition_amsgrad(x, v_max, now.bias2, eps1)
    else:
        u = precondition(x, roots, floor)
    u = u.reshape(plan.shape)

    # Phase 3, apply: clip, scale, average, decay, round once.
    if recipe.clipping_threshold not in (None, math.inf):
        u = clip(u, rms(u, plan.rms_axes), recipe.clipping_threshold)
    if averages == "update":
        u, m = averaged(u, m)
    if recipe.decays and recipe.decay_before_scale:
        p_rms = p_rms * abs(1.0 - now.weight_decay)
    alpha = now.rho
    if recipe.multiply_by_parameter_scale:
        alpha = alpha * parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)
    update = alpha * u
    if averages == "step":
        update, m = averaged(update, m)
    if recipe.decays and recipe.weight_decay_by != "grad":
        update = update + now.weight_decay * (alpha if recipe.weight_decay_by == "step" else 1.0) * p
    x = p - update
    if rounding == "stochastic":
        rounded = round_stochastically(x, random_bits(seed, state.step + 1, index, plan.shape), dtype)
    else:
        rounded = round_to(x, dtype)
    compensation = round_to(x - rounded, "bfloat16") if compensated else None
    second = dict(zip(("v_row", "v_col") if plan.factored else ("v",), moments, strict=True))
    return rounded, State(state.step + 1, **second, v_max=v_max, m=m, compensation=compensation)
