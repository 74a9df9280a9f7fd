"""Eager torch in cache-sized passes: large tensors block by block, small ones of one kind as a stack.

A parameter is seen as [batch, lead, rows, columns] (`matrix_view.py`); a stack of parameters is one with more batch
indices. The phases are those of `reference.py` on blocks of views; between two of them stand the sums over all blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch

from adafactor_spec.factoring import Plan

from ..._task.matrix_view import canonical
from ..._task.task import Amp, Work
from ..reference import fine, take_back
from .blocks import Part
from .phases import advance, advance_plain, is_plain

# A tensor with fewer elements is stacked: up to here torch adds in one thread, and so in the same order in a stack.
SMALL = 1 << 15
# Elements of a block, and of a stack: what is made of one stays in a core's cache.
BLOCK = 1 << 18


def step(works: list[Work], amp: Amp) -> Iterator[list[Work]]:
    """One step of every parameter, in place. What it yields is stepped."""
    kinds: dict[tuple[Any, ...], list[Work]] = {}
    for work in works:
        if work.p.numel() < SMALL:
            kinds.setdefault(_kind(work), []).append(work)
        else:
            _advance(Part(work, work.setting.plan, amp, BLOCK), [work])
            yield [work]
    for alike in kinds.values():
        at_once = max(1, BLOCK // max(alike[0].p.numel(), 1))
        for first in range(0, len(alike), at_once):
            _step_stack(alike[first : first + at_once], amp)
            yield alike[first : first + at_once]


def _advance(part: Part, works: list[Work]) -> None:
    good = fine(works, part.amp)
    if good is not None:
        part.leave_out(good)
    if good is None and is_plain(part):
        advance_plain(part)
    else:
        advance(part)
    if good is not None:
        take_back(works, good)


def _kind(work: Work) -> tuple[Any, ...]:
    """What parameters of one stack have in common."""
    asked = work.maximize, work.telemetry is None, work.skipped is None
    return (work.setting, id(work.now), *asked, work.grad.dtype, work.p.device)


def _step_stack(works: list[Work], amp: Amp) -> None:
    of_one = works[0].setting.plan
    stack, plan = stacked(works, of_one)
    size = max(stack.p.numel(), canonical(plan).sizes[0])  # one block, also of tensors without elements
    _advance(Part(stack, plan, amp, size, of_one=of_one), works)
    unstack(stack, works)


def stacked(works: list[Work], of_one: Plan) -> tuple[Work, Plan]:
    """Works of one kind as one, behind each other along a batch axis in front, and its plan.

    `of_one` is the plan of one of them.
    """
    first, setting = works[0], works[0].setting
    names = [name for name in first.state if name != "step"]
    state = {name: torch.stack([work.state[name] for work in works]) for name in names}
    p, grad = torch.stack([work.p for work in works]), torch.stack([work.grad for work in works])
    told = [work.telemetry for work in works if work.telemetry is not None]
    stack = Work(p, grad, state, setting, first.now, maximize=first.maximize)
    stack.telemetry = torch.cat(told) if told else None
    if setting.stochastic:
        keys = torch.tensor([work.key for work in works], dtype=torch.int64, device=p.device).to(torch.int32)
        stack.key = keys.repeat_interleave(canonical(of_one).sizes[0]).view(-1, 1, 1, 1)
    return stack, _stacked(of_one, len(works))


def unstack(stack: Work, works: list[Work]) -> None:
    """Give every work what has been computed for the stack."""
    torch._foreach_copy_([work.p for work in works], stack.p.unbind())
    for name, x in stack.state.items():
        torch._foreach_copy_([work.state[name] for work in works], x.unbind())
    if stack.telemetry is not None:
        told = [work.telemetry for work in works if work.telemetry is not None]
        torch._foreach_copy_(told, stack.telemetry.chunk(len(works)))


def _stacked(plan: Plan, count: int) -> Plan:
    """The plan of that many parameters behind each other, along a batch axis in front."""

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis + 1 for axis in axes)

    view = None if plan.view is None else (count, *plan.view)
    return Plan((count, *plan.shape), moved(plan.rows), moved(plan.cols), (0, *moved(plan.batch)), view)
