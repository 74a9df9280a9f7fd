"""Recipes' values as plain values and back, for state dicts and reports: numbers, strings, lists and dicts only."""

import dataclasses
from typing import Any

import numpy as np

from . import factoring, schedules
from ._names import per_name
from .errors import nearest, refusal

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
        ValueError: it has none, or `plain` is not what `to_plain` makes of a value.
    """
    try:
        return _built(plain, current, argument)
    except RecursionError as error:
        raise refusal(argument, "nested less deeply", f"a {type(plain).__name__} inside itself or nearly so") from error


def _built(plain: Any, current: Any, argument: str) -> Any:
    if isinstance(plain, list):
        return tuple(_built(item, None, argument) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {"function"}:
        if "function" not in (to_plain(current) if callable(current) or isinstance(current, factoring.Rule) else {}):
            remedy = f"A function is saved as its name only: build the optimizer with {plain['function']}."
            raise refusal(argument, f"the function {plain['function']} that was saved", current, remedy)
        return current
    kind, given = plain.get("kind"), {name: item for name, item in plain.items() if name != "kind"}
    if not isinstance(kind, str) or kind not in (*_VALUES, *_KINDS):
        raise refusal(argument, "a schedule or rule that this version knows", plain, nearest(kind, (*_VALUES, *_KINDS)))
    made: Any = _KINDS.get(kind)
    fields = {} if kind in _VALUES else {field.name: field for field in dataclasses.fields(made)}
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if not set(needed) <= given.keys() <= fields.keys():
        raise refusal(argument, f"a {kind} with the fields {', '.join(fields) or 'of none'}", plain)
    if kind in _VALUES:
        return _VALUES[kind]
    if "rules" in fields:
        return _built_by_name(made, given, current, argument)
    try:
        return made(**{name: _built(item, getattr(current, name, None), argument) for name, item in given.items()})
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise refusal(argument, f"a {kind} that can be built", plain, f"{error}.") from error


def _built_by_name(made: Any, given: dict[str, Any], current: Any, argument: str) -> Any:
    pairs = given["rules"]
    are_pairs = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    patterns = [pair[0] for pair in pairs] if are_pairs else [None]
    if not all(isinstance(pattern, str) for pattern in patterns) or len(set(patterns)) < len(patterns):
        raise refusal(argument, f"a {made.__name__} of pairs of a regular expression and a value", pairs)
    known = dict(getattr(current, "rules", ()))
    rules = {pattern: _built(rule, known.get(pattern), argument) for pattern, rule in pairs}
    if "default" not in given:
        return made(rules)
    return made(rules, _built(given["default"], getattr(current, "default", None), argument))
