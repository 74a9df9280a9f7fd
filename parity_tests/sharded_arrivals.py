"""Gradients that arrive in other placements than their parameters, for the processes of a test."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from adafactor_torch import Adafactor

from . import sharded_runs as runs
from .sharded_runs import Shape

SHAPES: tuple[Shape, ...] = ((13, 27), (16, 8), (27,))
STEPS = 5
WAYS = ("terms", "averaged", "whole", "turned")


def _made(name: str) -> tuple[list[Any], Adafactor]:
    params = [torch.nn.Parameter(runs.laid(name, i, x)) for i, x in enumerate(runs.start(torch.float64, SHAPES))]
    # A common factor of all gradients would not show without an eps1 of their size.
    return params, Adafactor([(f"p{i}", p) for i, p in enumerate(params)], lr=0.05, beta1=0.9, eps1=0.3)


def _arriving(p: Any, whole: torch.Tensor, way: str, missing: bool) -> DTensor:
    """A gradient of p, of which this process's part is zeros if it is missing here."""
    mesh = p.device_mesh
    if way in ("terms", "averaged"):
        local = whole * (0.25 + dist.get_rank())  # no two processes have the same
        made = DTensor.from_local(
            local, mesh, [Partial("sum" if way == "terms" else "avg")] * mesh.ndim, run_check=False
        )
    else:
        placement = Replicate() if way == "whole" else Shard(whole.ndim - 1)
        made = distribute_tensor(whole, mesh, [placement] * mesh.ndim, src_data_rank=None)
    if missing:
        runs.local(made).zero_()
    return made


def arriving(name: str, way: str) -> tuple[float, dict[str, int]]:
    """The error of a run whose gradients arrive in a way, each missing on one process in every step, the first too.

    And the collectives of a step in which none is missing.
    """
    (params, optimizer), (theirs, plain) = (_made(layout) for layout in (name, "plain"))
    for t in range(1, STEPS + 1):
        for i, whole in enumerate(runs.gradients(t, torch.float64, SHAPES)):
            missing = (t + i) % dist.get_world_size() == dist.get_rank()
            grad = _arriving(params[i], whole.clone(), way, missing)
            theirs[i].grad = grad.redistribute(placements=params[i].placements).full_tensor()
            params[i].grad = None if missing else grad
        optimizer.step()
        plain.step()
    error = runs.error(params, [p.detach() for p in theirs], runs.start(torch.float64, SHAPES))
    for p, whole in zip(params, runs.gradients(1, torch.float64, SHAPES), strict=True):
        p.grad = _arriving(p, whole, way, missing=False)
    with CommDebugMode() as mode:
        optimizer.step()
    return error, {str(kind): count for kind, count in mode.get_comm_counts().items() if count}


def nowhere() -> list[float]:
    """The steps of parameters whose gradients arrive as terms of a sum, the second one's in every other step."""
    params, optimizer = _made("copies")
    for t in range(1, STEPS + 1):
        for i, whole in enumerate(runs.gradients(t, torch.float64, SHAPES)):
            params[i].grad = None if i == 1 and t % 2 else _arriving(params[i], whole, "terms", missing=False)
        optimizer.step()
    return [float(optimizer.state[p]["step"]) for p in params]


def refusals() -> tuple[str, str]:
    params, optimizer = _made("copies")
    grads = runs.gradients(1, torch.float64, SHAPES)

    def give(way: str) -> None:
        for p, whole in zip(params, grads, strict=True):
            p.grad = _arriving(p, whole, way, missing=False)

    give("terms" if dist.get_rank() == 1 else "whole")
    with pytest.raises(RuntimeError, match="cannot agree") as differing:
        optimizer.step()
    assert not optimizer.state  # nothing has been counted or made
    params, optimizer = _made("copies")
    give("whole")
    optimizer.step()
    give("terms")
    with pytest.raises(RuntimeError, match="cannot agree") as changed:
        optimizer.step()
    return str(differing.value), str(changed.value)
