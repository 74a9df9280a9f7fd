"""Eager torch in cache-sized passes: large tensors block by block, small ones of one kind as a stack.

A parameter is seen as [batch, lead, rows, columns] (`matrix_view.py`); a stack of parameters is one with more batch
indices. The phases are those of `reference.py` on blocks of views; between two of them stand the sums over all blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch

from adafactor_spec.factoring import Plan

from ..._task.matrix_view import matrix_view
from ..._task.task import Amp, Task
from ..reference import fine, take_back
from .blocks import BlockedTask
from .phases import advance, advance_plain, is_dense_matrix

# A tensor with fewer elements is stacked: up to here torch adds in one thread, and so in the same order in a stack.
SMALL = 1 << 15
# Elements of a block, and of a stack: what is made of one stays in a core's cache.
BLOCK = 1 << 18


def step(tasks: list[Task], amp: Amp) -> Iterator[list[Task]]:
    """One step of every parameter, in place. What it yields is stepped."""
    kinds: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        if task.p.numel() < SMALL:
            kinds.setdefault(_kind(task), []).append(task)
        else:
            _advance(BlockedTask(task, amp, BLOCK), [task])
            yield [task]
    for alike in kinds.values():
        at_once = max(1, BLOCK // max(alike[0].p.numel(), 1))
        for first in range(0, len(alike), at_once):
            _step_stack(alike[first : first + at_once], amp)
            yield alike[first : first + at_once]


def _advance(part: BlockedTask, tasks: list[Task]) -> None:
    good = fine(tasks, part.amp)
    if good is not None:
        part.leave_out(good)
    if good is None and is_dense_matrix(part):
        advance_plain(part)
    else:
        advance(part)
    if good is not None:
        take_back(tasks, good)


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
    told = [task.telemetry for task in tasks if task.telemetry is not None]
    stack = Task(p, grad, state, config, first.now, maximize=first.maximize)
    stack.shard = first.shard
    stack.telemetry = torch.cat(told) if told else None
    if config.stochastic:
        keys = torch.tensor([task.key for task in tasks], dtype=torch.int64, device=p.device).to(torch.int32)
        stack.key = keys.repeat_interleave(matrix_view(of_one).sizes[0]).view(-1, 1, 1, 1)
    return stack, _stacked(of_one, len(tasks))


def unstack(stack: Task, tasks: list[Task]) -> None:
    """Give every task what has been computed for the stack."""
    torch._foreach_copy_([task.p for task in tasks], stack.p.unbind())
    for name, x in stack.state.items():
        torch._foreach_copy_([task.state[name] for task in tasks], x.unbind())
    if stack.telemetry is not None:
        told = [task.telemetry for task in tasks if task.telemetry is not None]
        torch._foreach_copy_(told, stack.telemetry.chunk(len(tasks)))


def _stacked(plan: Plan, count: int) -> Plan:
    """The plan of that many parameters behind each other, along a batch axis in front."""

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + 1 for axis in axes)

    view = None if plan.view is None else (count, *plan.view)
    return Plan((count, *plan.shape), moved(plan.rows), moved(plan.cols), (0, *moved(plan.batch)), view)
