"""Parameter groups: a recipe's fields under their own names, with a learning rate that is always a number."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import FIELDS, REMEDIES, Numbers, Recipe, dtypes, recipes
from adafactor_spec.errors import refusal
from adafactor_spec.factoring import Plan
from adafactor_spec.factoring import plan as plan_for
from adafactor_spec.schedules import ScalarOrSchedule, as_schedule, check_schedule

Group = dict[str, Any]


def group_fields(recipe: Recipe) -> Group:
    """What a group keeps of a recipe."""
    fields = {name: getattr(recipe, name) for name in FIELDS}
    return {**fields, **split_lr(recipe.lr)}


def split_lr(lr: ScalarOrSchedule) -> Group:
    """`lr`, the number in force before the first step, and `lr_schedule`, what makes it, or None."""
    if isinstance(lr, Tensor):
        raise refusal("lr", "a number, a schedule or a function of t", lr, "Give the tensor's value as a number.")
    check_schedule("lr", lr, at_least=0)
    return {"lr": float(as_schedule(lr)(1)), "lr_schedule": lr if callable(lr) else None}


def completed(group: Group) -> Group:
    """A group as the user wrote it, with its recipe's fields in place of the recipe."""
    for name in group:
        if name in REMEDIES:
            raise TypeError(f"A parameter group has no {name!r}. {REMEDIES[name]}")
    group = dict(group)
    if "recipe" in group:
        group = {**group_fields(recipes.resolve(group.pop("recipe"))), **group}
    if "lr" in group:
        group.update(split_lr(group["lr"]) if "lr_schedule" not in group or callable(group["lr"]) else {})
    return group


def recipe_of(group: Group) -> Recipe:
    """The recipe of a group as it stands now: whoever changes a field of a group changes the next step."""
    values = {name: group[name] for name in FIELDS}
    if group["lr_schedule"] is not None:
        values["lr"] = group["lr_schedule"]
    return _recipe(*values.values())


@functools.lru_cache(maxsize=256, typed=True)
def _recipe(*values: Any) -> Recipe:
    return Recipe(**dict(zip(FIELDS, values, strict=True)))


def numbers_of(recipe: Recipe, t: int) -> Numbers:
    """Every schedule of a recipe at step t, as Python floats."""
    now = vars(recipe.at(t))
    return Numbers(**{name: None if value is None else float(value) for name, value in now.items()})


def named(group: Group) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of a group; the name is "" where none was given."""
    names = group.get("param_names") or [""] * len(group["params"])
    yield from zip(names, group["params"], strict=True)


def plan_of(recipe: Recipe, name: str, p: Tensor) -> Plan:
    """The factoring plan of one parameter."""
    return plan_for(recipe.factoring, tuple(p.shape), name)


def check_group(group: Group) -> None:
    """Refuse a group whose fields, parameters or factoring rule cannot work."""
    recipe = recipe_of(group)
    if recipe.factoring.needs_names and "param_names" not in group:
        remedy = "Pass model.named_parameters() instead of model.parameters()."
        raise refusal("factoring", "a rule that needs no names where parameters have none", recipe.factoring, remedy)
    if not isinstance(group["maximize"], bool):
        raise refusal("maximize", "True or False", group["maximize"])
    for name, p in named(group):
        who = f"parameter {name!r}" if name else f"parameter of shape {tuple(p.shape)}"
        if p.dtype not in FLOATS:
            raise refusal(f"dtype of the {who}", "one of " + ", ".join(dtypes.NAMES), str(p.dtype))
        plan_of(recipe, name, p)


FLOATS = {getattr(torch, name): name for name in dtypes.NAMES}
