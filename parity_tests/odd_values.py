"""Values that may stand where an optimizer wants a number, a flag or a word: what each is, and what is none.

The frameworks' own are added by the tests that know a framework.
"""

import dataclasses
import enum
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from adafactor_spec import errors

REFUSAL = re.compile(r"^.+ must be .+, got .+\.( .*[.?])?$", re.S)
LONGEST = 3 * errors.LONGEST_PART + errors.LONGEST_VALUE + len(" must be , got . ")


class Quarter(float):
    """A number of a class of one's own."""


class Three(int):
    """A whole number of a class of one's own."""


class Count(enum.IntEnum):
    THREE = 3


class Word(str):
    """A string of a class of one's own."""


class Unspeakable:
    """What cannot be shown, compared, asked whether it is true, or hashed."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth value")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class Elementwise:
    """What compares as arrays do: with an array, which is neither true nor false."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        return np.ones(2)

    def __ne__(self, other: object) -> Any:
        return np.ones(2)


# Numbers, and what each is.
FRACTIONS: dict[str, tuple[Any, float]] = {
    "float64": (np.float64(0.25), 0.25),
    "float32": (np.float32(0.25), 0.25),
    "float16": (np.float16(0.25), 0.25),
    "longdouble": (np.longdouble(0.25), 0.25),
    "subclass": (Quarter(0.25), 0.25),
    "array": (np.array(0.25), 0.25),
    "array of float32": (np.array(0.25, np.float32), 0.25),
    "array of another byte order": (np.array(0.25, ">f8"), 0.25),
}
WHOLE: dict[str, tuple[Any, int]] = {
    "int64": (np.int64(3), 3),
    "uint8": (np.uint8(3), 3),
    "subclass": (Three(3), 3),
    "enumeration": (Count.THREE, 3),
    "array": (np.array(3), 3),
    "array of uint16": (np.array(3, np.uint16), 3),
    "float": (3.0, 3),
    "float32": (np.float32(3.0), 3),
}
# What is no number.
NO_NUMBER: dict[str, Any] = {
    "array with an axis": np.array([0.25]),
    "array of flags": np.array(True),
    "array of objects": np.array(Decimal("0.25"), object),
    "array of words": np.array("0.25"),
    "masked array": np.ma.masked_array(0.25, mask=True),
    "nothing in an array": np.array(None),
    "list": [0.25],
    "long list": [0.25] * 10_000,
    "dict": {0.25: 0.25},
    "Decimal": Decimal("0.25"),
    "Fraction": Fraction(1, 4),
    "complex": 0.25 + 0j,
    "complex64": np.complex64(0.25),
    "True": True,
    "NumPy's True": np.True_,
    "string": "0.25",
    "NumPy's string": np.str_("0.25"),
    "long string": "0.25" * 10_000,
    "bytes": b"0.25",
    "type": float,
    "NumPy's type": np.float64,
    "datetime": np.datetime64("2020-01-01"),
    "timedelta": np.timedelta64(1, "s"),
    "ellipsis": ...,
    "object": object(),
    "unspeakable": Unspeakable(),
    "elementwise": Elementwise(),
}
# Numbers that no field can have.
NO_FIELD: dict[str, Any] = {
    "NaN": math.nan,
    "float32's NaN": np.float32("nan"),
    "array of NaN": np.array(math.nan),
    "minus infinity": -math.inf,
    "longdouble beyond float64": -np.longdouble("1e4000"),
    "integer beyond float64": 10**400,
    "integer without text": 10**5000,
    "negative integer beyond float64": -(10**400),
}


def in_form(error: Exception) -> bool:
    """Whether an error is a refusal, which says the argument, what it must be, what it was and the remedy, in short."""
    kinds = (ValueError, errors.NotReproduced, errors.OriginalRefuses)
    return type(error) in kinds and bool(REFUSAL.match(str(error))) and len(str(error)) <= LONGEST


def is_plain(value: Any) -> bool:
    """Whether a recipe, a schedule or a rule consists of Python's own numbers, flags and words, and of functions."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    if dataclasses.is_dataclass(value):
        return all(map(is_plain, vars(value).values()))
    return type(value) in (int, float, bool, str, type(None)) or callable(value)
