"""Checkpoints of sharded runs through torch.distributed.checkpoint, for the processes of a test."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as write

from adafactor_torch import Adafactor

from . import sharded_runs as runs
from .sharded_runs import Shape
from .torch_runs import Array

SHAPES: tuple[Shape, ...] = ((13, 27), (45, 13), (3, 6), (27,), (6, 5, 9))
FIELDS: dict[str, Any] = {"lr": 0.05, "beta1": 0.9, "weight_decay": 0.01}
HALF = runs.STEPS // 2
PLACES = ("plain", "rows of two", "columns of two", "rows", "hybrid", "row", "column")


class Model(torch.nn.Module):
    """Parameters with names, as checkpoints know them."""

    def __init__(self, name: str, shapes: tuple[Shape, ...] = SHAPES) -> None:
        super().__init__()
        for i, x in enumerate(runs.start(torch.float64, shapes)):
            self.register_parameter(f"p{i}", torch.nn.Parameter(runs.laid(name, i, x)))


def _both(name: str, shapes: tuple[Shape, ...] = SHAPES) -> tuple[Model, Adafactor]:
    model = Model(name, shapes)
    return model, Adafactor(model.named_parameters(), **FIELDS)


def _parts(model: Model, optimizer: Adafactor) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


def _without_placements(parts: dict[str, Any]) -> dict[str, Any]:
    """The same parts with every tensor of the state as a plain one, of this process's share."""
    states = parts["optimizer"]["state"]
    plain = {name: {entry: runs.local(x) for entry, x in state.items()} for name, state in states.items()}
    return {"model": parts["model"], "optimizer": {**parts["optimizer"], "state": plain}}


def _group(name: str) -> Any:
    return runs.meshes()["pair"].get_group() if name.endswith(" of two") else None


def single() -> list[Array]:
    """The parameters of an uninterrupted run of one process."""
    model, optimizer = _both("plain")
    runs.advance("plain", optimizer, 1, runs.STEPS)
    return [p.detach().numpy() for p in model.parameters()]


def save(folder: Path) -> None:
    """Half a run in every layout, saved."""
    runs.meshes()
    for name in PLACES:
        if runs.is_in(name):
            model, optimizer = _both(name)
            runs.advance(name, optimizer, 1, HALF)
            write(_parts(model, optimizer), checkpoint_id=folder / name, process_group=_group(name))


def resume(folder: Path, saved: str, name: str, expected: list[Array], state: bool = True) -> float:
    """The error of the other half of a run, in a layout, from what was saved in one, or only from the weights in it."""
    if not runs.is_in(name):
        return 0.0
    model, optimizer = _both(name)
    parts = _parts(model, optimizer)
    load(parts, checkpoint_id=folder / saved, process_group=_group(name))
    model.load_state_dict(parts["model"])
    if state:
        set_optimizer_state_dict(model, optimizer, parts["optimizer"])
    else:
        optimizer = Adafactor(model.named_parameters(), **FIELDS)
    runs.advance(name, optimizer, HALF + 1, runs.STEPS)
    return runs.error(model.parameters(), map(torch.tensor, expected), runs.start(torch.float64, SHAPES))


def plain_state(folder: Path, shapes: tuple[Shape, ...]) -> float | str:
    """The error of a run gone on with in its own layout from shares that were saved as plain tensors, or torch's words.

    What an Adafactor does that keeps its factors like that.
    """
    model, optimizer = _both("rows", shapes)
    runs.advance("rows", optimizer, 1, HALF)
    write(_without_placements(_parts(model, optimizer)), checkpoint_id=folder)
    runs.advance("rows", optimizer, HALF + 1, runs.STEPS)
    resumed, again = _both("rows", shapes)
    parts = _parts(resumed, again)
    try:
        load(_without_placements(parts), checkpoint_id=folder)
    except CheckpointException as error:
        return str(error)
    resumed.load_state_dict(parts["model"])
    set_optimizer_state_dict(resumed, again, parts["optimizer"])
    runs.advance("rows", again, HALF + 1, runs.STEPS)
    uninterrupted: list[Any] = list(model.parameters())
    theirs = [p.detach().full_tensor() for p in uninterrupted]
    return runs.error(resumed.parameters(), theirs, runs.start(torch.float64, shapes))


def from_whole_state(name: str, expected: list[Array]) -> float:
    """The error of half a run in a layout from the plain state dict of one process: nothing is moved by hand."""
    if not runs.is_in(name):
        return 0.0
    model, optimizer = _both("plain")
    runs.advance("plain", optimizer, 1, HALF)
    sharded, resumed = _both(name)
    for i, (p, x) in enumerate(zip(sharded.parameters(), model.parameters(), strict=True)):
        p.data.copy_(runs.laid(name, i, x.detach()))
    resumed.load_state_dict(optimizer.state_dict())
    runs.advance(name, resumed, HALF + 1, runs.STEPS)
    return runs.error(sharded.parameters(), map(torch.tensor, expected), runs.start(torch.float64, SHAPES))


def fresh(name: str, fields: dict[str, Any]) -> bool:
    """Whether asking a new optimizer for its state dict leaves it and every weight what they were."""
    if not runs.is_in(name):
        return True
    model = Model(name)
    before = [runs.local(p).clone() for p in model.parameters()]
    for options in (StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)):  # the second: torchtitan
        asked, loaded = (Adafactor(model.named_parameters(), **fields) for _ in range(2))
        saved = get_optimizer_state_dict(model, asked, options=options)
        set_optimizer_state_dict(model, loaded, saved, options=options)
        for optimizer in (asked, loaded):
            states = [x for state in optimizer.state.values() for x in state.values()]
            if not states or any(bool(runs.local(x).any()) for x in states):
                return False
    return all(torch.equal(runs.local(p), old) for p, old in zip(model.parameters(), before, strict=True))
