"""Checks that several originals' constructors share."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._fields import SMALLEST_EPS1
from .._names import check_patterns
from ..errors import NotReproduced, OriginalRefuses, check_flag, check_number, is_number, plain_text, refusal
from ..schedules import check_schedule, zero_based

TINY: dict[str, Any] = {
    "at_least": SMALLEST_EPS1,
    "remedy": "Use a tiny number such as 1e-30.",
}  # what is added to g^2 must survive in float32
POSITIVE_EXPONENT = "transformers, torch and keras write the exponent with the opposite sign: use 0.8 for their -0.8."
NEGATIVE_EXPONENT = "This original writes the exponent with a minus sign: use -0.8."


def check_flags(**flags: object) -> list[bool]:
    """The flags as bools; what is not True or False is refused by its argument's name."""
    return [check_flag(name, flag) for name, flag in flags.items()]


def check_pair(argument: str, pair: Any, of: str) -> tuple[Any, Any]:
    """The pair, of values that are still to be checked."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise refusal(argument, f"a pair {of}", pair)
    return pair[0], pair[1]


def check_threshold(argument: str, threshold: object, *, optional: bool) -> Any:
    """A clipping threshold, which is positive; `optional`: None is off, as in the original."""
    if threshold is None and optional:
        return None
    off = "None switches clipping off." if optional else "The original has no None here: inf switches clipping off."
    return check_number(argument, threshold, above=0, infinite=True, remedy=off)


def check_optional(argument: str, value: object, **bounds: Any) -> Any:
    """`check_number`, unless it is None."""
    return None if value is None else check_number(argument, value, **bounds)


def check_optional_schedule(argument: str, value: object, **bounds: Any) -> Any:
    """`check_schedule`, unless it is None."""
    return None if value is None else check_schedule(argument, value, **bounds)


def of_count(argument: str, lr: Any) -> Any:
    """A learning rate of an original that counts from 0 at the first update: a function, a number or None."""
    is_function = callable(lr) and not isinstance(lr, type)
    return check_optional_schedule(argument, zero_based(lr) if is_function else lr, at_least=0)


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
