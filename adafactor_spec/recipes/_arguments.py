"""Checks that several originals' constructors share."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import check_flag, check_number, refusal
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


def unsupported(argument: str, value: object, neutral: object, why: str, remedy: str) -> None:
    """Refuse an argument that is not the `neutral` one: what it does is not part of an Adafactor's definition here."""
    if value != neutral:
        raise refusal(argument, f"{neutral!r} here", value, f"{why} {remedy}".strip())


def pairs_of(argument: str, rules: Any) -> dict[str, Any]:
    """{pattern: value} of a mapping or of (pattern, value) pairs; of equal patterns the first one counts."""
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise refusal(argument, "a dict or pairs of a regular expression and a value", rules)
    found: dict[str, Any] = {}
    for pair in pairs:
        check_pair(argument, pair, "(regular expression, value)")
        found.setdefault(pair[0], pair[1])
    return found
