"""State dicts of tensors and plain values, and state that is loaded with the dtype it is kept in."""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec import FIELDS, from_plain, to_plain
from adafactor_spec.errors import refusal

from ._groups import FLOATS, Group, named, plan_of, recipe_of
from ._phases import state_layout

StateDict = dict[str, Any]
_ENCODED = (*FIELDS, "lr_schedule")


def encoded(state_dict: StateDict) -> StateDict:
    """The state dict with schedules and factoring rules as plain values."""
    groups = [
        {key: to_plain(value) if key in _ENCODED else value for key, value in group.items()}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def decoded(state_dict: StateDict, current: list[Group]) -> StateDict:
    """The state dict with its schedules and rules again. A plain function is the one that `current` has."""
    groups = [
        {key: from_plain(value, group.get(key)) if key in _ENCODED else value for key, value in saved.items()}
        for saved, group in zip(state_dict["param_groups"], current, strict=False)
    ]
    return {**state_dict, "param_groups": groups + state_dict["param_groups"][len(groups) :]}


def restored(optimizer: torch.optim.Optimizer, saved: StateDict) -> dict[Tensor, dict[str, Tensor]]:
    """The state of every parameter that has one, on its device and in the dtype in which the recipe keeps it.

    torch casts floating-point state to the parameter's dtype when it loads; here float32 state stays float32.

    Raises:
        ValueError: the saved state of a parameter is not the one that its group's recipe keeps.
    """
    states = {}
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        recipe = recipe_of(group | {key: saved_group[key] for key in _ENCODED if key in saved_group})
        for (name, p), key in zip(named(group), saved_group["params"], strict=True):
            if key not in saved["state"]:
                continue
            state, layout = saved["state"][key], state_layout(recipe, plan_of(recipe, name, p), FLOATS[p.dtype])
            expected = {"step": (), **{entry: shape for entry, (shape, _) in layout.items()}}
            found = {entry: tuple(getattr(value, "shape", ())) for entry, value in state.items()}
            if found != expected:
                who = f"state of parameter {name or key!r}"
                remedy = "Build the optimizer with the recipe that the state was saved with."
                raise refusal(who, f"tensors of shapes {expected}", found, remedy)
            states[p] = {entry: state[entry].to(p.device, dtype, copy=True) for entry, (_, dtype) in layout.items()}
            states[p]["step"] = torch.tensor(float(state["step"]), dtype=torch.float32)
    return states
