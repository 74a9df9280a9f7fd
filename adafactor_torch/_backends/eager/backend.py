"""Steps parameters by torch's operators: large tensors block by block, small ones of one kind together as a stack.

A parameter is seen as [batch, lead, rows, columns] (`matrix_view.py`); a stack is one with more batch indices. The
phases are those of `reference.py`, on blocks of views, with the sums over all blocks between two phases.
"""

from collections.abc import Iterator
from typing import Any

import torch

from adafactor_spec.factoring import Plan

from ..._sharding.step_mask import StepMask
from ..._task.matrix_view import matrix_view
from ..._task.reductions import PHASES
from ..._task.shard import PartialSum
from ..._task.task import Amp, Task
from ..protocol import Backend, Batch, Done, Phases
from ..reference import may_apply, take_back
from .blocks import BlockedTask
from .phases import advance, advance_dense_matrix, is_dense_matrix, step_blocks, step_dense_matrix

# A tensor with fewer elements is stacked: up to here torch adds in one thread, and so in the same order in a stack.
SMALL = 1 << 15
# Elements of a block, and of a stack: what is made of one stays in a core's cache.
BLOCK = 1 << 18


class EagerBackend(Backend):
    """Eager torch, which steps everything everywhere."""

    name = "eager torch"

    def why_not(self, task: Task) -> str | None:
        """Why it does not step a task; None where it does."""
        return None

    def steps(self, batch: Batch, mask: StepMask | None, amp: Amp, done: Done) -> Phases:
        """The step, in blocks and in stacks."""
        return _step_whole(batch.tasks, amp, done) if mask is None else _step_shards(batch.tasks, mask, amp)


def _step_whole(tasks: list[Task], amp: Amp, done: Done) -> Phases:
    kinds: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        if task.p.numel() < SMALL:
            kinds.setdefault(_kind(task), []).append(task)
        else:
            _advance(BlockedTask(task, amp, BLOCK), [task])
            done([task])
            yield []
    for alike in kinds.values():
        at_once = max(1, BLOCK // max(alike[0].p.numel(), 1))
        for first in range(0, len(alike), at_once):
            _step_stack(alike[first : first + at_once], amp)
            done(alike[first : first + at_once])
            yield []


def _advance(part: BlockedTask, tasks: list[Task]) -> None:
    applies = may_apply(tasks, part.amp)
    if applies is not None:
        part.leave_out(applies)
    if applies is None and is_dense_matrix(part):
        advance_dense_matrix(part)
    else:
        advance(part)
    if applies is not None:
        take_back(tasks, applies)


def _kind(task: Task) -> tuple[Any, ...]:
    """What parameters of one stack have in common."""
    asked = task.maximize, task.telemetry is None, task.skipped is None
    return (task.config, id(task.now), *asked, task.grad.dtype, task.p.device)


def _step_stack(tasks: list[Task], amp: Amp) -> None:
    stack, plan = stacked(tasks)
    size = max(stack.p.numel(), matrix_view(plan).sizes[0])  # one block, also of tensors without elements
    _advance(BlockedTask(stack, amp, size, plan), tasks)
    unstack(stack, tasks)


def stacked(tasks: list[Task]) -> tuple[Task, Plan]:
    """Tasks of one kind as one, behind each other along a batch axis in front, and its plan."""
    first, config, of_one = tasks[0], tasks[0].config, tasks[0].shard.plan
    names = [name for name in first.state if name != "step"]
    state = {name: torch.stack([task.state[name] for task in tasks]) for name in names}
    p, grad = torch.stack([task.p for task in tasks]), torch.stack([task.grad for task in tasks])
    telemetry = [task.telemetry for task in tasks if task.telemetry is not None]
    stack = Task(p, grad, state, config, first.now, maximize=first.maximize)
    stack.shard = first.shard
    stack.telemetry = torch.cat(telemetry) if telemetry else None
    if config.rounds == "stochastic":
        keys = torch.tensor([task.key for task in tasks], dtype=torch.int64, device=p.device).to(torch.int32)
        stack.key = keys.repeat_interleave(matrix_view(of_one).sizes[0]).view(-1, 1, 1, 1)
    return stack, _stacked(of_one, len(tasks))


def unstack(stack: Task, tasks: list[Task]) -> None:
    """Give every task what has been computed for the stack."""
    torch._foreach_copy_([task.p for task in tasks], stack.p.unbind())
    for name, x in stack.state.items():
        torch._foreach_copy_([task.state[name] for task in tasks], x.unbind())
    if stack.telemetry is not None:
        telemetry = [task.telemetry for task in tasks if task.telemetry is not None]
        torch._foreach_copy_(telemetry, stack.telemetry.chunk(len(tasks)))


def _stacked(plan: Plan, count: int) -> Plan:
    """The plan of that many parameters behind each other, along a batch axis in front."""

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + 1 for axis in axes)

    view = None if plan.view is None else (count, *plan.view)
    return Plan((count, *plan.shape), moved(plan.rows), moved(plan.cols), (0, *moved(plan.batch)), view)


def _step_shards(tasks: list[Task], mask: StepMask, amp: Amp) -> Phases:
    stacks = [_Stack(own, amp) for own in _stacks_of_shards(tasks)]
    running = [(stack, stack.phases(mask)) for stack in stacks]
    for phase in range(PHASES):
        yield [one for _, phases in running for one in next(phases)]
        for stack in stacks if phase == 0 else ():
            stack.decide(mask)
    for stack, phases in running:
        next(phases, None)
        stack.finish()


class _Stack:
    """Parameters that are stepped as one tensor, or one of them."""

    def __init__(self, tasks: list[Task], amp: Amp) -> None:
        self._tasks, self.shard = tasks, tasks[0].shard
        stack, plan, size = tasks[0], self.shard.plan, BLOCK
        if len(tasks) > 1:
            stack, plan = stacked(tasks)
            size = max(stack.p.numel(), matrix_view(plan).sizes[0])  # one block, also where no element is held here
        self._stack = stack
        self.part = BlockedTask(stack, amp, size, plan)

    def phases(self, mask: StepMask) -> Iterator[list[PartialSum]]:
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
            unstack(self._stack, self._tasks)


def _stacks_of_shards(tasks: list[Task]) -> list[list[Task]]:
    """Groups parameters into stacks by criteria that are equal on every process."""
    kinds: dict[tuple[Any, ...], list[Task]] = {}
    for place, task in enumerate(tasks):
        now = task.now if task.t else id(task.now)
        kind = (task.config, task.shard, now, task.maximize, task.telemetry is None, task.p.device)
        kinds.setdefault(kind if task.shard.most < SMALL else (*kind, place), []).append(task)
    chunks = []
    for own in kinds.values():
        at_once = max(1, BLOCK // own[0].shard.most)
        chunks += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return chunks
