"""Sharded parameters stepped by the C++, for the processes of a test: what it remembers, and when it is left alone."""

import math
import warnings
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from adafactor_torch import Adafactor
from adafactor_torch._backends.cpp import build as _build

from . import sharded_runs as runs
from .sharded_runs import Shape

SOME: tuple[Shape, ...] = ((13, 27), (16, 8), (27,))


def _both(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> tuple[Adafactor, Adafactor]:
    """A sharded optimizer and one of whole tensors, both fused."""
    made = []
    for layout in (name, "plain"):
        params = [torch.nn.Parameter(runs.laid(layout, i, x)) for i, x in enumerate(runs.start(dtype, SOME))]
        made.append(Adafactor([(f"p{i}", p) for i, p in enumerate(params)], fused=True, **{"lr": 0.05, **fields}))
    return made[0], made[1]


def _advance(name: str, both: tuple[Adafactor, Adafactor], first: int, last: int) -> None:
    for layout, optimizer in zip((name, "plain"), both, strict=True):
        runs.advance(layout, optimizer, first, last)


def _error(both: tuple[Adafactor, Adafactor]) -> float:
    ours, theirs = (optimizer.param_groups[0]["params"] for optimizer in both)
    return runs.error(ours, [p.detach() for p in theirs], runs.start(theirs[0].dtype, SOME))


def without_library(name: str) -> tuple[float, int]:
    """(Error of a run in which the last process has no compiled library, parameters that the C++ has stepped)."""
    optimizer, plain = _both(name)
    last = dist.get_rank() == dist.get_world_size() - 1
    with mock.patch.object(_build, "library", (lambda unit: None) if last else _build.library):
        runs.advance(name, optimizer, 1, 3)
    runs.advance("plain", plain, 1, 3)
    backends: Any = optimizer._driver._runner.backends
    return _error((optimizer, plain)), len(backends[0].rows)


def thawed(name: str) -> float:
    """The error of a run in which a parameter takes part from the third step on, then without a gradient here or there.

    That it takes part is seen by a process that has no gradient of it, too.
    """
    both = _both(name)
    last = dist.get_rank() == dist.get_world_size() - 1
    for t in range(1, 5):
        whole = runs.gradients(t, torch.float64, SOME)
        for layout, optimizer in zip((name, "plain"), both, strict=True):
            params = optimizer.param_groups[0]["params"]
            params[1].requires_grad_(t > 2)
            for i, (p, g) in enumerate(zip(params, whole, strict=True)):
                p.grad = runs.laid(layout, i, g)
            if t < 3:
                params[1].grad = None
            elif layout == name:
                if last:
                    runs.local(params[1].grad).zero_()
                whole[1] = params[1].grad.full_tensor()
                params[1].grad = None if last else params[1].grad
            optimizer.step()
    return _error(both)


def written_between(name: str) -> float:
    """The error of a run in which parameters are written between two steps, as their version counters show.

    The step that finds it out is left out, and the next one has to know it still.
    """
    both = _both(name, nonfinite="skip")
    _advance(name, both, 1, 3)
    for layout, optimizer in zip((name, "plain"), both, strict=True):
        with torch.no_grad():
            for p in optimizer.param_groups[0]["params"]:
                p.mul_(2.0)
        runs.advance(layout, optimizer, 4, 4, scale=math.inf)
    _advance(name, both, 4, 6)
    return _error(both)


def written_unseen(name: str) -> tuple[list[list[str]], float]:
    """(Warnings of three steps, sharded and not, before which parameters are written behind torch's back; the error).

    A step that is surprised has used the sums of p^2 from before, sharded as well as not.
    """
    both = _both(name)
    _advance(name, both, 1, 2)
    said: list[list[str]] = []
    for layout, optimizer in zip((name, "plain"), both, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in (3, 4, 5):
                for p in optimizer.param_groups[0]["params"]:
                    runs.local(p).data.mul_(1.5)
                runs.advance(layout, optimizer, t, t)
        said.append([str(warning.message) for warning in caught])
    return said, _error(both)


def compensated(name: str) -> float:
    """How far bfloat16 parameters with their compensations are from those of one process, relative to them."""
    both = _both(name, torch.bfloat16, rounding="kahan")
    _advance(name, both, 1, 5)
    worst = 0.0
    for p, q in zip(*(optimizer.param_groups[0]["params"] for optimizer in both), strict=True):
        ours = runs.local(p).double() + runs.local(both[0].state[p]["compensation"])
        theirs = runs.part_of(q.detach().double() + both[1].state[q]["compensation"], p)
        worst = max(worst, float(((ours - theirs) / theirs).abs().max().nan_to_num(nan=math.inf)))
    return worst
