"""Parts of parameters as the processes of a mesh hold them, all stepped by the Triton kernels in this one process.

What processes would add up between them is added up here, so that this runs on a GPU, too.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adafactor_spec.factoring import Plan
from adafactor_torch._backends.triton import backend as _sharded_backend
from adafactor_torch._sharding.held import Held
from adafactor_torch._task.matrix_view import reduced_axes
from adafactor_torch._task.shard import Piece
from adafactor_torch._task.task import NO_AMP, Amp, Task
from parity_tests.torch_runs import Shape
from parity_tests.triton_runs import DEVICE

Splits = dict[int, int]  # dimension of the mesh, which has two places along each: axis that it splits
SPLITS: dict[str, Splits] = {"rows": {0: -2}, "columns": {0: -1}, "both": {0: -2, 1: -1}, "rows twice": {0: -2, 1: -2}}


def ranks_of(splits: Splits) -> list[Shape]:
    return list(itertools.product((0, 1), repeat=len(splits)))


class Lay:
    """What `adafactor_torch._sharding.dtensor.Lay` says of a part, from its place on the mesh."""

    mesh = "the mesh"

    def __init__(self, whole: Plan, splits: Splits, rank: Shape, contiguous: bool = True) -> None:
        self.dims = {dim: axis % len(whole.shape) for dim, axis in splits.items() if len(whole.shape) >= -axis}
        self.rank, self._whole = rank, whole
        shape = tuple(self.cut(torch.empty(whole.shape, device="meta")).shape)
        self.plan = Plan(shape, whole.rows, whole.cols, whole.batch, whole.view)
        self.piece = Piece(whole, frozenset(self.dims.values()), self._index if contiguous else self._indices)

    def dims_of(self, axes: Shape) -> tuple[int, ...]:
        return tuple(dim for dim, axis in self.dims.items() if axis in axes)

    def is_even(self, gone: Shape) -> bool:
        return True

    def cut(self, x: Tensor, reduced: Shape = ()) -> Tensor:
        """The part of a tensor; of uneven ones the last is the smallest, or has nothing."""
        for dim, axis in self.dims.items():
            if axis not in reduced:
                size = -(-x.shape[axis] // 2)
                first = min(self.rank[dim] * size, x.shape[axis])
                x = x.narrow(axis, first, min(size, x.shape[axis] - first))
        return x

    def _index(self) -> Tensor:
        return self.cut(torch.empty(self._whole.shape, device="meta"))

    def _indices(self) -> Tensor:
        count = int(np.prod(self._whole.shape))
        return self.cut(torch.arange(count, dtype=torch.int32).view(self._whole.shape))


class ProcessGroups:
    def of(self, mesh: str, dims: Shape) -> Shape:
        return dims


class StepMask:
    """Says which parameters take the step: all of them, or those whose places are not in `out`."""

    def __init__(self, *out: int, checks: bool = False) -> None:
        self._out, self._checks = out, checks
        self.bad: dict[int, bool] = {}

    def checks(self, place: int) -> bool:
        return self._checks

    def report(self, places: Sequence[int], bad: Tensor) -> None:
        self.bad |= dict(zip(places, bad.tolist(), strict=True))

    def good(self, places: Sequence[int]) -> Tensor | None:
        if not self._out:
            return None
        return torch.tensor([place not in self._out for place in places], device=DEVICE)


def steps_of(held: list[Held], flags: Any, amp: Amp = NO_AMP) -> Iterator[Any]:
    """The step of the kernels, over these process groups."""
    process_groups: Any = ProcessGroups()
    return _sharded_backend.steps(held, flags, process_groups, amp)


class Parts:
    """Parameters as the processes of the mesh hold them."""

    def __init__(self, tasks: Sequence[Task], splits: Splits, **how: Any) -> None:
        self.tasks, self._ranks = tasks, ranks_of(splits)
        lays = [[Lay(task.config.plan, splits, rank, **how) for task in tasks] for rank in self._ranks]
        self.of_rank = [[self._part(*one) for one in zip(tasks, own, range(len(tasks)), strict=True)] for own in lays]

    def _part(self, task: Task, lay: Any, place: int) -> Held:
        plan = task.config.plan
        state = {name: lay.cut(x, reduced_axes(name, plan)).clone() if x.ndim else x for name, x in task.state.items()}
        part = Task(lay.cut(task.p).clone(), lay.cut(task.grad).clone(), state, task.config, task.now)
        if task.telemetry is not None:
            part.telemetry = torch.zeros((_indices_of(lay.plan), 4), device=DEVICE)
        return Held(part, lay, place, part.p)

    def step(self, amp: Amp = NO_AMP, *out: int) -> list[list[int]]:
        """One step with the numbers and the gradients of the whole; how many sums were asked for at each pause."""
        for parts in self.of_rank:
            for one in parts:
                task, whole, lay = one.task, self.tasks[one.place], cast(Lay, one.lay)
                task.now, task.key, task.maximize = whole.now, whole.key, whole.maximize
                task.grad.copy_(lay.cut(whole.grad))
        running = [steps_of(parts, StepMask(*out), amp) for parts in self.of_rank]
        asked = []
        for _ in range(3):
            values: list[Any] = [next(steps) for steps in running]
            asked.append([len(value) for value in values])
            self._add(values)
        assert not any(next(steps, None) for steps in running)
        return asked

    def each(self) -> Iterator[tuple[int, Any, str, Tensor, Shape]]:
        """Place and lay of every part, and name, value and reduced axes of its tensors."""
        for parts in self.of_rank:
            for one in parts:
                plan = one.task.config.plan
                for name, x in {"p": one.task.p, **one.task.state}.items():
                    if name != "step":
                        yield one.place, one.lay, name, x, reduced_axes(name, plan)

    def _add(self, asked: list[list[tuple[Tensor, Shape]]]) -> None:
        """Replace every value by its sum over the processes along its dimensions."""
        for values in zip(*asked, strict=True):
            for dim in range(len(self._ranks[0])):
                for first, rank in enumerate(self._ranks):
                    if dim in values[first][1] and not rank[dim]:
                        second = self._ranks.index((*rank[:dim], 1, *rank[dim + 1 :]))
                        total = values[first][0] + values[second][0]
                        for i in (first, second):
                            values[i][0].copy_(total)


def _indices_of(plan: Plan) -> int:
    return int(np.prod([plan.shape[axis] for axis in plan.batch]))
