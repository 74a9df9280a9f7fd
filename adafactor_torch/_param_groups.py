"""Parameter groups: a recipe's fields and the optimizer's options, with a learning rate that is always a number."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import (
    FIELDS,
    PER_NAME,
    REMEDIES,
    ROUNDINGS,
    Numbers,
    Recipe,
    check_seed,
    dtypes,
    per_name,
    recipes,
    replace,
)
from adafactor_spec.errors import check_choice, check_flag, check_number, nearest, plain_text, refusal, shown
from adafactor_spec.factoring import Plan
from adafactor_spec.factoring import plan as plan_for
from adafactor_spec.schedules import ScalarOrSchedule, as_schedule, check_schedule

from ._sharding.dtensor import check_parts, local_of
from ._task.device_schedules import check_schedules
from ._task.memory import called, check_memory
from ._task.task import FLOATS

Group = dict[str, Any]
RANGES: dict[str, dict[str, Any]] = {
    "lr": {"at_least": 0.0},
    "beta2": {"at_least": 0.0, "at_most": 1.0},
    "beta1": {"at_least": 0.0, "at_most": 1.0},
    "weight_decay": {"at_least": 0.0},
}
FUSED = ("cpu", "cuda")  # the devices that have fused kernels
# What a group has besides the recipe's fields, and what it was before there was such an option.
OPTIONS: Group = {
    "maximize": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "rounding": "nearest",
    "seed": 0,
    "nonfinite": "propagate",
    "telemetry": False,
}


def group_fields(recipe: Recipe) -> Group:
    """What a group keeps of a recipe: its fields, and of `lr` what `split_lr` says."""
    return {**{name: getattr(recipe, name) for name in FIELDS}, **split_lr(recipe.lr)}


def split_lr(lr: ScalarOrSchedule | Tensor | None) -> Group:
    """A learning rate as a group keeps it.

    `lr` is the number in force, `lr_schedule` what makes it or None, and `lr_of_schedule` the number that the schedule
    gave last: where the two numbers differ, somebody else has written `lr`.
    """
    number = None if lr is None else check_schedule("lr", number_in(lr), at_least=0)
    if not callable(lr):
        return {"lr": lr if isinstance(lr, Tensor) else number, "lr_schedule": None, "lr_of_schedule": None}
    first = float(as_schedule(lr)(1))
    return {"lr": first, "lr_schedule": lr, "lr_of_schedule": first}


def number_in(lr: ScalarOrSchedule | Tensor | None) -> ScalarOrSchedule | None:
    """The number in a tensor, which on a device is waited for; anything else as it is."""
    if not isinstance(lr, Tensor):
        return lr
    _check_tensor(lr)
    return float(lr.detach())


def _check_tensor(lr: Tensor) -> None:
    """Refuse a tensor that has not one number; which one is not read."""
    if lr.numel() != 1 or lr.is_complex() or lr.dtype is torch.bool or lr.is_meta:
        raise refusal("lr", "a number or a tensor with one", lr)


def completed(group: Group) -> Group:
    """A group as the user wrote it, with its recipe's fields in place of the recipe.

    A key of the user's own is kept, as torch does it, unless it is nearly the name of a field.
    """
    for name in group:
        remedy = REMEDIES.get(name) or nearest(name, (*FIELDS, *OPTIONS), cutoff=0.8)
        if remedy and name not in FIELDS and name not in OPTIONS:
            raise TypeError(f"A parameter group has no {shown(name)}. {remedy}")
    group = dict(group)
    if "lr" in group and "lr_schedule" not in group:  # a group of another optimizer brings both
        group.update(split_lr(group["lr"]))
    if "recipe" in group:
        group = {**group_fields(recipes.resolve(group.pop("recipe"))), **group}
    return group


def recipe_of(group: Group) -> Recipe:
    """The recipe of a group as it stands now: whoever changes a field of a group changes the next step."""
    return replace(recipe_without_lr(group), lr=learning_rate(group))


def recipe_without_lr(group: Group) -> Recipe:
    """The recipe of a group but for the value of its learning rate, the same object for as long as nothing changes."""
    values = (None if group["lr"] is None else 1.0, *(group[name] for name in FIELDS if name != "lr"))
    try:
        hash(values)
    except Exception:  # a callable object that compares by value has no hash, an array has none
        return Recipe(**dict(zip(FIELDS, values, strict=True)))
    return _recipe(tuple(_types_in(group[name]) for name in PER_NAME), *values)


def _types_in(value: Any) -> tuple[type, ...]:
    """The types of the values in a `per_name`: a number that may not be there can equal one that may."""
    if type(value) is not per_name:
        return ()
    return (*(type(one) for _, one in value.rules), type(value.default))


def learning_rate(group: Group) -> Any:
    """The learning rate: a number, a schedule, or the value of a tensor, which on a device is waited for."""
    lr = group["lr"]
    if group["lr_schedule"] is not None and lr == group["lr_of_schedule"]:
        return group["lr_schedule"]
    return number_in(lr)


@functools.lru_cache(maxsize=256, typed=True)
def _recipe(types: tuple[tuple[type, ...], ...], *values: Any) -> Recipe:
    return Recipe(**dict(zip(FIELDS, values, strict=True)))


def numbers_of(recipe: Recipe, t: int) -> Numbers:
    """Every schedule of a recipe at step t, as Python floats.

    Raises:
        ValueError: a function of t has left the range of its field.
    """
    try:
        now = vars(recipe.at(t))
    except (TypeError, ValueError, OverflowError):
        for name, bounds in RANGES.items():  # a function of t may have given what is no number
            if callable(getattr(recipe, name)):
                check_number(f"{name} at t = {t}", getattr(recipe, name)(t), **bounds)
        raise
    for name, bounds in RANGES.items():
        if getattr(recipe, name) is not None:
            check_number(f"{name} at t = {t}", now[name], **bounds)
    return Numbers(**{name: None if value is None else float(value) for name, value in now.items()})


def named(group: Group) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of a group; the name is "" where none was given."""
    names = group.get("param_names") or [""] * len(group["params"])
    yield from zip(names, group["params"], strict=True)


def counts_on_device(group: Group, p: Tensor) -> bool:
    """Whether the steps of a parameter are counted on its device: where the host must not, or cannot, know them."""
    return (group["capturable"] or group["nonfinite"] == "skip") and p.device.type != "cpu"


def is_fused(group: Group, device: str) -> bool:
    """Whether parameters of a group on that kind of device are stepped by fused kernels."""
    by_default = device == "cuda" and group["foreach"] is None
    return device in FUSED and bool(by_default if group["fused"] is None else group["fused"])


def plan_of(recipe: Recipe, name: str, p: Tensor) -> Plan:
    """The factoring plan of one parameter."""
    return plan_for(recipe.factoring, tuple(p.shape), name)


def check_group(group: Group) -> None:
    """Refuse a group whose values, parameters or factoring rule cannot work; write its values in their plain form."""
    plain_form(group)
    recipe = recipe_of(group)
    if "param_names" in group:
        group["param_names"] = [_name(name) for name in group["param_names"]]
    if recipe.lr is None:
        check_schedule("lr", None, remedy="This recipe has no default: give one.")
    if recipe.needs_names and "param_names" not in group:
        remedy = "Pass model.named_parameters() instead of model.parameters()."
        for field in ("factoring", *PER_NAME):
            value = getattr(recipe, field)
            if getattr(value, "needs_names", False):
                raise refusal(field, "one that needs no names where parameters have none", value, remedy)
    on_device: dict[tuple[int, torch.device], Recipe] = {}
    for name, p in named(group):
        who = called(name, p)
        check_memory(who, p, local_of)
        plan = plan_of(recipe, name, p)
        check_parts(who, p, plan)
        if group["fused"] and p.device.type not in FUSED:
            must = "None or False for parameters on another device than " + " or ".join(FUSED)
            raise refusal("fused", must, True, f"The {who} is on {p.device}.")
        if p.dtype not in FLOATS:
            raise refusal(f"dtype of the {who}", "one of " + ", ".join(dtypes.NAMES), str(p.dtype))
        of_name = recipe.for_name(name)
        if counts_on_device(group, p):
            on_device[id(of_name), p.device] = of_name
    for (_, device), of_name in on_device.items():
        check_schedules(of_name, device)


def plain_form(group: Group) -> Recipe:
    """`recipe_without_lr` a group after every check of its fields and options, which are written in their plain form.

    So whoever has written a number of NumPy's into a group can save it.
    """
    _write_plain_lr(group)
    if group["lr_schedule"] is not None and not callable(group["lr_schedule"]):
        raise refusal("lr_schedule", "a schedule or None", group["lr_schedule"])
    if group["lr_of_schedule"] is not None:
        group["lr_of_schedule"] = check_number("lr_of_schedule", group["lr_of_schedule"], at_least=0)
    form = recipe_without_lr(group)
    check_options(group)
    group.update({name: getattr(form, name) for name in FIELDS if name != "lr"})
    return recipe_without_lr(group)


def _name(name: object) -> str:
    plain = plain_text(name)
    if plain is None:
        raise refusal("name of a parameter", "a string", name)
    return plain


def check_options(group: Group) -> None:
    """Refuse options of a group that are none or that contradict each other; write the others in their plain form."""
    for flag in ("maximize", "capturable", "telemetry"):
        group[flag] = check_flag(flag, group[flag])
    for flag in ("foreach", "fused"):
        group[flag] = check_choice(flag, group[flag], (None, True, False))
    group["rounding"] = check_choice("rounding", group["rounding"], ROUNDINGS)
    group["seed"] = check_seed(group["seed"])
    group["nonfinite"] = check_choice("nonfinite", group["nonfinite"], ("propagate", "skip"))
    if group["foreach"] and group["fused"]:
        raise refusal("foreach", "None or False with fused=True", True, "Each is a way of its own to compute a step.")


def check_lr(group: Group) -> None:
    """Refuse a schedule whose number somebody else has written; take over one that was written in a number's place.

    A number of 0 is let through: torch's own checkpointing writes it for the step that makes the state. Nothing moves
    then but by a weight decay that does not follow the learning rate.
    """
    if group["lr"] is None:
        check_schedule("lr", None, at_least=0)
    _write_plain_lr(group)
    written = group["lr_schedule"] is not None and group["lr"] not in (group["lr_of_schedule"], 0.0)
    if group["lr_schedule"] is not None and (written or "initial_lr" in group):
        remedy = "Pass a number, which a scheduler or group['lr'] = ... may then change."
        raise refusal("lr", "a number under a torch.optim.lr_scheduler", group["lr_schedule"], remedy)


def _write_plain_lr(group: Group) -> None:
    lr = group["lr"]
    if callable(lr):
        group.update(split_lr(lr))
    elif isinstance(lr, Tensor):
        _check_tensor(lr)
    elif lr is not None:
        group["lr"] = check_schedule("lr", lr, at_least=0)
