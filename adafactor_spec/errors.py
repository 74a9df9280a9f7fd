"""The form of every refusal: which argument, what it must be, what it was, the remedy."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeGuard, TypeVar

import numpy as np

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class NotReproduced(ValueError):
    """What a published Adafactor does and this project, on purpose, does not. The message says why and the way out."""


class OriginalRefuses(ValueError):
    """What the original refuses itself, when it is built or at its first step."""


def refusal(argument: str, must: str, got: object, remedy: str = "") -> ValueError:
    """The error to raise for a bad value: `eps1 must be positive, got 0. <remedy>`."""
    return ValueError(f"{argument} must be {must}, got {got!r}.{' ' if remedy else ''}{remedy}")


def check_number(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
    whole: bool = False,
    remedy: str = "",
) -> None:
    """Refuse what is not a finite number in the given range, or an `infinite` one where that is allowed.

    A zero-dimensional array, such as the tracer that `optax.inject_hyperparams` passes, has no value to look at
    and passes unchecked.
    """
    if is_array_scalar(value):
        return
    if not is_number(value):
        raise refusal(argument, "a number", value, remedy_for_array(value) or remedy)
    number = float(value)
    inside = (
        (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )
    if not inside or math.isnan(number) or (math.isinf(number) and not infinite):
        raise refusal(argument, _range(above, at_least, below, at_most), value, remedy)
    if whole and number != int(number):
        raise refusal(argument, "a whole number", value, remedy)


def is_number(value: object) -> TypeGuard[float]:
    """True for a Python or NumPy real number; a bool is not one."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_array_scalar(value: object) -> bool:
    """True for an array or tracer without axes that has the array API, as JAX's have and torch's tensors have not."""
    return hasattr(value, "__array_namespace__") and getattr(value, "shape", None) == () and not is_number(value)


def remedy_for_array(value: object) -> str:
    """What to do with an array that stands where a number should."""
    return "Give its value as a number, such as float(...)." if hasattr(value, "dtype") else ""


def check_choice(argument: str, value: object, choices: Iterable[object], remedy: str = "") -> None:
    """Refuse what is not one of `choices`, naming the nearest one."""
    choices = list(choices)
    if not any(value is choice or value == choice for choice in choices):
        close = nearest(value, choices) if isinstance(value, str) else ""
        raise refusal(argument, "one of " + ", ".join(map(repr, choices)), value, close or remedy)


def check_flag(argument: str, value: object) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool | np.bool_):
        raise refusal(argument, "True or False", value)


def nearest(word: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """`Did you mean 'paper'?`, or nothing where no known name is as close as `cutoff` (1 is equal)."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=cutoff)
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
                    raise TypeError(f"{_call_name(function)}() has no argument {name!r}. {remedy}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _call_name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _range(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    left = None if above is None and at_least is None else f"({above:.10g}" if at_least is None else f"[{at_least:.10g}"
    right = None if below is None and at_most is None else f"{below:.10g})" if at_most is None else f"{at_most:.10g}]"
    if left and right:
        return f"in {left}, {right}"
    if above is not None:
        return "positive" if above == 0 else f"greater than {above:.10g}"
    if at_least is not None:
        return f"at least {at_least:.10g}"
    if at_most is not None:
        return f"at most {at_most:.10g}"
    return "a finite number"
