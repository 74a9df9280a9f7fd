"""Checks that several originals' constructors share."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._fields import SMALLEST_EPS1
from .._names import check_patterns
from ..errors import (
    LARGEST_SIZE,
    NotReproduced,
    OriginalRefuses,
    check_number,
    check_step,
    is_number,
    plain_number,
    plain_text,
    refusal,
)
from ..schedules import check_schedule, zero_based

# Why a number out of range is not taken. Most originals look at no number: they compute with it, whatever comes of it.
ORIGINAL = ""  # the original refuses it, too
CLIMBS = "The original climbs with a negative one, and has NaN or infinite weights with one that is not finite."
GROWS = "The original makes the weights grow with a negative one."
NO_AVERAGE = "The original computes with it, but not an average: what it keeps can be negative or grow without bound."
NO_SCALE = "The original multiplies every step by it."
NAN_FOR_ZEROS = "The original divides a gradient of zeros by 0 then, in float32 at least, which is NaN."
POSITIVE_EXPONENT = "transformers, torch and keras write the exponent with the opposite sign: use 0.8 for their -0.8."
NEGATIVE_EXPONENT = "This original writes the exponent with a minus sign: use -0.8."


def check_flag(argument: str, flag: object) -> bool:
    """Whether the original takes a flag for set: it asks for its truth, so 1 is True and None is False."""
    try:
        return bool(flag)
    except Exception as error:  # an array of more than one element, a tracer, whatever somebody else's class raises
        raise refusal(argument, "True or False", flag) from error


def check_flags(**flags: object) -> list[bool]:
    """`check_flag` for each, by its argument's name."""
    return [check_flag(name, flag) for name, flag in flags.items()]


def check_range(argument: str, value: object, why: str, check: Callable[..., Any] = check_number, **bounds: Any) -> Any:
    """The number, as `check` returns it; of one that is out of range the refusal says what the original does with it.

    Args:
        why: what comes of such a number in the original, or `ORIGINAL` where that refuses it itself.
    """
    try:
        return check(argument, value, **bounds)
    except ValueError as error:
        number = plain_number(value)
        if not is_number(number):  # nothing to compute with, or a tracer
            raise
        if number != number or abs(number) == math.inf:
            raise NotReproduced(f"{error} Numbers are finite here, so it is not reproduced.") from None
        if why == ORIGINAL:
            raise OriginalRefuses(f"{error} The original refuses it, too.") from None
        raise NotReproduced(f"{error} {why} It is not reproduced.") from None


def check_optional(argument: str, value: object, why: str, **bounds: Any) -> Any:
    """`check_range`, unless it is None."""
    return None if value is None else check_range(argument, value, why, **bounds)


def check_lr(argument: str, lr: object, why: str = CLIMBS) -> Any:
    """A learning rate: a number or a schedule."""
    return check_range(argument, lr, why, check_schedule, at_least=0)


def check_optional_lr(argument: str, lr: object, why: str = CLIMBS) -> Any:
    """`check_lr`, unless it is None."""
    return None if lr is None else check_lr(argument, lr, why)


def check_decay(argument: str, decay: object, why: str = GROWS) -> Any:
    """A weight decay."""
    return check_range(argument, decay, why, at_least=0)


def check_beta1(argument: str, beta1: object, why: str = NO_AVERAGE, remedy: str = "") -> Any:
    """The decay of an average, or None."""
    return check_optional(argument, beta1, why, at_least=0, below=1, remedy=remedy)


def check_eps1(argument: str, eps1: object, *, refused: bool = False) -> Any:
    """What is added to g^2, which must survive in float32; `refused`: the original refuses a negative one."""
    number = plain_number(eps1)
    why = ORIGINAL if refused and is_number(number) and number < 0 else NAN_FOR_ZEROS
    return check_range(argument, eps1, why, at_least=SMALLEST_EPS1, remedy="Use a tiny number such as 1e-30.")


def check_exponent(argument: str, exponent: object, why: str = NO_AVERAGE, *, minus: bool) -> Any:
    """x of beta2_t = 1 - t^-x; `minus`: the original writes it with a minus sign."""
    if minus:
        return -check_range(argument, exponent, why, at_most=0, remedy=NEGATIVE_EXPONENT)
    return check_range(argument, exponent, why, at_least=0, remedy=POSITIVE_EXPONENT)


def check_scale(argument: str, smallest: object) -> Any:
    """The smallest parameter scale: max(smallest, RMS(p)), where a negative number is as good as 0."""
    number = plain_number(smallest)
    return 0.0 if is_number(number) and number < 0 else check_range(argument, smallest, NO_SCALE)


def check_threshold(argument: str, threshold: object, *, optional: bool, zero: str | None = None) -> Any:
    """d of u / max(1, RMS(u) / d): None for a negative one, which makes that 1.

    Args:
        optional: None is off, as in the original.
        zero: what the original does with 0 (see `check_range`).
    """
    if threshold is None and optional:
        return None
    number = plain_number(threshold)
    if is_number(number) and number < 0:
        return None
    off = "None switches clipping off." if optional else "The original has no None here: inf switches clipping off."
    divides = "The original divides by it: no element moves, and where u is 0 it becomes NaN." if zero is None else zero
    return check_range(argument, threshold, divides, above=0, infinite=True, remedy=off)


def check_cap(argument: str, cap: object) -> Any:
    """The cap of beta2_t = min(cap, 1 - t^-x), which is below 1 without one."""
    number = plain_number(cap)
    return 1.0 if is_number(number) and number > 1 else check_range(argument, cap, NO_AVERAGE, at_least=0)


def check_offset(argument: str, offset: object) -> int:
    """The step from which t counts in beta2_t."""
    return int(check_range(argument, offset, "The original takes a part of a step, too.", check_step))


def check_min_dim(argument: str, size: object, *, exclusive: bool = False) -> int:
    """The smallest size of an axis that is factored, as a whole number; `exclusive`: it must be larger than `size`."""
    number = check_range(argument, size, "The original compares with it.", infinite=True, traced=False)
    if abs(number) == math.inf:
        return LARGEST_SIZE if number > 0 else 0
    least = math.floor(number) + 1 if exclusive else math.ceil(number)
    return int(min(max(least, 0), LARGEST_SIZE))


def check_items(argument: str, values: Any, of: str, *, least: int) -> list[Any]:
    """The values of a sequence that the original takes by their places, still to be checked: at least so many."""
    if (
        not isinstance(values, Sequence | np.ndarray)
        or isinstance(values, str | bytes)
        or getattr(values, "shape", None) == ()
    ):
        raise refusal(argument, f"a sequence {of}", values)
    if len(values) < least:
        raise original_refuses(argument, f"a sequence {of}", values, "The original fails at its first step.")
    return list(values)


def check_pair(argument: str, pair: Any, of: str) -> tuple[Any, Any]:
    """The pair, of values that are still to be checked."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise refusal(argument, f"a pair {of}", pair)
    return pair[0], pair[1]


def of_count(argument: str, lr: Any, why: str = CLIMBS) -> Any:
    """A learning rate of an original that counts from 0 at the first update: a function, a number or None."""
    is_function = callable(lr) and not isinstance(lr, type)
    return check_optional_lr(argument, zero_based(lr) if is_function else lr, why)


def is_off(value: Any) -> bool:
    """Whether a number that has been checked is the 0, or the None, by which an original switches something off."""
    return value is None or (is_number(value) and value == 0)


def original_refuses(argument: str, must: str, got: object, remedy: str) -> OriginalRefuses:
    """The error to raise for what the original refuses, too."""
    return OriginalRefuses(str(refusal(argument, must, got, remedy)))


def not_reproduced(argument: str, must: str, got: object, why: str, remedy: str = "") -> NotReproduced:
    """The error to raise for what an original does and this project does not."""
    return NotReproduced(str(refusal(argument, must, got, f"{why} It is not reproduced. {remedy}".strip())))


def unsupported(argument: str, value: object, neutral: object, why: str, remedy: str) -> None:
    """Refuse an argument that is not the `neutral` one: what it does is not part of an Adafactor's definition here."""
    if value is not neutral:
        raise not_reproduced(argument, f"{neutral!r} here", value, why, remedy)


def not_a_recipes(argument: str, value: object, neutral: object, remedy: str) -> None:
    """Refuse what is given to the optimizer here, and not to a recipe, unless it has its `neutral` value."""
    if value is not neutral:
        raise refusal(argument, f"{neutral!r} in a recipe", value, remedy)


def pairs_of(argument: str, rules: Any) -> dict[str, Any]:
    """{pattern: value} of a mapping or of (pattern, value) pairs; of equal patterns the first one counts."""
    rules = attribute(rules, "_rules")  # T5X's HParamMap
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise refusal(argument, "a dict or pairs of a regular expression and a value", rules)
    found: dict[str, Any] = {}
    for pair in pairs:
        regular, value = check_pair(argument, pair, "(regular expression, value)")
        pattern = plain_text(attribute(regular, "pattern"))
        if pattern is None:
            raise refusal(argument, "pairs of a regular expression and a value", pair)
        check_patterns(argument, {pattern: value})
        found.setdefault(pattern, value)
    return found


def attribute(value: Any, name: str) -> Any:
    """That attribute of an object of the original's own class; a value without it as it is."""
    try:
        return getattr(value, name, value)
    except Exception:  # whatever somebody else's class raises
        return value
