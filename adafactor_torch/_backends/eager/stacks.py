"""Sharded parameters in plain torch: the parts that this process holds, in blocks or stacks, as in `backend.py`."""

from collections.abc import Iterator
from typing import Any

from ..._sharding.held import Held
from ..._sharding.process_groups import Wires
from ..._sharding.step_mask import Flags
from ..._task.matrix_view import canonical
from ..._task.reductions import PAUSES
from ..._task.shard import Asked, Sum
from ..._task.task import Amp
from . import backend as eager
from .blocks import Part
from .phases import is_plain, stepped, stepped_plain


def steps(held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
    """One step, in place; see `sharded.py` for where it pauses."""
    stacks = [_Stack(own, amp) for own in _alike(held)]
    running = [(stack, stack.phases(flags)) for stack in stacks]
    for phase in range(PAUSES):
        sums = [(stack.lay, asked) for stack, phases in running for asked in next(phases)]
        yield [
            Asked(value, wires.of(lay.mesh, lay.dims_of(over)), lay.is_even((*over, *gone)))
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
        self._works = [one.work for one in held]
        stack, plan, size = self._works[0], self.lay.plan, eager.BLOCK
        if len(held) > 1:
            stack, plan = eager.stacked(self._works, self.lay.plan)
            size = max(stack.p.numel(), canonical(plan).sizes[0])  # one block, also where no element is held here
        self._stack = stack
        self.part = Part(stack, plan, amp, size, of_one=self.lay.plan, piece=self.lay.piece)

    def phases(self, flags: Flags) -> Iterator[list[Sum]]:
        """The way to step it, which need not be that of other processes: all ask for the same sums."""
        plain = is_plain(self.part) and not flags.doubts(self._places)
        return stepped_plain(self.part) if plain else stepped(self.part)

    def decide(self, flags: Flags) -> None:
        """From the flags of all processes, which parameters take the step."""
        good = flags.good(self._places)
        if good is not None:
            self.part.leave_out(good)

    def finish(self) -> None:
        """Give every parameter what has been computed for the stack."""
        if len(self._works) > 1:
            eager.unstack(self._stack, self._works)


def _alike(held: list[Held]) -> list[list[Held]]:
    """Which works make a stack, the same ones on every process: nothing counts that is another thing on another."""
    kinds: dict[tuple[Any, ...], list[Held]] = {}
    for one in held:
        work, lay = one.work, one.lay
        now = work.now if work.t else id(work.now)
        kind = (work.setting, lay, now, work.maximize, work.telemetry is None, work.p.device)
        kinds.setdefault(kind if lay.most < eager.SMALL else (*kind, one.place), []).append(one)
    chunks = []
    for own in kinds.values():
        at_once = max(1, eager.BLOCK // own[0].lay.most)
        chunks += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return chunks
