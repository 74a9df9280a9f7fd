"""A step of DTensors: the phases on the parts that this process holds, and between them one sum per process group.

| | what is summed up | when |
|---|---|---|
| first | gradients that arrive as terms of a sum | where there are any |
| phase 1 | means of g^2 and p^2, who has a gradient, whose is not finite | always |
| between | the mean of R | where it is kept in 16 bits, and both rows and columns are split |
| phase 2 | means of u^2 | where updates are clipped or shown |
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _eager as eager
from ._blocks import Part, stepped
from ._canonical import canonical
from ._phases import Amp, Setting, Work
from ._pieces import Sum
from ._sharded import Lay, local_of
from ._sharded_gradients import Gradients
from ._wires import Wires

PRESENT, BAD = 0, 1  # of a parameter's flags


class Sharded:
    """What an optimizer remembers of its sharded parameters between steps."""

    def __init__(self) -> None:
        self._wires, self._gradients = Wires(), Gradients()
        self._lays: dict[tuple[Any, ...], Lay] = {}

    def step(self, works: list[Work], amp: Amp) -> None:
        """One step, in place, of works that are counted already. Where one is not to be, that is taken back.

        Args:
            works: of all groups, in the order of the parameters, those without a gradient here too.
            amp: what a GradScaler says.
        """
        lays = [self._lay(work.p, work.setting) for work in works]
        self._wires.begin((lay.mesh, range(lay.mesh.ndim)) for lay in lays)
        grads = self._gradients.of(works, lays, self._wires)
        stacks = [
            _Stack([works[i] for i in own], [grads[i] for i in own], lays[own[0]], amp) for own in _alike(works, lays)
        ]
        self._run(stacks)
        _settle(stacks)
        torch.autograd.graph.increment_version([work.p for work in works])

    def _run(self, stacks: list["_Stack"]) -> None:
        running: list[tuple[_Stack, Iterator[list[Sum]]]] = [(stack, stepped(stack.part)) for stack in stacks]
        first = True
        while running:
            asked, going = [], []
            for stack, phases in running:
                sums = next(phases, None)
                if sums is None:
                    continue
                going.append((stack, phases))
                sums = [*sums, stack.flags_asked] if first else sums
                for value, over in sums:
                    wires = self._wires.of(stack.lay.mesh, stack.lay.dims_of(over))
                    if wires and value.numel():
                        asked.append((value, wires))
            self._wires.add(asked)
            for stack, _ in going if first else ():
                stack.decide()
            running, first = going, False

    def _lay(self, p: Any, setting: Setting) -> Lay:
        key = id(p.device_mesh), p.placements, setting.plan
        known = self._lays.get(key)
        if known is None:
            known = self._lays[key] = Lay(p, setting.plan)
        return known


class _Stack:
    """Parameters that are stepped as one tensor, or one of them."""

    def __init__(self, works: list[Work], grads: list[Tensor | None], lay: Lay, amp: Amp) -> None:
        self.works, self.lay, self._all = works, lay, tuple(range(len(lay.whole.shape)))
        zero = local_of(works[0].p).new_zeros(())
        local = [_local(work, zero if grad is None else grad) for work, grad in zip(works, grads, strict=True)]
        self._local, setting = local, works[0].setting
        stack, plan, size = local[0], lay.plan, eager.BLOCK
        if len(local) > 1:
            stack, plan = eager.stacked(local, lay.plan)
            size = max(stack.p.numel(), 1)
        self._stack = stack
        self.part = Part(stack, plan, amp, size, of_one=lay.plan, piece=lay.piece)
        self._asks = any(work.skipped is not None for work in works) or amp.found_inf is not None
        self._missing = any(grad is None for grad in grads)
        self.flags = torch.ones((len(works), 2), dtype=setting.compute, device=stack.p.device)
        if self._missing:
            present = [[float(grad is not None)] for grad in grads]
            self.flags[:, :1] = torch.tensor(present, device=self.flags.device)
        self.flags[:, BAD] = self._bad(amp) if self._asks else 0.0
        self.good: Tensor | None = None

    @property
    def flags_asked(self) -> Sum:
        """Which parameters have a gradient, and which one that is not finite, on any process."""
        return Sum(self.flags, self._all)

    def decide(self) -> None:
        """From the flags of all processes, which parameters take the step."""
        if self._asks or self._missing:
            self.good = (self.flags[:, PRESENT] > 0) & (self.flags[:, BAD] == 0)
            each = canonical(self.lay.plan).sizes[0]
            self.part.good = self.good.repeat_interleave(each).view(-1, 1, 1, 1)

    def finish(self) -> None:
        """Give every parameter what has been computed for the stack, and say what was left out."""
        if len(self._local) > 1:
            eager.unstack(self._stack, self._local)
        for work, flags in zip(self.works, self.flags, strict=True):
            if work.skipped is not None:
                work.skipped += ((flags[PRESENT] > 0) & (flags[BAD] > 0)).to(work.skipped)

    def _bad(self, amp: Amp) -> Tensor:
        grad = self._stack.grad.reshape(len(self.works), -1)
        bad = ~torch.isfinite(grad).all(dim=1)
        if amp.found_inf is not None:
            bad = bad | (amp.found_inf.to(bad.device) != 0)
        return bad.to(self.flags.dtype)


def _local(work: Work, grad: Tensor) -> Work:
    """A work on the parts that this process holds."""
    p = local_of(work.p)
    state = {name: local_of(x) for name, x in work.state.items()}
    here = Work(p, grad.expand(p.shape), state, work.setting, work.now, work.key, work.maximize)
    here.telemetry = work.telemetry
    return here


def _alike(works: list[Work], lays: list[Lay]) -> list[list[int]]:
    """Which works make a stack, the same ones on every process: nothing counts that is another thing on another."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, (work, lay) in enumerate(zip(works, lays, strict=True)):
        now = work.now if work.t else id(work.now)
        kind = (work.setting, lay, now, work.maximize, work.telemetry is None, work.skipped is None, work.p.device)
        kinds.setdefault(kind if lay.most < eager.SMALL else (*kind, i), []).append(i)
    chunks = []
    for own in kinds.values():
        at_once = max(1, eager.BLOCK // lays[own[0]].most)
        chunks += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return chunks


def _settle(stacks: list[_Stack]) -> None:
    """Write back stacks, and take back the count of what was left out."""
    doubtful: list[tuple[Work, Tensor]] = []
    for stack in stacks:
        stack.finish()
        if stack.good is not None:
            doubtful += zip(stack.works, stack.good, strict=True)
    on_host = [(work, good) for work, good in doubtful if work.t]
    for work, good in doubtful:
        if not work.t:
            work.state["step"] -= (~good).to(work.state["step"])
    if on_host:
        taken = torch.stack([good for _, good in on_host]).tolist()
        for (work, _), good in zip(on_host, taken, strict=True):
            if not good:
                work.state["step"] -= 1.0
                work.t = 0
