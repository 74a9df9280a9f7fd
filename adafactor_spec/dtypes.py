"""Floating-point formats by name, so that a recipe can speak of them without importing a framework."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import plain_text, refusal

FloatArray = Any  # a NumPy array of float64 or float32

# name: (bits of precision with the hidden one, exponent of the smallest normal number, largest finite number)
_FORMATS = {
    "float64": (53, -1022, float(np.finfo(np.float64).max)),
    "float32": (24, -126, float(np.finfo(np.float32).max)),
    "bfloat16": (8, -126, 255.0 * 2.0**120),
    "float16": (11, -14, 65504.0),
}
NAMES = tuple(_FORMATS)


def name_of(dtype: object, argument: str = "dtype") -> str:
    """The name of a NumPy, JAX or torch floating dtype, or of a name; what is not one of `NAMES` is refused."""
    name = spelled(dtype)
    if name not in _FORMATS:
        raise refusal(argument, "one of " + ", ".join(NAMES), dtype)
    return name


def spelled(dtype: object) -> str:
    """A dtype of NumPy, JAX or torch in words, and a word as it is; nothing for what cannot say what it is."""
    try:
        name = plain_text(dtype) or getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
        return str.__str__(name).removeprefix("torch.")
    except Exception:  # whatever somebody else's class raises
        return ""


def epsilon(dtype: str) -> float:
    """The machine epsilon: the distance from 1 to the next larger number."""
    return float(2.0 ** (1 - _FORMATS[dtype][0]))


def at_least_float32(dtype: str) -> str:
    """float64 for float64, float32 for all others: the dtype in which a parameter's step is computed and kept."""
    return "float64" if dtype == "float64" else "float32"


def state_dtype(setting: str | None, dtype: str) -> str:
    """Storage dtype of the second moment for a parameter of `dtype`, by the recipe's field `state_dtype`.

    float16 cannot hold a squared gradient (6e-8 to 65504), so its state is float32 even under "param".
    """
    return dtype if setting == "param" and dtype != "float16" else at_least_float32(dtype)


def is_narrow(dtype: str) -> bool:
    """Whether a parameter of `dtype` is narrower than the arithmetic of its step: a 16-bit one."""
    return dtype != at_least_float32(dtype)


def spacing(x: FloatArray, dtype: str) -> FloatArray:
    """The distance between the two neighbours of |x| in `dtype`, or from x, if it is one, to the next larger one."""
    precision, smallest, _ = _FORMATS[dtype]
    exponent = np.frexp(np.maximum(np.abs(x), 2.0**smallest))[1]  # below the smallest normal number the spacing stays
    return np.ldexp(1.0, exponent - precision)


def round_to(x: FloatArray, dtype: str) -> FloatArray:
    """x, rounded to the nearest value of `dtype` (ties to even), in an array of x's own dtype."""
    return round_by(np.rint, x, dtype)


def round_by(rule: Callable[[FloatArray], FloatArray], x: FloatArray, dtype: str) -> FloatArray:
    """x, rounded to `dtype`, in an array of x's own dtype; where that has 16 bits, by a rule.

    The frameworks convert float64 to 16 bits through float32, and so does this.

    Args:
        rule: takes x in units of its `spacing`, as float64, to whole numbers.
        x: array of any shape.
        dtype: one of `NAMES`. What is larger than its largest number becomes infinite.
    """
    if not is_narrow(dtype):
        return np.asarray(x, dtype).astype(x.dtype)
    wide = np.asarray(np.asarray(x, np.float32), np.float64)
    unit = spacing(wide, dtype)
    rounded = rule(wide / unit) * unit
    with np.errstate(over="ignore"):
        return np.where(np.abs(rounded) > _FORMATS[dtype][2], np.copysign(np.inf, wide), rounded).astype(x.dtype)
