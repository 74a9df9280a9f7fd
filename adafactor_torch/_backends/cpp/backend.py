"""`fused=True` on a CPU for sharded parameters: the C++ in `src/`, phase by phase, on the parts that are held here.

All parts are in one table, so a phase is one call. What it adds up over this process's elements it writes into buffers
that are laid out so that whatever is summed over the same process groups at the same time lies together. The sum of p^2
that is carried from step to step (`compiled.py`) is that of a part.
"""

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..._sharding.held import Held
from ..._sharding.process_groups import Wires
from ..._sharding.step_mask import Flags
from ..._task.matrix_view import canonical
from ..._task.reductions import Share, mean_of_rows, shares_of
from ..._task.shard import Asked
from ..._task.task import Amp
from . import build as _native
from .compiled import Compiled
from .table import Table

_BEGIN, _MIDDLE, _END = range(3)  # `Phase` of part.cpp
_PHASE_BEFORE = {0: _BEGIN, 2: _MIDDLE}  # a pause


class CompiledParts:
    """Steps parts of parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self.compiled = Compiled()
        self._table: _Table | None = None

    def takes(self, one: Held, wires: Wires) -> bool:
        """Whether a part is stepped here, on every process alike; which, is asked for once on each mesh.

        A tensor without elements is not, nor one whose R has to be written before its mean is known.
        """
        work, lay = one.work, one.lay
        if not work.fused or not work.p.is_cpu or 0 in lay.whole.shape:
            return False
        if mean_of_rows(work.setting, lay.piece) == "stored":
            return False
        return wires.all_have("library", lay.mesh, lambda: _native.library("shard") is not None)

    def steps(self, held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
        """One step, in place; see `sharded.py` for where it pauses."""
        library, works = _native.library("shard"), [one.work for one in held]
        assert library is not None
        table = self._table_of(held, wires)
        table.begin(library, works, amp, self.compiled.carries)
        table.run(library, _BEGIN)
        yield table.asked[_BEGIN]
        table.leave_out(flags.good([one.place for one in held]))
        yield []
        table.run(library, _MIDDLE)
        yield table.asked[_MIDDLE]
        table.run(library, _END)
        self.compiled.notice(table.end(works))

    def _table_of(self, held: list[Held], wires: Wires) -> "_Table":
        """The table of the last step, where the same parts are stepped again."""
        if self._table is None or self._table.held is not held or not self._table.lasts:
            rows = [self.compiled.row(one.of, one.work, one.lay) for one in held]
            if self._table is None or self._table.rows != rows:
                self._table = _Table(held, rows, wires)
            self._table.held = held
        return self._table


class _Table(Table):
    """The arguments of the C++ for some parts, and the buffers of what they share."""

    def __init__(self, held: list[Held], rows: list[Any], wires: Wires) -> None:
        super().__init__([one.work for one in held], rows)
        self.held = held
        self.asked: dict[int, list[Asked]] = {_BEGIN: [], _MIDDLE: []}
        self._told = any(one.work.telemetry is not None for one in held)
        kinds: dict[tuple[Any, ...], list[tuple[int, Share]]] = {}
        for row, one in enumerate(held):
            piece, whole = one.lay.piece, one.lay.whole
            self._of["all_rows"][row], self._of["all_cols"][row] = piece.count(whole.rows), piece.count(whole.cols)
            self._of["all"][row] = piece.per_batch
            told = one.work.telemetry is not None
            shares = shares_of(one.work.setting, one.lay.plan, piece, told)
            if whole.factored:  # room for what nobody else needs
                shares.append(Share("norms", 0, math.prod(canonical(one.lay.plan).sizes[:2]), ()))
            for share in shares:
                groups = tuple(wires.of(one.lay.mesh, one.lay.dims_of(share.over)))
                even = one.lay.is_even((*share.over, *share.gone))
                kind = one.work.setting.compute, _PHASE_BEFORE[share.pause], groups, even
                kinds.setdefault(kind, []).append((row, share))
        self._buffers = [self._laid(shares, *kind) for kind, shares in kinds.items()]

    def _laid(
        self, shares: list[tuple[int, Share]], dtype: torch.dtype, phase: int, groups: tuple[Any, ...], even: bool
    ) -> Tensor:
        buffer = torch.zeros(sum(share.size for _, share in shares), dtype=dtype, device="cpu")
        place = buffer.data_ptr()
        for row, share in shares:
            self._of[share.name][row] = place
            place += share.size * buffer.itemsize
        self.asked[phase].append(Asked(buffer, list(groups), even))
        return buffer

    def begin(self, library: ctypes.CDLL, works: list[Any], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone. A part without elements writes no shares: they are zeros."""
        super().begin(library, works, amp, carries)
        for buffer in self._buffers:
            buffer.zero_()
        if self._told:
            self._of["telemetry"] = [0 if work.telemetry is None else work.telemetry.data_ptr() for work in works]

    def _versions(self, works: list[Any]) -> list[int]:
        # Operators on a DTensor count as writes of that alone, those on its part as writes of that alone.
        return [one.of._version + one.work.p._version for one in self.held]

    def leave_out(self, good: Tensor | None) -> None:
        """Only what is good is to be written."""
        self._of["skip"] = 0 if good is None else (~good).numpy()
