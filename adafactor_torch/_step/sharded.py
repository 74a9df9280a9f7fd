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

from torch import Tensor

from .._backends.cpp.backend import CompiledParts
from .._backends.eager import stacks as _sharded_stacks
from .._backends.triton.parts import TritonParts
from .._sharding.dtensor import Lay
from .._sharding.gradient_placements import GradientPlacements
from .._sharding.held import Held, held, take
from .._sharding.process_groups import ProcessGroups
from .._sharding.step_mask import StepMask
from .._task.reductions import PHASES
from .._task.shard import PartialSum
from .._task.task import NO_GRADIENT, Amp, ParamConfig, Task, mark_written

_Path = Callable[[list[Held], StepMask, ProcessGroups, Amp], Iterator[list[PartialSum]]]


class Arrived(NamedTuple):
    """How the parameters of a step lie, and the parts of their gradients."""

    lays: list[Lay]
    grads: list[Tensor | None]


class Prepared(NamedTuple):
    """All that a step of sharded parameters needs."""

    tasks: list[Task]
    parts: "_Parts"
    flags: StepMask
    paths: list[Iterator[list[PartialSum]]]


class Sharded:
    """What an optimizer remembers of its sharded parameters between steps."""

    def __init__(self) -> None:
        self._process_groups, self._gradients = ProcessGroups(), GradientPlacements()
        self._lays: dict[tuple[Any, ...], Lay] = {}
        self._compiled, self._triton = CompiledParts(), TritonParts()
        self._before: _Parts | None = None

    def arrive(self, tasks: list[Task]) -> Arrived:
        """The gradients of a step, of which no task is counted yet.

        Args:
            tasks: of all groups, in the order of the parameters, those without a gradient here too.

        Raises:
            RuntimeError: processes disagree about how one arrives.
            ValueError: one arrives in a way that it cannot be added up.
        """
        known = self._before
        if known is not None and known.are_of(tasks):
            lays = known.lays
        else:
            lays = [self._lay(task.p, task.config) for task in tasks]
        meshes = {id(lay.mesh): lay.mesh for lay in lays}.values()
        self._process_groups.begin((mesh, range(mesh.ndim)) for mesh in meshes)
        return Arrived(lays, self._gradients.of(tasks, lays, self._process_groups))

    def prepare(self, tasks: list[Task], arrived: Arrived, amp: Amp) -> Prepared:
        """Which path steps which parameter, on all processes alike, and what it is told of it.

        Args:
            tasks: those that have arrived, with complete states.
            arrived: what `arrive` gave.
            amp: what a GradScaler says.
        """
        known = self._before
        if known is None or not known.are_of(tasks):
            known = _Parts(tasks, arrived.lays)
        self._before = None
        flags = StepMask(tasks, known.lays, arrived.grads, self._process_groups, amp)
        for one, task, grad in zip(known.parts, tasks, arrived.grads, strict=True):
            take(one, task, grad)
        paths = [steps(some, flags, self._process_groups, amp) for steps, some in self._paths(known)]
        return Prepared(tasks, known, flags, paths)

    def step(self, prepared: Prepared) -> None:
        """One step, in place, of tasks that are counted already. Where one is not to be, that is taken back."""
        tasks, known, flags, paths = prepared
        for pause in range(PHASES):
            asked = [one for path in paths for one in next(path)]
            self._process_groups.all_reduce([*asked, *flags.partial_sums()] if pause == 0 else asked)
        mark_written(tasks)  # now: paths may remember the versions
        for path in paths:
            next(path, None)
        for one in known.parts:
            if not one.task.config.by_address:
                one.put_back(flags.good([one.place]))
        flags.settle()
        known.forget_gradients()
        self._before = known

    def warn(self) -> None:
        """Say what the step has noticed."""
        self._compiled.compiled.warn()

    def _paths(self, known: "_Parts") -> list[tuple[_Path, list[Held]]]:
        """The paths that step all parts between them, in one order everywhere, each with its own."""
        if known.paths is None:
            kinds: tuple[list[Held], ...] = [], [], []
            for part in known.parts:
                takers = self._compiled.takes, self._triton.takes
                which = next((i for i, takes in enumerate(takers) if takes(part, self._process_groups)), len(takers))
                kinds[which].append(part)
            paths: tuple[_Path, ...] = self._compiled.steps, self._triton.steps, _sharded_stacks.steps
            known.paths = [(path, some) for path, some in zip(paths, kinds, strict=True) if some]
        return known.paths

    def _lay(self, p: Any, config: ParamConfig) -> Lay:
        key = id(p.device_mesh), p.placements, config.plan
        known = self._lays.get(key)
        if known is None:
            known = self._lays[key] = Lay(p, config.plan)
        return known


class _Parts:
    """What a step makes of its tasks but for the values, which a step with the same tasks has alike."""

    def __init__(self, tasks: list[Task], lays: list[Lay]) -> None:
        self.lays, self._tasks = lays, tasks
        self.parts = [held(task, lay, place) for place, (task, lay) in enumerate(zip(tasks, lays, strict=True))]
        self.paths: list[tuple[_Path, list[Held]]] | None = None

    def are_of(self, tasks: list[Task]) -> bool:
        """Whether these are the same tasks; there are other ones in every step that had to look at all of them."""
        return len(tasks) == len(self._tasks) and all(map(operator.is_, tasks, self._tasks))

    def forget_gradients(self) -> None:
        """Hold no gradient from one step to the next."""
        for task in (*self._tasks, *(one.task for one in self.parts)):
            task.grad = NO_GRADIENT
