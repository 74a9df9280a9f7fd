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
from adafactor_torch._backends.triton import shard_step as _shard_step
from adafactor_torch._task.matrix_view import reduced_axes
from adafactor_torch._task.shard import GroupKey, PartialSum, Shard
from adafactor_torch._task.task import NO_AMP, Amp, Task
from parity_tests.torch_runs import Shape
from parity_tests.triton_runs import DEVICE

Splits = dict[int, int]  # dimension of the mesh, which has two places along each: axis that it splits
SPLITS: dict[str, Splits] = {"rows": {0: -2}, "columns": {0: -1}, "both": {0: -2, 1: -1}, "rows twice": {0: -2, 1: -2}}


def ranks_of(splits: Splits) -> list[Shape]:
    return list(itertools.product((0, 1), repeat=len(splits)))


def group_of(dim: int) -> GroupKey:
    """The process group along a dimension of the mesh."""
    return (dim,), DEVICE.type


class Part(Shard):
    """What a place of the mesh holds of a parameter."""

    def __init__(self, whole: Plan, splits: Splits, rank: Shape, contiguous: bool = True) -> None:
        self.split = {dim: axis % len(whole.shape) for dim, axis in splits.items() if len(whole.shape) >= -axis}
        self.rank = rank
        shape = tuple(self.cut(torch.empty(whole.shape, device="meta")).shape)
        plan, groups = Plan(shape, whole.rows, whole.cols, whole.batch, whole.view), [group_of(dim) for dim in splits]
        index, sizes = self._block if contiguous else self._scattered, (2,) * len(splits)
        super().__init__(whole, plan, self.split, sizes=sizes, groups=groups, mesh="the mesh", index=index)

    def is_uniform(self, removed: Shape) -> bool:
        return True

    def cut(self, x: Tensor, reduced: Shape = ()) -> Tensor:
        """The part of a tensor; of uneven ones the last is the smallest, or has nothing."""
        for dim, axis in self.split.items():
            if axis not in reduced:
                size = -(-x.shape[axis] // 2)
                first = min(self.rank[dim] * size, x.shape[axis])
                x = x.narrow(axis, first, min(size, x.shape[axis] - first))
        return x

    def _block(self) -> Tensor:
        return self.cut(torch.empty(self.whole.shape, device="meta"))

    def _scattered(self) -> Tensor:
        count = int(np.prod(self.whole.shape))
        return self.cut(torch.arange(count, dtype=torch.int32).view(self.whole.shape))


class StepMask:
    """Says which of some parts take the step: all of them, or those whose places are not in `out`."""

    def __init__(self, tasks: Sequence[Task], *out: int) -> None:
        self._places, self._out = [id(task) for task in tasks], out
        self.bad: dict[int, bool] = {}

    def report(self, tasks: Sequence[Task], bad: Tensor) -> None:
        self.bad |= dict(zip(map(self._place, tasks), bad.tolist(), strict=True))

    def applies(self, tasks: Sequence[Task]) -> Tensor | None:
        if not self._out:
            return None
        return torch.tensor([self._place(task) not in self._out for task in tasks], device=DEVICE)

    def _place(self, task: Task) -> int:
        return self._places.index(id(task))


def steps_of(tasks: list[Task], mask: Any, amp: Amp = NO_AMP) -> Iterator[list[PartialSum]]:
    """The step of the kernels."""
    return _shard_step.steps(tasks, mask, amp)


class Parts:
    """Parameters as the processes of the mesh hold them."""

    def __init__(self, tasks: Sequence[Task], splits: Splits, **how: Any) -> None:
        self.tasks, self._ranks = tasks, ranks_of(splits)
        shards = [[Part(task.config.plan, splits, rank, **how) for task in tasks] for rank in self._ranks]
        self.of_rank = [[self._part(*one) for one in zip(tasks, own, strict=True)] for own in shards]

    def _part(self, task: Task, shard: Part) -> Task:
        plan = task.config.plan
        state = {
            name: shard.cut(x, reduced_axes(name, plan)).clone() if x.ndim else x for name, x in task.state.items()
        }
        part = Task(shard.cut(task.p).clone(), shard.cut(task.grad).clone(), state, task.config, task.now)
        part.shard = shard
        if task.telemetry is not None:
            part.telemetry = torch.zeros((_indices_of(shard.plan), 4), device=DEVICE)
        return part

    def step(self, amp: Amp = NO_AMP, *out: int) -> list[list[int]]:
        """One step with the numbers and the gradients of the whole; how many sums were asked for at each pause."""
        for parts in self.of_rank:
            for task, whole in zip(parts, self.tasks, strict=True):
                task.now, task.key, task.maximize = whole.now, whole.key, whole.maximize
                task.grad.copy_(cast(Part, task.shard).cut(whole.grad))
        running = [steps_of(parts, StepMask(parts, *out), amp) for parts in self.of_rank]
        asked = []
        for _ in range(3):
            sums = [next(steps) for steps in running]
            asked.append([len(of_rank) for of_rank in sums])
            self._add(sums)
        assert not any(next(steps, None) for steps in running)
        return asked

    def each(self) -> Iterator[tuple[int, Part, str, Tensor, Shape]]:
        """Place and shard of every part, and name, value and reduced axes of its tensors."""
        for parts in self.of_rank:
            for place, task in enumerate(parts):
                plan = task.config.plan
                for name, x in {"p": task.p, **task.state}.items():
                    if name != "step":
                        yield place, cast(Part, task.shard), name, x, reduced_axes(name, plan)

    def _add(self, sums: list[list[PartialSum]]) -> None:
        """Replace every value by its sum over the processes of its groups."""
        for values in zip(*sums, strict=True):
            for dim in range(len(self._ranks[0])):
                for first, rank in enumerate(self._ranks):
                    if group_of(dim) in values[first].groups and not rank[dim]:
                        second = self._ranks.index((*rank[:dim], 1, *rank[dim + 1 :]))
                        total = values[first].value + values[second].value
                        for i in (first, second):
                            values[i].value.copy_(total)


def _indices_of(plan: Plan) -> int:
    return int(np.prod([plan.shape[axis] for axis in plan.batch]))
