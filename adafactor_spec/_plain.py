"""Recipes' values as plain values and back, for state dicts and reports: numbers, strings, lists and dicts only."""

import dataclasses
from typing import Any

import numpy as np

from . import factoring, schedules
from ._names import per_name
from .errors import refusal

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for module in (schedules, factoring)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, schedules.Schedule | factoring.Rule)
    and dataclasses.is_dataclass(kind)
    and not kind.__name__.startswith("_")
} | {per_name.__name__: per_name}
_VALUES = {repr(rule): rule for rule in (factoring.last_two, factoring.no_factoring, factoring.as_matrix)}


def to_plain(value: Any) -> Any:
    """`value` with every schedule and rule of ours as {"kind": its name, its fields}.

    A plain function, and a schedule or rule of somebody's own, becomes {"function": its name}.
    """
    if isinstance(value, factoring.Rule) and value in _VALUES.values():  # by value: a copy is not the same object
        return {"kind": repr(value)}
    if type(value) in _KINDS.values():
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if callable(value) or isinstance(value, factoring.Rule):
        return {"function": getattr(value, "__qualname__", type(value).__qualname__)}
    return value


def from_plain(plain: Any, current: Any = None, argument: str = "value") -> Any:
    """The value again.

    A function cannot be rebuilt from its name: `current`, the value in use for `argument`, must have one in its place.

    Raises:
        ValueError: it has none.
    """
    if isinstance(plain, list):
        return tuple(from_plain(item, argument=argument) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if "function" in plain:
        if "function" not in (to_plain(current) if callable(current) or isinstance(current, factoring.Rule) else {}):
            remedy = f"A function is saved as its name only: build the optimizer with {plain['function']}."
            raise refusal(argument, f"the function {plain['function']} that was saved", current, remedy)
        return current
    kind, fields = plain["kind"], {name: item for name, item in plain.items() if name != "kind"}
    if kind in _VALUES:
        return _VALUES[kind]
    if kind in ("by_name", "per_name"):
        known = dict(getattr(current, "rules", ()))
        rules = {pattern: from_plain(rule, known.get(pattern), argument) for pattern, rule in fields["rules"]}
        return _KINDS[kind](rules, from_plain(fields["default"], getattr(current, "default", None), argument))
    inner = {name: from_plain(item, getattr(current, name, None), argument) for name, item in fields.items()}
    return _KINDS[kind](**inner)
