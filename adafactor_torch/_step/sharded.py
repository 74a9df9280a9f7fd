"""A step of DTensors: the phases on the parts that this process holds, and between them one sum per process group.

| | what is summed up | when |
|---|---|---|
| first | gradients that arrive as terms of a sum | where there are any |
| phase 1 | means of g^2 and p^2, who has a gradient, whose is not finite | always |
| between | the mean of R | where it is kept in 16 bits, and both rows and columns are split |
| phase 2 | means of u^2 | where updates are clipped or shown |

A path is a generator over the parameters that it steps. It pauses three times, before each of the last three sums, with
what it asks for, and goes on when that has been summed up in place; then it writes. So all paths share the sums.
What it asks for, and in which order, follows from plans, placements and options alone, and so is the same everywhere.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from .._backends.cpp.backend import CompiledParts
from .._backends.eager import stacks
from .._backends.triton.parts import TritonParts
from .._sharding.dtensor import local_of, shard_of
from .._sharding.gradient_placements import GradientPlacements
from .._sharding.process_groups import ProcessGroups
from .._sharding.step_mask import StepMask
from .._task.reductions import PHASES
from .._task.shard import PartialSum, Shard
from .._task.task import NO_GRADIENT, Amp, ParamConfig, Task

_Path = Callable[[list[Task], StepMask, Amp], Iterator[list[PartialSum]]]


class Prepared(NamedTuple):
    """All that a step of sharded parameters needs."""

    tasks: list[Task]
    known: "_Known"
    mask: StepMask
    paths: list[Iterator[list[PartialSum]]]


class Sharded:
    """What an optimizer remembers of its sharded parameters between steps."""

    def __init__(self) -> None:
        self._process_groups, self._gradients = ProcessGroups(), GradientPlacements()
        self._shards: dict[tuple[Any, ...], Shard] = {}
        self._compiled, self._triton = CompiledParts(), TritonParts()
        self._before: _Known | None = None

    def arrive(self, tasks: list[Task]) -> None:
        """Give tasks the gradients of the elements that this process holds, before any of them is counted.

        Args:
            tasks: of all groups, in the order of the parameters, those without a gradient here too.

        Raises:
            RuntimeError: processes disagree about how one arrives.
            ValueError: one arrives in a way that it cannot be added up.
        """
        if self._before is None or not self._before.are_of(tasks):
            for task in tasks:
                task.shard = self._shard(task.param, task.config)
        meshes = {id(task.shard.mesh): task.shard.mesh for task in tasks}.values()
        self._process_groups.begin((mesh, range(mesh.ndim)) for mesh in meshes)
        for task, grad in zip(tasks, self._gradients.of(tasks, self._process_groups), strict=True):
            task.has_grad = grad is not None
            task.grad = NO_GRADIENT if grad is None else grad

    def prepare(self, tasks: list[Task], amp: Amp) -> Prepared:
        """Which path steps which parameter, on all processes alike, and what it is told of it.

        Args:
            tasks: those that have arrived, with complete states.
            amp: what a GradScaler says.
        """
        known = self._before
        if known is None or not known.are_of(tasks):
            known = _Known(tasks)
            for task in tasks:
                _hold(task)
        self._before = None
        for task in tasks:
            if not task.config.by_address:
                task.p.copy_(local_of(task.param))
            if not task.has_grad:
                task.grad = task.p.new_zeros(()).expand(task.p.shape)
        mask = StepMask(tasks, amp)
        return Prepared(tasks, known, mask, [steps(some, mask, amp) for steps, some in self._paths(known)])

    def step(self, prepared: Prepared) -> None:
        """One step, in place, of tasks that are counted already. Where one is not to be, that is taken back."""
        tasks, known, mask, paths = prepared
        for phase in range(PHASES):
            sums = [one for path in paths for one in next(path)]
            self._process_groups.all_reduce([*sums, *mask.partial_sums()] if phase == 0 else sums)
        torch.autograd.graph.increment_version([task.param for task in tasks])  # now: paths may remember the versions
        for path in paths:
            next(path, None)
        for task in tasks:
            if not task.config.by_address:
                _put_back(task, mask)
        mask.settle()
        for task in tasks:
            task.grad = NO_GRADIENT
        self._before = known

    def warn(self) -> None:
        """Say what the step has noticed."""
        self._compiled.compiled.warn()

    def _paths(self, known: "_Known") -> list[tuple[_Path, list[Task]]]:
        """The paths that step all tasks between them, in one order everywhere, each with its own."""
        if known.paths is None:
            kinds: tuple[list[Task], ...] = [], [], []
            takers = self._compiled.takes, self._triton.takes
            for task in known.tasks:
                which = next((i for i, takes in enumerate(takers) if takes(task, self._process_groups)), len(takers))
                kinds[which].append(task)
            paths: tuple[_Path, ...] = self._compiled.steps, self._triton.steps, stacks.steps
            known.paths = [(path, some) for path, some in zip(paths, kinds, strict=True) if some]
        return known.paths

    def _shard(self, p: Any, config: ParamConfig) -> Shard:
        key = id(p.device_mesh), p.placements, config.plan
        known = self._shards.get(key)
        if known is None:
            groups = self._process_groups.of(p.device_mesh, range(p.device_mesh.ndim))
            known = self._shards[key] = shard_of(p, config.plan, groups)
        return known


class _Known:
    """The tasks of a step and who steps them: the same in a step with the same tasks."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks
        self.paths: list[tuple[_Path, list[Task]]] | None = None

    def are_of(self, tasks: list[Task]) -> bool:
        """Whether these are the same tasks; there are other ones in every step that had to look at all of them."""
        return len(tasks) == len(self.tasks) and all(map(operator.is_, tasks, self.tasks))


def _hold(task: Task) -> None:
    """Give a task the local tensors of its parameter and its state."""
    task.p, task.state = local_of(task.param), {name: local_of(x) for name, x in task.stored.items()}
    if not task.config.by_address:  # of a class that only torch's operators can read: a copy is stepped
        task.p = torch.empty(task.p.shape, dtype=task.p.dtype, device=task.p.device)


def _put_back(task: Task, mask: StepMask) -> None:
    """Write a parameter that has been stepped in a copy where it belongs."""
    local, applies = local_of(task.param), mask.applies([task])
    local.copy_(task.p if applies is None else torch.where(applies, task.p, local))
