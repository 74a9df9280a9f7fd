"""Decides which sharded parameters take this step.

A process sees only its own gradients: it cannot know alone whether another one has a gradient, or one that is not
finite. So the decision needs one all-reduce.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._task.finite import are_finite
from .._task.shard import GroupKey, PartialSum
from .._task.task import Amp, Task

PRESENT, BAD = 0, 1  # of a parameter's flags


class StepMask:
    """The flags of the tasks of one step: of this process, and once they have been summed up, of all.

    On a device nothing here is waited for, and how much it is asked does not depend on how many parameters there are,
    unless a step that the host counts may have to be taken back.

    Args:
        tasks: of the step, with the gradients of the elements that this process holds.
        amp: what a GradScaler says.
    """

    def __init__(self, tasks: Sequence[Task], amp: Amp) -> None:
        self._tasks, self._amp = tasks, amp
        self._places = {id(task): place for place, task in enumerate(tasks)}
        self._bad: dict[int, Tensor] = {}  # by place whether it is, of each gradient that has been looked at
        self._kinds: list[tuple[list[int], Tensor, tuple[GroupKey, ...]]] = []
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, task in enumerate(tasks):
            kinds.setdefault((task.p.device, id(task.shard.mesh), *task.shard.split), []).append(i)
        found: dict[int, tuple[Tensor, int]] = {}
        for own in kinds.values():
            first = tasks[own[0]]
            flags = torch.zeros((len(own), 2), dtype=torch.float32, device=first.p.device)
            # Nobody says of found_inf whether processes with the same part of a parameter have it alike.
            dims = first.shard.split if amp.found_inf is None else first.shard.several
            self._kinds.append((own, flags, first.shard.groups_along(dims)))
            found |= {i: (flags, row) for row, i in enumerate(own)}
        self._of = [found[i] for i in range(len(tasks))]  # flags of parameters of one kind, and which of them

    def report(self, tasks: Sequence[Task], bad: Tensor) -> None:
        """Say of some tasks whether their gradients here are not finite, so that nobody else has to look."""
        self._bad |= zip((self._places[id(task)] for task in tasks), bad.unbind(), strict=True)

    def partial_sums(self) -> list[PartialSum]:
        """Which parameters have a gradient, and which a bad one: to be summed up over the processes."""
        for own, flags, _ in self._kinds:
            flags[:, PRESENT] = 1.0
            for row, i in enumerate(own):
                if not self._tasks[i].has_grad:
                    flags[row, PRESENT] = 0.0
            if any(self._tasks[i].checks for i in own):
                flags[:, BAD] = self._whose_is_bad(own, flags.device)
            if self._amp.found_inf is not None:
                flags[:, BAD] += (self._amp.found_inf != 0).to(flags)
        return [PartialSum(flags, groups) for _, flags, groups in self._kinds]

    def applies(self, tasks: Sequence[Task]) -> Tensor | None:
        """Which of some tasks take the step, on their device; None where nobody here doubts it."""
        if not self.doubts(tasks):
            return None
        flags = self._summed(self._places[id(task)] for task in tasks)
        return (flags[:, PRESENT] > 0) & (flags[:, BAD] == 0)

    def doubts(self, tasks: Sequence[Task]) -> bool:
        """Whether some of the tasks may have to be left out, as far as is known here."""
        return any(map(self._doubts, tasks))

    def settle(self) -> None:
        """Say which steps have been left out, and take back their count."""
        doubted: dict[torch.device, list[int]] = {}
        for i in [i for i, task in enumerate(self._tasks) if self._doubts(task)]:
            doubted.setdefault(self._of[i][0].device, []).append(i)
        for places in doubted.values():
            self._settle([self._tasks[i] for i in places], self._summed(places))

    def _settle(self, tasks: list[Task], flags: Tensor) -> None:
        present, bad = flags[:, PRESENT] > 0, flags[:, BAD] > 0
        counted = [(task.skipped, one) for task, one in zip(tasks, (present & bad).long().unbind(), strict=True)]
        counters = [(skipped, one) for skipped, one in counted if skipped is not None]
        if counters:
            torch._foreach_add_(*map(list, zip(*counters, strict=True)))
        out = bad | ~present
        steps = [(task.state["step"], one) for task, one in zip(tasks, out.long().unbind(), strict=True) if not task.t]
        if steps:
            torch._foreach_sub_(*map(list, zip(*steps, strict=True)))
        if len(steps) < len(tasks):
            for task, taken_back in zip(tasks, out.tolist(), strict=True):
                if task.t and taken_back:
                    task.state["step"] -= 1
                    task.t = 0

    def _doubts(self, task: Task) -> bool:
        return task.skipped is not None or self._amp.found_inf is not None or not task.has_grad

    def _summed(self, places: Iterable[int]) -> Tensor:
        return torch.stack([flags[row] for flags, row in (self._of[i] for i in places)])

    def _whose_is_bad(self, own: list[int], device: torch.device) -> Tensor:
        grads = [(i, self._tasks[i].grad) for i in own if self._tasks[i].checks and i not in self._bad]
        looked_at = [(i, grad) for i, grad in grads if grad.numel()]
        if looked_at:
            self.report([self._tasks[i] for i, _ in looked_at], ~are_finite([grad for _, grad in looked_at]))
        fine = torch.zeros((), dtype=torch.bool, device=device)
        return torch.stack([self._bad.get(i, fine) for i in own]).float()
