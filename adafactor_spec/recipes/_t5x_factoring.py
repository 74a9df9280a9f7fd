"""T5X's rules for axes: a role for each, by the parameter's name or by the names of its axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import nearest, plain_text, refusal
from ..factoring import Rule, by_name, explicit, largest_two, limited, no_factoring
from ._arguments import attribute, original_refuses, pairs_of

_STANDARD = {
    "vocab": "COLUMN",
    "embed": "ROW",
    "mlp": "COLUMN",
    "heads": "COLUMN",
    "kv": "COLUMN",
    "joined_kv": "COLUMN",
    "relpos_buckets": "NONE",
    "layers": "BATCH",
    "stack": "BATCH",
    "q_wi_fused": "COLUMN",
    "o_wo_fused": "COLUMN",
    "multiquery_heads": "COLUMN",
    "kv_fused": "COLUMN",
    "layer_norm_scale": "NONE",
}
_LOGICAL_FACTOR_RULES: dict[str, dict[str, str]] = {
    "standard": _STANDARD,
    "moe": _STANDARD | {"expert": "BATCH", "expert_mlp": "COLUMN", "unmodeled": "NONE"},
}
_ROLES = {
    "row": "ROW",
    "col": "COLUMN",
    "column": "COLUMN",
    "batch": "BATCH",
    "none": "NONE",
    "unfactorized": "NONE",
}


def factoring_of(
    factored: bool,
    factor_map: Any,
    logical_factor_rules: Mapping[str, Any] | str | None,
    param_logical_axes: Mapping[str, Sequence[str]] | None,
    min_dim: int,
) -> Rule:
    """The factoring rule that T5X's arguments of these names mean."""
    if not factored:
        if factor_map is not None:
            raise original_refuses("factor_map", "None with factored=False", factor_map, "T5X refuses both together.")
        return no_factoring
    if param_logical_axes is not None:
        named_axes, roles_of = pairs_of("param_logical_axes", param_logical_axes), _logical_rules(logical_factor_rules)
        rules = {
            rf"\A(?:{pattern})\Z": _rule(f"param_logical_axes[{pattern!r}]", _roles(pattern, axes, roles_of), min_dim)
            for pattern, axes in named_axes.items()
        }
    elif factor_map is not None and not _is_empty(factor_map):
        rules = {
            pattern: _written(f"factor_map[{pattern!r}]", roles, min_dim)
            for pattern, roles in pairs_of("factor_map", factor_map).items()
        }
    else:
        if logical_factor_rules is not None:
            _logical_rules(logical_factor_rules)
        return _by_size(min_dim)
    return by_name(rules, default=None)


def _is_empty(factor_map: Any) -> bool:
    """Whether T5X takes a map for none: it asks for its truth."""
    return isinstance(factor_map, Mapping | list | tuple) and not factor_map


def _by_size(min_dim: int, axes: tuple[int, int] = (0, 2)) -> Rule:
    """T5X's heuristic rule, for at most two axes."""
    return limited(largest_two(min_dim), axes=axes)


def _logical_rules(rules: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(rules, str) and rules in _LOGICAL_FACTOR_RULES:
        return _LOGICAL_FACTOR_RULES[rules]
    if not isinstance(rules, Mapping):
        must = "a dict of logical axes and roles, or one of " + ", ".join(map(repr, _LOGICAL_FACTOR_RULES))
        raise refusal("logical_factor_rules", must, rules, nearest(rules, _LOGICAL_FACTOR_RULES))
    return rules


def _roles(pattern: str, axes: Sequence[str], rules: Mapping[str, Any]) -> list[str]:
    """The roles of a parameter's logical axes; those of one that is not factored completely leave BATCH alone."""
    who = f"param_logical_axes[{pattern!r}]"
    if not isinstance(axes, list | tuple):
        raise refusal(who, "a logical axis for every axis of the parameter", axes)
    for axis in axes:
        if not isinstance(axis, str) or axis not in rules:
            remedy = f"{nearest(axis, rules)} Known: {', '.join(rules)}.".strip()
            raise refusal(who, "logical axes that logical_factor_rules have", axis, remedy)
    roles = [_role(f"logical_factor_rules[{axis!r}]", rules[axis]) for axis in axes]
    if {"ROW", "COLUMN"} <= set(roles):
        if "NONE" in roles:
            remedy = "T5X refuses a spec that is factored in part: give every axis a role."
            raise original_refuses(who, "ROW, COLUMN and BATCH where there are rows and columns", tuple(roles), remedy)
        return roles
    return [role if role == "BATCH" else "NONE" for role in roles]


def _written(who: str, roles: Any, min_dim: int) -> Rule:
    """A rule as it is written in a factor_map: a role for every axis, None, or T5X's HEURISTIC_RULE."""
    if roles is None:
        return no_factoring
    if plain_text(attribute(roles, "name")) in ("token", "HEURISTIC_RULE"):
        return _by_size(min_dim)
    if not isinstance(roles, list | tuple):
        raise refusal(who, "ROW, COLUMN, BATCH or NONE for every axis, or None", roles)
    return _rule(who, [_role(who, role) for role in roles], min_dim)


def _role(who: str, role: Any) -> str:
    """ROW, COLUMN, BATCH or NONE, however T5X's user writes it: its FactorDim or its name."""
    word = "none" if role is None else plain_text(attribute(role, "name")) or ""
    name = _ROLES.get(word.lower())
    if name is None:
        raise refusal(who, "ROW, COLUMN, BATCH or NONE for every axis", role)
    return name


def _rule(who: str, roles: list[str], min_dim: int) -> Rule:
    rows, cols, batch = (
        tuple(axis for axis, role in enumerate(roles) if role == kind) for kind in ("ROW", "COLUMN", "BATCH")
    )
    if len(roles) <= 2 and not batch:  # T5X then ignores the rule and goes by size
        return _by_size(min_dim, (len(roles), len(roles)))
    if bool(rows) != bool(cols):
        raise refusal(who, "both ROW and COLUMN or neither", tuple(roles))
    return limited(explicit(rows, cols, batch), axes=(len(roles), len(roles)))
