"""Recipes' values as plain values and back, for state dicts and reports: numbers, strings, lists and dicts only."""

import dataclasses
from typing import Any

from . import factoring, schedules

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for module in (schedules, factoring)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not kind.__name__.startswith("_")
}
_KINDS.pop("Plan")
_VALUES = {repr(rule): rule for rule in (factoring.last_two, factoring.no_factoring, factoring.as_matrix)}


def to_plain(value: Any) -> Any:
    """`value` with every schedule and rule as {"kind": its name, its fields}; a plain function becomes its name."""
    if isinstance(value, factoring.Rule) and repr(value) in _VALUES:
        return {"kind": repr(value)}
    if isinstance(value, schedules.Schedule | factoring.Rule):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}  # type: ignore[arg-type]
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return {"function": getattr(value, "__qualname__", repr(value))} if callable(value) else value


def from_plain(plain: Any, current: Any = None) -> Any:
    """The value again. A plain function cannot be rebuilt from its name: `current`, the one in use, stands for it."""
    if isinstance(plain, list):
        return tuple(from_plain(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if "function" in plain:
        return current
    kind, fields = plain["kind"], {name: item for name, item in plain.items() if name != "kind"}
    if kind in _VALUES:
        return _VALUES[kind]
    if kind == "by_name":
        return factoring.by_name(dict(from_plain(fields["rules"])), from_plain(fields["default"]))
    inner = {name: from_plain(item, getattr(current, name, None)) for name, item in fields.items()}
    return _KINDS[kind](**inner)
