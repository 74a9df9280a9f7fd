"""Sharded parameters in plain torch: the elements that this process holds, in blocks or stacks, as in `backend.py`."""

from collections.abc import Iterator
from typing import Any

from ..._sharding.step_mask import StepMask
from ..._task.matrix_view import matrix_view
from ..._task.reductions import PHASES
from ..._task.shard import PartialSum, Sum
from ..._task.task import Amp, Task
from . import backend as eager
from .blocks import BlockedTask
from .phases import is_dense_matrix, step_blocks, step_dense_matrix


def steps(tasks: list[Task], mask: StepMask, amp: Amp) -> Iterator[list[PartialSum]]:
    """One step, in place; see `sharded.py` for where it pauses."""
    stacks = [_Stack(own, amp) for own in _alike(tasks)]
    running = [(stack, stack.phases(mask)) for stack in stacks]
    for phase in range(PHASES):
        sums = [(stack.shard, one) for stack, phases in running for one in next(phases)]
        yield [
            PartialSum(value, shard.groups_over(over), shard.is_uniform((*over, *gone)))
            for shard, (value, over, gone) in sums
        ]
        for stack in stacks if phase == 0 else ():
            stack.decide(mask)
    for stack, phases in running:
        next(phases, None)
        stack.finish()


class _Stack:
    """Parameters that are stepped as one tensor, or one of them."""

    def __init__(self, tasks: list[Task], amp: Amp) -> None:
        self._tasks, self.shard = tasks, tasks[0].shard
        stack, plan, size = tasks[0], self.shard.plan, eager.BLOCK
        if len(tasks) > 1:
            stack, plan = eager.stacked(tasks)
            size = max(stack.p.numel(), matrix_view(plan).sizes[0])  # one block, also where no element is held here
        self._stack = stack
        self.part = BlockedTask(stack, amp, size, plan)

    def phases(self, mask: StepMask) -> Iterator[list[Sum]]:
        """The way to step it, which need not be that of other processes: all ask for the same sums."""
        plain = is_dense_matrix(self.part) and not mask.doubts(self._tasks)
        return step_dense_matrix(self.part) if plain else step_blocks(self.part)

    def decide(self, mask: StepMask) -> None:
        """From the flags of all processes, which parameters take the step."""
        applies = mask.applies(self._tasks)
        if applies is not None:
            self.part.leave_out(applies)

    def finish(self) -> None:
        """Give every parameter what has been computed for the stack."""
        if len(self._tasks) > 1:
            eager.unstack(self._stack, self._tasks)


def _alike(tasks: list[Task]) -> list[list[Task]]:
    """Groups parameters into stacks by criteria that are equal on every process."""
    kinds: dict[tuple[Any, ...], list[Task]] = {}
    for place, task in enumerate(tasks):
        now = task.now if task.t else id(task.now)
        kind = (task.config, task.shard, now, task.maximize, task.telemetry is None, task.p.device)
        kinds.setdefault(kind if task.shard.most < eager.SMALL else (*kind, place), []).append(task)
    chunks = []
    for own in kinds.values():
        at_once = max(1, eager.BLOCK // own[0].shard.most)
        chunks += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return chunks
