"""Checks that several originals' constructors share."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._names import check_patterns
from ..errors import NotReproduced, OriginalRefuses, check_flag, check_number, refusal
from ..schedules import ScalarOrSchedule, check_schedule, zero_based

TINY: dict[str, Any] = {
    "at_least": 1e-37,
    "remedy": "Use a tiny number such as 1e-30.",
}  # what is added to g^2 must survive in float32
POSITIVE_EXPONENT = "transformers, torch and keras write the exponent with the opposite sign: use 0.8 for their -0.8."
NEGATIVE_EXPONENT = "This original writes the exponent with a minus sign: use -0.8."


def check_flags(**flags: object) -> None:
    """Refuse what is not True or False, by its argument's name."""
    for name, flag in flags.items():
        check_flag(name, flag)


def check_pair(argument: str, pair: Any, of: str) -> None:
    """Refuse what is not two values."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise refusal(argument, f"a pair {of}", pair)


def check_threshold(argument: str, threshold: float | None, *, optional: bool) -> None:
    """Refuse a clipping threshold that is not positive; `optional`: None is off, as in the original."""
    if threshold is None and optional:
        return
    off = "None switches clipping off." if optional else "The original has no None here: inf switches clipping off."
    check_number(argument, threshold, above=0, infinite=True, remedy=off)


def check_optional(argument: str, value: float | None, **bounds: Any) -> None:
    """`check_number`, unless it is None."""
    if value is not None:
        check_number(argument, value, **bounds)


def of_count(argument: str, lr: ScalarOrSchedule | None) -> ScalarOrSchedule | None:
    """A learning rate of an original that counts from 0 at the first update: a function, a number or None."""
    schedule = zero_based(lr) if callable(lr) else lr
    if schedule is not None:
        check_schedule(argument, schedule, at_least=0)
    return schedule


def original_refuses(argument: str, must: str, got: object, remedy: str) -> OriginalRefuses:
    """The error to raise for what the original refuses, too."""
    return OriginalRefuses(str(refusal(argument, must, got, remedy)))


def not_reproduced(argument: str, must: str, got: object, why: str, remedy: str = "") -> NotReproduced:
    """The error to raise for what an original does and this project does not."""
    return NotReproduced(str(refusal(argument, must, got, f"{why} It is not reproduced. {remedy}".strip())))


def unsupported(argument: str, value: object, neutral: object, why: str, remedy: str) -> None:
    """Refuse an argument that is not the `neutral` one: what it does is not part of an Adafactor's definition here."""
    if value != neutral:
        raise not_reproduced(argument, f"{neutral!r} here", value, why, remedy)


def not_a_recipes(argument: str, value: object, neutral: object, remedy: str) -> None:
    """Refuse what is given to the optimizer here, and not to a recipe, unless it has its `neutral` value."""
    if value is not neutral:
        raise refusal(argument, f"{neutral!r} in a recipe", value, remedy)


def pairs_of(argument: str, rules: Any) -> dict[str, Any]:
    """{pattern: value} of a mapping or of (pattern, value) pairs; of equal patterns the first one counts."""
    if hasattr(rules, "_rules"):  # T5X's HParamMap
        rules = rules._rules
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise refusal(argument, "a dict or pairs of a regular expression and a value", rules)
    found: dict[str, Any] = {}
    for pair in pairs:
        check_pair(argument, pair, "(regular expression, value)")
        pattern: Any = getattr(pair[0], "pattern", pair[0])
        check_patterns(argument, {pattern: pair[1]})
        found.setdefault(pattern, pair[1])
    return found
