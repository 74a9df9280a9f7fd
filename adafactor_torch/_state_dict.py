"""State dicts of tensors and plain values, and state that is loaded with the dtype it is kept in."""

import json
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import FIELDS, from_plain, to_plain
from adafactor_spec.errors import refusal

from ._groups import FLOATS, OPTIONS, Group, check_options, counts_on_device, named, plan_of, recipe_of
from ._phases import Setting
from ._sharded import laid

StateDict = dict[str, Any]
# Schedules and rules are saved as JSON text: torch's checkpointing takes containers in a group apart.
_SAVED_AS_TEXT = (*FIELDS, "lr_schedule")
# A group says how its state is laid out. 1, which did not say so, is 2 without options, rounding among them.
FORMAT = 2
# How a step is computed is the machine's matter, not the run's: a state saved by one path goes on in another.
_OF_THE_MACHINE = ("foreach", "fused", "capturable")


def encoded(state_dict: StateDict) -> StateDict:
    """The state dict with schedules and factoring rules as text."""
    groups = [
        {key: _text(value) if key in _SAVED_AS_TEXT else value for key, value in group.items()} | {"format": FORMAT}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def decoded(saved: list[Group], current: list[Group]) -> list[Group]:
    """What every saved group says of a recipe and of the options. A function is the one that the group in use has.

    Raises:
        ValueError: the groups are not those of an Adafactor of ours, or of a later version, or a function is missing
            in the one in use.
    """
    groups = []
    for number, (theirs, ours) in enumerate(zip(saved, current, strict=True)):
        missing = [key for key in (*_SAVED_AS_TEXT, "lr_of_schedule", "maximize") if key not in theirs]
        if missing:
            remedy = "Load a state dict of adafactor_torch.Adafactor."
            raise refusal(f"group {number} of the state dict", f"one with {', '.join(missing)}", sorted(theirs), remedy)
        if theirs.get("format", 1) not in range(1, FORMAT + 1):
            remedy = "A later version has saved it: use that or a newer one."
            raise refusal(f"format of group {number} of the state dict", f"1 to {FORMAT}", theirs["format"], remedy)
        options = {key: theirs.get(key, value) for key, value in OPTIONS.items()}
        options |= {key: ours[key] for key in _OF_THE_MACHINE}
        values = {key: _value(theirs[key], ours[key], key) for key in _SAVED_AS_TEXT} | options
        check_options(ours | values)
        groups.append(values)
    return groups


def restored(saved: StateDict, current: list[Group], values: list[Group]) -> dict[Tensor, dict[str, Tensor]]:
    """The state of every parameter that has one, on its device and in the dtype in which the recipe keeps it.

    torch casts floating-point state to the parameter's dtype when it loads; here float32 state stays float32. `values`
    are the saved groups as `decoded` gives them.

    Raises:
        ValueError: a saved value is out of range, or the saved state of a parameter is not the one that its group's
            recipe keeps.
    """
    states = {}
    for group, saved_group, fields in zip(current, saved["param_groups"], values, strict=True):
        recipe = recipe_of(group)
        stored = recipe_of(group | {"lr_of_schedule": saved_group["lr_of_schedule"]} | fields)
        rounding = fields["rounding"]
        for (name, p), key in zip(named(group), saved_group["params"], strict=True):
            if key not in saved["state"]:
                continue
            plan, dtype = plan_of(recipe, name, p), FLOATS[p.dtype]
            state, layout = saved["state"][key], Setting(recipe.for_name(name), plan, dtype, rounding).layout
            expected = {"step": (), **{entry: shape for entry, (shape, _) in layout.items()}}
            found = {entry: tuple(getattr(value, "shape", ())) for entry, value in state.items()}
            if found != expected:
                who = f"state of parameter {name!r}" if name else f"state of parameter {key}"
                remedy = "Build the optimizer with the recipe that the state was saved with."
                raise refusal(who, f"tensors of shapes {expected}", found, remedy)
            # The dtypes are those of the recipe that goes on.
            layout = layout | Setting(stored.for_name(name), plan, dtype, rounding).layout
            states[p] = {
                e: laid(state[e].to(p.device, layout[e][1], copy=True), p, e, plan) for e in state if e != "step"
            }
            place = p.device if counts_on_device(group | fields, p) else "cpu"
            states[p]["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=place).clone()
    return states


def _text(value: Any) -> Any:
    plain = to_plain(value)
    return json.dumps(plain) if isinstance(plain, dict) else plain


def _value(saved: Any, current: Any, argument: str) -> Any:
    if isinstance(saved, Tensor):
        return saved.clone()  # a scheduler writes into it
    plain = json.loads(saved) if isinstance(saved, str) and saved.startswith("{") else saved
    return from_plain(plain, current, "lr" if argument == "lr_schedule" else argument)
