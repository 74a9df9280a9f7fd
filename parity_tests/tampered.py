"""State dicts that nobody saved: what can be wrong in one, by name and drawn."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import factoring, schedules
from adafactor_torch import Adafactor

from .tampered_values import MOMENTS, ODD, STEPS, TENSORS, TEXTS, VALUES, cyclic
from .torch_runs import advance, parameters

StateDict = dict[str, Any]
Change = Callable[[StateDict], Any]  # changes it in its place, or gives another in its place

FIELDS: dict[str, Any] = {
    "lr": schedules.piecewise_constant(schedules.product(0.1, schedules.inverse_sqrt()), (3,), 0.5),
    "beta1": 0.9,
    "factoring": factoring.by_name({"^2$": factoring.explicit((1,), (2,), 0)}),
    "weight_decay": schedules.inverse_sqrt(),
    "rounding": "kahan",
}


def optimizer(dtype: torch.dtype = torch.bfloat16) -> Adafactor:
    """One with schedules, names, two groups and every entry that a state can have but `v_max`."""
    named = [(str(index), p) for index, p in enumerate(parameters(dtype))]
    second = {"params": named[3:], "amsgrad": True, "seed": 5}
    return Adafactor([{"params": named[:3]}, second], **FIELDS)


def saved() -> StateDict:
    """Its state dict after two steps."""
    source = optimizer()
    advance(source, 1, 2)
    return copy.deepcopy(source.state_dict())


def _entry(number: int, entry: str, value: Any) -> Change:
    def change(state_dict: StateDict) -> None:
        state_dict["state"][number][entry] = value(state_dict["state"][number][entry]) if callable(value) else value

    return change


def _group(key: str, value: Any) -> Change:
    return lambda state_dict: state_dict["param_groups"][0].update({key: value})


def _without(number: int, entry: str, of: str = "state") -> Change:
    return lambda state_dict: state_dict[of][number].pop(entry)


def _gives(value: Any) -> Change:
    return lambda state_dict: value


def _with(part: str, value: Any) -> Change:
    return lambda state_dict: {**state_dict, part: value}


_PLAIN_KEYS = ("lr_of_schedule", "lr_schedule", "factoring", "seed", "maximize", "rounding", "nonfinite", "amsgrad")
_NUMBERS = ("lr", "beta1", "eps1")
_FORMATS: tuple[Any, ...] = (3, 0, -1, 2.0, math.nan, True, "2", None, [2], (), torch.tensor(2), np.int64(2))
_NAMES: tuple[Any, ...] = (None, [], ["0"], ["0", "1", 2], ["0", "1", "2", "3"], "012", {"0": 1}, 3)
_PARAMS: tuple[Any, ...] = (
    None,
    3,
    "012",
    {0, 1},
    [0, 1, 1],
    [0, 1, 3],
    [0, 1, [2]],
    [0, 1, None],
    [0, 1, 2.0],
    [0, True, 2],
    [0, 1],
)
_NEEDED = ("params", "lr", "lr_schedule", "lr_of_schedule", "factoring", "seed", "rounding", "maximize", "capturable")
_NO_DICTS: tuple[Any, ...] = (None, [], 3, "{}", torch.ones(2), {})
_NO_CONTAINERS: tuple[Any, ...] = (None, 3, "text", torch.ones(2), {1, 2}, [[]], ["group"], [None])
GROUPS: dict[str, Change] = {
    **{
        f"{key}: {case}": _group(key, text)
        for key in ("lr_schedule", "factoring", "weight_decay")
        for case, text in TEXTS.items()
        if (key, case) != ("factoring", "a rule where a schedule stands")
    },
    **{f"{key}: {case}": _group(key, value) for key in (*_PLAIN_KEYS, *_NUMBERS) for case, value in VALUES.items()},
    **{f"format: {version!r}": _group("format", version) for version in _FORMATS},
    **{f"param_names: {names!r}": _group("param_names", names) for names in _NAMES},
    **{f"params: {params!r}": _group("params", params) for params in _PARAMS},
    **{f"without {key}": _without(0, key, "param_groups") for key in _NEEDED},
    "another learning rate than the schedule's": _group("lr", 0.123),
    "another beta1 than the state's": _group("beta1", None),
    "another factoring than the state's": _group("factoring", '{"kind": "no_factoring"}'),
    "another rounding than the state's": _group("rounding", "nearest"),
    "amsgrad, of which there is no state": _group("amsgrad", True),
    "another momentum's dtype than the state's": _group("momentum_dtype", "float64"),
}
CONTAINERS: dict[str, Change] = {
    **{f"no dict: {value!r}": _gives(value) for value in _NO_DICTS},
    **{f"{part}: {value!r}": _with(part, value) for part in ("state", "param_groups") for value in _NO_CONTAINERS},
    "no groups": lambda saved: {"state": saved["state"]},
    "groups are a dict": lambda saved: {**saved, "param_groups": dict(enumerate(saved["param_groups"]))},
    "a group too few": lambda saved: saved["param_groups"].pop(),
    "a state is a list": lambda saved: saved["state"].update({1: list(saved["state"][1].values())}),
    "a state is None": lambda saved: saved["state"].update({1: None}),
    "a state is empty": lambda saved: saved["state"].update({1: {}}),
    "a state of another": lambda saved: saved["state"].update({1: saved["state"][2]}),
    "a state inside itself": lambda saved: saved["state"][0].update(v_row=saved),
    "keys of a state are text": lambda saved: {**saved, "state": {str(k): x for k, x in saved["state"].items()}},
    "a key too many": lambda saved: saved["state"].update({7: saved["state"][1]}),
    "a key that is NaN": lambda saved: saved["state"].update({math.nan: saved["state"][1]}),
    "a key that is None": lambda saved: saved["state"].update({None: {}}),
    "an entry too many": lambda saved: saved["state"][0].update(exp_avg=torch.zeros(())),
    "an entry that is a number": lambda saved: saved["state"][0].update({3: torch.zeros(())}),
    **{f"without {entry}": _without(0, entry) for entry in ("step", "v_row", "v_col", "m", "compensation")},
    "without v_max": _without(3, "v_max"),
}
STATES: dict[str, Change] = {
    **{f"step: {case}": _entry(0, "step", step) for case, step in STEPS.items()},
    **{
        f"{entry} of {number}: {case}": _entry(number, entry, value)
        for number, entry in ((0, "v_row"), (0, "v_col"), (1, "v"), (2, "v_row"), (0, "m"), (0, "compensation"))
        for case, value in TENSORS.items()
    },
    **{
        f"{entry} of {number}: {case}": _entry(number, entry, value)
        for number, entry in ((0, "v_row"), (0, "v_col"), (1, "v"), (3, "v_max"))
        for case, value in MOMENTS.items()
        if (number, case) != (3, "negative beside NaN")  # which has one element only
    },
    "m: bfloat16": _entry(0, "m", lambda x: x.to(torch.bfloat16)),
    "compensation: float32": _entry(0, "compensation", lambda x: x.float()),
}
CASES: dict[str, Change] = {**CONTAINERS, **GROUPS, **STATES}


def _blown_up(saved: StateDict) -> None:
    saved["state"][0]["v_row"].fill_(math.inf)
    saved["state"][0]["m"].fill_(math.nan)
    saved["state"][1]["v"].fill_(math.nan)


# What looks wrong and is not.
FINE: dict[str, Change] = {
    "a step as a number": _entry(0, "step", 2),
    "a step as an integer tensor": _entry(0, "step", torch.tensor(2)),
    "a step as float64": _entry(0, "step", torch.tensor(2.0, dtype=torch.float64)),
    "step 0": _entry(0, "step", torch.tensor(0.0)),
    "a run that has blown up": _blown_up,
    "ordered dicts": lambda saved: OrderedDict({**saved, "state": OrderedDict(saved["state"])}),
    "groups in a tuple": lambda saved: {**saved, "param_groups": tuple(saved["param_groups"])},
    "keys of a user": lambda saved: saved["param_groups"][0].update({"note": [cyclic()], 3: None}),
    "more beside": lambda saved: {**saved, "epoch": 3},
    "no state": lambda saved: {**saved, "state": {}},
    "Parameters": _entry(0, "v_row", torch.nn.Parameter),
    "transposed memory": _entry(0, "m", lambda x: x.t().contiguous().t()),
    "one number for all": _entry(0, "v_row", lambda x: x.new_ones(()).expand(x.shape)),
    "a negative view": _entry(0, "m", torch._neg_view),
}


def changed(change: Change, state_dict: StateDict) -> Any:
    """A changed copy of a state dict; what a change gives back counts only where it is another state dict."""
    state_dict = copy.deepcopy(state_dict)
    given = change(state_dict)
    return given if change in _REPLACING or (isinstance(given, dict) and "state" in given) else state_dict


_REPLACING = {change for case, change in CONTAINERS.items() if case.startswith("no ")}


def drawn(random: Random, state_dict: StateDict) -> tuple[str, StateDict]:
    """A copy with one value somewhere in it left out, put elsewhere, or another in its place, and which one."""
    state_dict = copy.deepcopy(state_dict)
    places = [(path, holder) for path, holder in _places(state_dict)]
    path, holder = random.choice(places)
    what = random.choice(("less", "other", "other", "other", "swapped", "renamed"))
    if what == "less":
        holder.pop(path[-1])
    elif what == "other":
        case, value = random.choice([*VALUES.items(), *STEPS.items(), *TEXTS.items(), *ODD.items()])
        holder[path[-1]] = copy.deepcopy(value) if isinstance(value, Tensor) else value
        path = (*path, case)
    elif what == "swapped":
        other, theirs = random.choice(places)
        holder[path[-1]], theirs[other[-1]] = theirs[other[-1]], holder[path[-1]]
        path = (*path, *other)
    elif isinstance(holder, dict):
        holder[random.choice((0, "step", "v_row", "lr", "__class__", None, math.nan, True))] = holder.pop(path[-1])
    return f"{what}: {path}", state_dict


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(pairs):
        yield (*path, key), value
        yield from _places(item, (*path, key))
