"""Values that depend on a parameter's name: the first regular expression that is found in the name decides.

A name is that of torch's `named_parameters()` ("encoder.0.weight") or the path in a JAX tree ("encoder/0/kernel").
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import keep, plain_text, refusal

Pairs = tuple[tuple[str, Any], ...]


def check_patterns(argument: str, rules: object) -> Pairs:
    """The pairs of a dict {pattern: value}; what is not one, or not a regular expression, is refused."""
    pairs = [(plain_text(pattern), value) for pattern, value in rules.items()] if isinstance(rules, Mapping) else []
    if not isinstance(rules, Mapping) or any(pattern is None for pattern, _ in pairs):
        raise refusal(argument, "a dict of regular expressions and values", rules)
    for pattern, _ in pairs:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise refusal(argument, "regular expressions", pattern, f"{error}.") from error
    return tuple((pattern or "", value) for pattern, value in pairs)


def need_names(pairs: Pairs) -> bool:
    """Whether the name decides; a first pattern that is found everywhere leaves nothing to decide."""
    return not pairs or pairs[0][0] not in ("", ".*")


def found(pairs: Pairs, default: Any, name: str, argument: str) -> Any:
    """The value of the first pattern found in `name`, else the default; where that is None the name is refused."""
    for pattern, value in pairs:
        if re.search(pattern, name):
            return value
    if default is None:
        patterns = ", ".join(repr(pattern) for pattern, _ in pairs)
        raise refusal(f"name of a parameter under {argument}", f"found by {patterns}", name, "Add a pattern for it.")
    return default


@dataclass(frozen=True)
class per_name:
    """A value that depends on the parameter's name: a field of the recipe that is not the same for all of them.

    Args:
        rules: {pattern: value}; the first regular expression found in the name decides.
        default: the value for a name in which none is found; None refuses such a name.
    """

    rules: Pairs
    default: Any = None

    def __init__(self, rules: Mapping[str, Any], default: Any = None) -> None:
        keep(self, rules=check_patterns("rules", rules), default=default)

    def __repr__(self) -> str:
        return f"per_name({dict(self.rules)!r}, default={self.default!r})"

    @property
    def needs_names(self) -> bool:
        """Whether the name decides."""
        return need_names(self.rules)

    @property
    def values(self) -> tuple[Any, ...]:
        """Every value that a parameter can have."""
        return (*(value for _, value in self.rules), *(() if self.default is None else (self.default,)))

    def of(self, name: str) -> Any:
        """The value for a parameter of this name."""
        return found(self.rules, self.default, name, repr(self))

    def map(self, change: Callable[[Any], Any]) -> "per_name":
        """The same with every value changed."""
        default = None if self.default is None else change(self.default)
        return per_name({pattern: change(value) for pattern, value in self.rules}, default)


def own(value: Any, name: str) -> Any:
    """The value for a parameter of this name, where it depends on one; else the value itself."""
    return value.of(name) if isinstance(value, per_name) else value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` changed, or every value that it can have."""
    return value.map(change) if isinstance(value, per_name) else change(value)


def values_of(value: Any) -> Iterable[Any]:
    """Every value that a parameter can have."""
    return value.values if isinstance(value, per_name) else (value,)
