"""Sharded parameters in plain torch: the parts that this process holds, in blocks or stacks, as in `backend.py`."""

from collections.abc import Iterator
from typing import Any

from ..._sharding.held import Held
from ..._sharding.process_groups import ProcessGroups
from ..._sharding.step_mask import StepMask
from ..._task.matrix_view import matrix_view
from ..._task.reductions import PHASES
from ..._task.shard import PartialSum, Sum
from ..._task.task import Amp
from . import backend as eager
from .blocks import BlockedTask
from .phases import is_dense_matrix, step_blocks, step_dense_matrix


def steps(held: list[Held], flags: StepMask, process_groups: ProcessGroups, amp: Amp) -> Iterator[list[PartialSum]]:
    """One step, in place; see `sharded.py` for where it pauses."""
    stacks = [_Stack(own, amp) for own in _alike(held)]
    running = [(stack, stack.phases(flags)) for stack in stacks]
    for phase in range(PHASES):
        sums = [(stack.lay, asked) for stack, phases in running for asked in next(phases)]
        yield [
            PartialSum(value, process_groups.of(lay.mesh, lay.dims_of(over)), lay.is_even((*over, *gone)))
            for lay, (value, over, gone) in sums
        ]
        for stack in stacks if phase == 0 else ():
            stack.decide(flags)
    for stack, phases in running:
        next(phases, None)
        stack.finish()


class _Stack:
    """Parameters that are stepped as one tensor, or one of them."""

    def __init__(self, held: list[Held], amp: Amp) -> None:
        self._places, self.lay = [one.place for one in held], held[0].lay
        self._tasks = [one.task for one in held]
        stack, plan, size = self._tasks[0], self.lay.plan, eager.BLOCK
        if len(held) > 1:
            stack, plan = eager.stacked(self._tasks, self.lay.plan)
            size = max(stack.p.numel(), matrix_view(plan).sizes[0])  # one block, also where no element is held here
        self._stack = stack
        self.part = BlockedTask(stack, plan, amp, size, of_one=self.lay.plan, piece=self.lay.piece)

    def phases(self, flags: StepMask) -> Iterator[list[Sum]]:
        """The way to step it, which need not be that of other processes: all ask for the same sums."""
        plain = is_dense_matrix(self.part) and not flags.doubts(self._places)
        return step_dense_matrix(self.part) if plain else step_blocks(self.part)

    def decide(self, flags: StepMask) -> None:
        """From the flags of all processes, which parameters take the step."""
        good = flags.good(self._places)
        if good is not None:
            self.part.leave_out(good)

    def finish(self) -> None:
        """Give every parameter what has been computed for the stack."""
        if len(self._tasks) > 1:
            eager.unstack(self._stack, self._tasks)


def _alike(held: list[Held]) -> list[list[Held]]:
    """Which tasks make a stack, the same ones on every process: nothing counts that is another thing on another."""
    kinds: dict[tuple[Any, ...], list[Held]] = {}
    for one in held:
        task, lay = one.task, one.lay
        now = task.now if task.t else id(task.now)
        kind = (task.config, lay, now, task.maximize, task.telemetry is None, task.p.device)
        kinds.setdefault(kind if lay.most < eager.SMALL else (*kind, one.place), []).append(one)
    chunks = []
    for own in kinds.values():
        at_once = max(1, eager.BLOCK // own[0].lay.most)
        chunks += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return chunks
