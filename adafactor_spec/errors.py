"""The form of every refusal, and the checks of arguments. Each check returns the plain value of what it accepts.

A refusal says which argument, what it must be, what it was, and the remedy. A plain value is a Python number, bool or
string: whatever kind of number a recipe was given, what it keeps can be compared, hashed, printed and saved.
"""

import difflib
import functools
import inspect
import math
import numbers
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeGuard, TypeVar

import numpy as np

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LONGEST_VALUE, LONGEST_PART = 200, 700  # characters in a message: of a value, and of anything else that it says
LAST_STEP = 2**31 - 1  # both optimizers count steps in 32 bits
LARGEST_SIZE = 2**63 - 1  # no axis is longer
# A step is computed in float32, where what is smaller is 0 and what is larger infinite.
SMALLEST_FLOAT32, LARGEST_FLOAT32 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_REAL = "fiuV"  # kinds of NumPy's dtypes; "V": bfloat16, and others that NumPy itself does not know


class NotReproduced(ValueError):
    """What a published Adafactor does and this project, on purpose, does not. The message says why and the way out."""


class OriginalRefuses(ValueError):
    """What the original refuses itself, when it is built or at its first step."""


def refusal(argument: str, must: str, got: object, remedy: str = "") -> ValueError:
    """The error to raise for a bad value: `eps1 must be positive, got 0. <remedy>`. What is long is cut."""
    argument, must, remedy = shortened(argument), shortened(must), shortened(remedy)
    return ValueError(f"{argument} must be {must}, got {shown(got)}.{' ' if remedy else ''}{remedy}")


def shown(value: object) -> str:
    """`repr(value)` on one line, cut where it is long; of a value whose repr fails, its type."""
    try:
        text = repr(value[:LONGEST_VALUE] if type(value) in (str, bytes, list, tuple) else value)  # type: ignore[index]
    except Exception:  # whatever somebody else's class raises; a whole number of thousands of digits is a ValueError
        text = f"<{type(value).__name__} whose repr fails>"
    return shortened(re.sub(r"\s*\n\s*", " ", text[: 4 * LONGEST_VALUE]), LONGEST_VALUE)


def shortened(text: str, longest: int = LONGEST_PART) -> str:
    """The text, cut where it is longer."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def plain_number(value: object) -> Any:
    """A number as a Python int or float; one that the host cannot know, as it is; None for anything else.

    A number is a real one of Python or NumPy, or an array of NumPy or JAX without axes that has one; a bool is none.
    The host cannot know a JAX tracer, such as `optax.inject_hyperparams` passes in a compiled step: to make a NumPy
    array of it is a TypeError.
    """
    kind = type(value)
    if kind is float:
        return value
    if issubclass(kind, int):
        # The base class's conversion: a subclass may have one of its own that fails or says something else.
        return None if kind is bool else int.__int__(value)  # type: ignore[arg-type]
    if issubclass(kind, float):
        return float.__float__(value)  # type: ignore[arg-type]
    try:
        if not issubclass(kind, np.generic) and _dtype_of_array(value) is None:
            return None
        array = np.asarray(value)
    except TypeError:
        return value
    except Exception:  # a deleted array of JAX's, or whatever somebody else's class raises
        return None
    number = array.item()
    if array.dtype.kind not in _REAL or not isinstance(number, int | float | np.longdouble):
        return None
    return number if isinstance(number, int) else float(number)


def _dtype_of_array(value: Any) -> Any:
    """The dtype of an array of one real number without axes, of JAX or of NumPy's own class; None for anything else.

    Of another class of NumPy's, a masked array say, the number may not be one to use.
    """
    of_numpy = np.generic if type(value) is np.ndarray else np.generic | np.ndarray
    if not hasattr(type(value), "__array_namespace__") or isinstance(value, of_numpy):
        return None
    shape, dtype = value.shape, value.dtype
    is_real = isinstance(dtype, np.dtype) and dtype.kind in _REAL
    return dtype if isinstance(shape, tuple) and not shape and is_real else None


def is_number(value: object) -> TypeGuard[float]:
    """True for a Python number, as `check_number` returns it, and not for one that the host cannot know."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
    traced: bool = True,
    remedy: str = "",
) -> Any:
    """The plain number; refused is what is not a finite one in the given range, or an `infinite` where that is allowed.

    `traced`: one that the host cannot know (see `plain_number`) is returned as it is, and not refused.
    """
    number = _number(argument, value, traced, remedy)
    if not is_number(number):
        return number
    if not _is_inside(number, above, at_least, below, at_most) or (abs(number) == math.inf and not infinite):
        raise refusal(argument, _range(above, at_least, below, at_most), value, remedy)
    if above == 0 and number < SMALLEST_FLOAT32:
        raise refusal(argument, f"positive in float32, at least {SMALLEST_FLOAT32:.7g}", value, remedy)
    kind, largest = ("float", sys.float_info.max) if infinite else ("float32", LARGEST_FLOAT32)
    if largest < abs(number) < math.inf:
        must = f"{_range(above, at_least, below, at_most)} and no larger than a {kind} can be"
        raise refusal(argument, must, value, remedy)
    if isinstance(number, int) and abs(number) <= LAST_STEP:  # frameworks would make an int32 of a larger one
        return number
    return math.inf if number > LARGEST_FLOAT32 else float(number) or 0.0  # 0.0 of -0.0, and a float itself


def _number(argument: str, value: object, traced: bool, remedy: str) -> Any:
    number = plain_number(value)
    if number is None:
        raise refusal(argument, "a number", value, remedy_for_array(value) or remedy)
    if not traced and not is_number(number):
        raise refusal(argument, "a number that is known before a step is traced", value, remedy)
    return number


def check_whole(
    argument: str,
    value: object,
    *,
    above: int | None = None,
    at_least: int | None = None,
    at_most: int | None = None,
    traced: bool = False,
    remedy: str = "",
) -> Any:
    """The whole number as an int, a float without a fraction too; refused is any other, and one out of range.

    `traced`: one that the host cannot know (see `plain_number`) is returned as it is, and not refused.
    """
    number = _whole(argument, value, above, at_least, at_most, traced, remedy)
    if is_number(number) and abs(number) > LARGEST_SIZE:
        must = f"at most {LARGEST_SIZE}" if number > 0 else f"at least {-LARGEST_SIZE}"
        raise refusal(argument, must, value, remedy)
    return number


def check_step(
    argument: str,
    value: object,
    *,
    above: int | None = None,
    at_least: int | None = None,
    remedy: str = "",
) -> int:
    """The number of a step, or of steps, as an int: a whole number as large as both optimizers can count."""
    number: int = _whole(argument, value, above, at_least, None, False, remedy)
    if abs(number) > LAST_STEP:
        must = f"at most {LAST_STEP}" if number > 0 else f"at least {-LAST_STEP}"
        raise refusal(argument, must, value, "Steps are counted in 32 bits.")
    return number


def _whole(
    argument: str,
    value: object,
    above: int | None,
    at_least: int | None,
    at_most: int | None,
    traced: bool,
    remedy: str,
) -> Any:
    number = _number(argument, value, traced, remedy)
    dtype = _dtype_of_array(value)
    if dtype is not None and dtype.kind not in "iu":  # it may have been rounded on its way into the array
        raise refusal(argument, "a whole number, in an array of integers", value, remedy)
    if not is_number(number):
        return number
    if not _is_inside(number, above, at_least, None, at_most) or abs(number) == math.inf:
        raise refusal(argument, _range(above, at_least, None, at_most), value, remedy)
    if number != int(number):
        raise refusal(argument, "a whole number", value, remedy)
    return int(number)


def _is_inside(
    number: float, above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> bool:
    return (
        number == number  # a NaN is not
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )


def remedy_for_array(value: object) -> str:
    """What to do with an array, or with a number of another kind, that stands where a number should."""
    is_another = isinstance(value, numbers.Number) and not isinstance(value, bool | complex)
    return "Give its value as a number, such as float(...)." if is_another or hasattr(type(value), "dtype") else ""


def plain_text(value: object) -> str | None:
    """A string as a plain one, of NumPy's or an enumeration's too; None for anything else."""
    return str.__str__(value) if issubclass(type(value), str) else None


def check_choice(argument: str, value: object, choices: Iterable[Any], remedy: str = "") -> Any:
    """The one of `choices`, strings, bools and None, that a value is; any other is refused, and the nearest named."""
    choices, text = list(choices), plain_text(value)
    known = bool(value) if isinstance(value, np.bool_) else value if text is None else text
    for choice in choices:
        if known is choice or (text is not None and text == choice):
            return choice
    close = "" if text is None else nearest(text, choices)
    raise refusal(argument, "one of " + ", ".join(map(repr, choices)), value, close or remedy)


def check_flag(argument: str, value: object) -> bool:
    """True or False; anything else is refused."""
    if not isinstance(value, bool | np.bool_):
        raise refusal(argument, "True or False", value)
    return bool(value)


def keep(owner: object, **fields: object) -> None:
    """Set fields of a frozen dataclass, when it is made, to what the checks have returned."""
    for name, value in fields.items():
        object.__setattr__(owner, name, value)


def nearest(word: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """`Did you mean 'paper'?`, or nothing where no known name is as close as `cutoff` (1 is equal)."""
    text = plain_text(word) or ""
    if len(text) > LONGEST_VALUE:
        return ""
    close = difflib.get_close_matches(text, [str(name) for name in known], n=1, cutoff=cutoff)
    return f"Did you mean {close[0]!r}?" if close else ""


def refuse_unknown_keywords(
    remedies: Mapping[str, str],
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator: an unknown keyword gets its remedy, or the nearest known name, instead of Python's bare TypeError.

    The signature that tools inspect stays the explicit one of the decorated function.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for name in kwargs:
                if name not in known:
                    remedy = remedies.get(name) or nearest(name, known) or f"Known: {', '.join(known)}."
                    raise TypeError(f"{_call_name(function)}() has no argument {shown(name)}. {shortened(remedy)}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _call_name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _range(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    low, high = (above if at_least is None else at_least), (below if at_most is None else at_most)
    left = "" if low is None else f"{'(' if at_least is None else '['}{_bound(low)}"
    right = "" if high is None else f"{_bound(high)}{')' if at_most is None else ']'}"
    if left and right:
        return f"in {left}, {right}"
    if above is not None:
        return "positive" if above == 0 else f"greater than {_bound(above)}"
    if at_least is not None:
        return f"at least {_bound(at_least)}"
    if at_most is not None:
        return f"at most {_bound(at_most)}"
    return "a finite number"


def _bound(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.7g}"  # so few, that a float32 reads as it was written
