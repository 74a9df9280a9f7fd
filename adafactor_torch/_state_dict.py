"""State dicts of tensors and plain values: how groups are saved, and which saved groups are refused.

`_saved_state` does the same for the state of a parameter.
"""

import copy
import json
from typing import Any

import numpy as np
from torch import Tensor

from adafactor_spec import FIELDS, from_plain, per_name, to_plain
from adafactor_spec.errors import check_number, plain_number, plain_text, refusal, shown
from adafactor_spec.factoring import Rule
from adafactor_spec.schedules import check_schedule

from ._param_groups import OPTIONS, Group, check_group, check_lr, number_in
from ._saved_state import check_tensor

StateDict = dict[str, Any]
# Schedules and rules are saved as JSON text: torch's checkpointing takes containers in a group apart.
_SAVED_AS_TEXT = (*FIELDS, "lr_schedule")
# A group says how its state is laid out. 1, which did not say so, is 2 without options, rounding among them.
FORMAT = 2
# How a step is computed is the machine's matter, not the run's: a state saved by one path goes on in another.
_OF_THE_MACHINE = ("foreach", "fused", "capturable")
KEYS = (*_SAVED_AS_TEXT, "lr_of_schedule", *OPTIONS)  # of a group, but for a user's own
_PLAIN = (bool, int, float, str, np.generic)
_REMEDY = "Load a state dict of adafactor_torch.Adafactor."
# What the parts of a value that was made up, and not saved, may raise where they are put together.
_OF_NONSENSE = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)


def encoded(state_dict: StateDict) -> StateDict:
    """The state dict with schedules and factoring rules as text, and a user's own values of NumPy's as Python's."""
    groups = [
        {key: _text(value) if key in _SAVED_AS_TEXT else _plain(value) for key, value in group.items()}
        | {"format": FORMAT}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def check_form(state_dict: Any) -> None:
    """Refuse what has not the containers of a state dict.

    Raises:
        ValueError: one is missing, or of another type, or a group has a value that cannot be copied.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        got = sorted(map(str, state_dict)) if isinstance(state_dict, dict) else state_dict
        raise refusal("state_dict", "a dict with 'state' and 'param_groups'", got, _REMEDY)
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, dict):
        raise refusal("'state' of the state dict", "a dict", state, _REMEDY)
    if not isinstance(groups, list | tuple):
        raise refusal("'param_groups' of the state dict", "a list of groups", groups, _REMEDY)
    for number, group in enumerate(groups):
        who = f"group {number} of the state dict"
        if not isinstance(group, dict) or not isinstance(group.get("params"), list | tuple):
            raise refusal(who, "a dict with a list of 'params'", group, _REMEDY)
        for key in group["params"]:
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise refusal(f"params of {who}", "the numbers of parameters", group["params"], _REMEDY)
        for key, value in group.items():  # torch copies them, a user's own too
            try:
                copy.deepcopy(value)
            except Exception as error:  # whatever somebody else's class raises
                must, remedy = "one that can be copied", "torch copies a user's own values, too."
                raise refusal(f"{shown(key)} of {who}", must, value, remedy) from error


def check_numbers(saved: StateDict, current: list[Group]) -> None:
    """Refuse numbers of parameters that are not one for each parameter, and state of a parameter in no group.

    Raises:
        ValueError: as said.
    """
    numbers: dict[Any, Tensor] = {}
    parameters: dict[Tensor, Any] = {}
    for number, (theirs, ours) in enumerate(zip(saved["param_groups"], current, strict=True)):
        for key, p in zip(theirs["params"], ours["params"], strict=True):
            if numbers.setdefault(key, p) is not p or parameters.setdefault(p, key) != key:
                who = f"params of group {number} of the state dict"
                raise refusal(who, "one number for each parameter", theirs["params"], _REMEDY)
    for key in saved["state"]:
        if key not in numbers:
            remedy = f"The groups name {', '.join(map(repr, numbers))}." if len(numbers) < 20 else _REMEDY
            raise refusal("each key of 'state' in the state dict", "the number of a parameter in a group", key, remedy)


def decoded(saved: list[Group], current: list[Group]) -> list[Group]:
    """The groups as they will stand after loading. A function is the one that the group in use has.

    Raises:
        ValueError: the groups are not those of an Adafactor of ours, or of a later version, a value in one is out of
            range, or a function is missing in the one in use.
    """
    pairs = zip(saved, current, strict=True)
    return [_decoded(f"group {number} of the state dict", *pair) for number, pair in enumerate(pairs)]


def _decoded(who: str, theirs: Group, ours: Group) -> Group:
    needed = (*_SAVED_AS_TEXT, "lr_of_schedule", *(OPTIONS if "format" in theirs else ("maximize",)))
    missing = [key for key in needed if key not in theirs]
    if missing:
        raise refusal(who, f"one with {', '.join(missing)}", sorted(map(str, theirs)), _REMEDY)
    version = theirs.get("format", 1)
    if type(version) is not int or not 1 <= version <= FORMAT:
        remedy = "A later version has saved it: use that or a newer one."
        raise refusal(f"format of {who}", f"1 to {FORMAT}", version, remedy)
    group = {**OPTIONS, **theirs, **{key: ours[key] for key in _OF_THE_MACHINE}, "params": ours["params"]}
    group.pop("format", None)
    if "param_names" in ours:
        group.setdefault("param_names", ours["param_names"])
    names = group.get("param_names", [""] * len(group["params"]))
    if not isinstance(names, list) or len(names) != len(group["params"]) or not all(isinstance(n, str) for n in names):
        raise refusal(f"param_names of {who}", "a list with one name for each parameter", names)
    try:
        group |= {
            key: _value(theirs[key], ours[key], key) for key in KEYS if key in theirs and key not in _OF_THE_MACHINE
        }
        _check_lr(group)
        check_group(group)
    except _OF_NONSENSE as error:
        fields = {key: theirs[key] for key in _SAVED_AS_TEXT}
        raise refusal(who, "one whose fields make a recipe", fields, f"{type(error).__name__}: {error}.") from error
    return group


def _check_lr(group: Group) -> None:
    if isinstance(group["lr"], Tensor):
        check_tensor("lr", group["lr"])
    elif callable(group["lr"]):
        raise refusal("lr", "the number that was in force", group["lr"])
    check_schedule("lr", number_in(group["lr"]), at_least=0)
    if group["lr_schedule"] is not None:
        if not callable(group["lr_schedule"]):
            raise refusal("lr_schedule", "a schedule or None", group["lr_schedule"])
        check_schedule("lr_schedule", group["lr_schedule"], at_least=0)
        check_number("lr_of_schedule", group["lr_of_schedule"], at_least=0)
    elif group["lr_of_schedule"] is not None:
        raise refusal("lr_of_schedule", "None without a schedule", group["lr_of_schedule"])
    check_lr(group)


def _plain(value: Any) -> Any:
    for plain in (plain_number(value), plain_text(value)):
        if plain is not None:
            return plain
    return bool(value) if isinstance(value, np.bool_) else value


def _text(value: Any) -> Any:
    plain = to_plain(value)
    return json.dumps(plain) if isinstance(plain, dict) else plain


def _value(saved: Any, current: Any, field: str) -> Any:
    argument = "lr" if field == "lr_schedule" else field
    if isinstance(saved, Tensor) and field == "lr":
        return saved.detach().clone()  # a scheduler writes into it
    # torch's ZeroRedundancyOptimizer saves schedules and rules as they are.
    if not (saved is None or isinstance(saved, _PLAIN) or callable(saved) or isinstance(saved, Rule | per_name)):
        raise refusal(argument, "a plain value", saved, _REMEDY)
    if isinstance(saved, str) and saved.startswith("{"):
        try:
            saved = json.loads(saved)
        except (ValueError, RecursionError) as error:
            raise refusal(argument, "a schedule or rule as text", saved, f"{error}.") from error
    return from_plain(saved, current, argument)
