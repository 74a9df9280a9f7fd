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
from ..._sharding.process_groups import ProcessGroups
from ..._sharding.step_mask import StepMask
from ..._task.matrix_view import matrix_view
from ..._task.reductions import Reduction, reductions_of, row_mean_source
from ..._task.shard import PartialSum
from ..._task.task import Amp
from . import build as _native
from .compiled import Compiled
from .table import TaskTable

_BEGIN, _MIDDLE, _END = range(3)  # `Phase` of part.cpp
_PHASE_BEFORE = {0: _BEGIN, 2: _MIDDLE}  # a pause


class CompiledParts:
    """Steps parts of parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self.compiled = Compiled()
        self._table: _Table | None = None

    def takes(self, one: Held, process_groups: ProcessGroups) -> bool:
        """Whether a part is stepped here, on every process alike; which, is asked for once on each mesh.

        A tensor without elements is not, nor one whose R has to be written before its mean is known.
        """
        task, lay = one.task, one.lay
        if not task.fused or not task.p.is_cpu or 0 in lay.whole.shape:
            return False
        if row_mean_source(task.config, lay.piece) == "stored":
            return False
        return process_groups.agree("library", lay.mesh, lambda: _native.library("shard") is not None)

    def steps(
        self, held: list[Held], flags: StepMask, process_groups: ProcessGroups, amp: Amp
    ) -> Iterator[list[PartialSum]]:
        """One step, in place; see `sharded.py` for where it pauses."""
        library, tasks = _native.library("shard"), [one.task for one in held]
        assert library is not None
        table = self._table_of(held, process_groups)
        table.begin(library, tasks, amp, self.compiled.carries)
        table.run(library, _BEGIN)
        yield table.asked[_BEGIN]
        table.leave_out(flags.good([one.place for one in held]))
        yield []
        table.run(library, _MIDDLE)
        yield table.asked[_MIDDLE]
        table.run(library, _END)
        self.compiled.notice(table.end(tasks))

    def _table_of(self, held: list[Held], process_groups: ProcessGroups) -> "_Table":
        """The table of the last step, where the same parts are stepped again."""
        if self._table is None or self._table.held is not held or not self._table.lasts:
            rows = [self.compiled.row(one.of, one.task, one.lay) for one in held]
            if self._table is None or self._table.rows != rows:
                self._table = _Table(held, rows, process_groups)
            self._table.held = held
        return self._table


class _Table(TaskTable):
    """The arguments of the C++ for some parts, and the buffers of what they share."""

    def __init__(self, held: list[Held], rows: list[Any], process_groups: ProcessGroups) -> None:
        super().__init__([one.task for one in held], rows)
        self.held = held
        self.asked: dict[int, list[PartialSum]] = {_BEGIN: [], _MIDDLE: []}
        self._told = any(one.task.telemetry is not None for one in held)
        kinds: dict[tuple[Any, ...], list[tuple[int, Reduction]]] = {}
        for row, one in enumerate(held):
            piece, whole = one.lay.piece, one.lay.whole
            self._of["all_rows"][row], self._of["all_cols"][row] = piece.count(whole.rows), piece.count(whole.cols)
            self._of["all"][row] = piece.per_batch
            told = one.task.telemetry is not None
            shares = reductions_of(one.task.config, one.lay.plan, piece, told)
            if whole.factored:  # room for what nobody else needs
                shares.append(Reduction("norms", 0, math.prod(matrix_view(one.lay.plan).sizes[:2]), ()))
            for share in shares:
                groups = tuple(process_groups.of(one.lay.mesh, one.lay.dims_of(share.over)))
                even = one.lay.is_even((*share.over, *share.gone))
                kind = one.task.config.compute, _PHASE_BEFORE[share.pause], groups, even
                kinds.setdefault(kind, []).append((row, share))
        self._buffers = [self._laid(shares, *kind) for kind, shares in kinds.items()]

    def _laid(
        self, shares: list[tuple[int, Reduction]], dtype: torch.dtype, phase: int, groups: tuple[Any, ...], even: bool
    ) -> Tensor:
        buffer = torch.zeros(sum(share.size for _, share in shares), dtype=dtype, device="cpu")
        place = buffer.data_ptr()
        for row, share in shares:
            self._of[share.name][row] = place
            place += share.size * buffer.itemsize
        self.asked[phase].append(PartialSum(buffer, list(groups), even))
        return buffer

    def begin(self, library: ctypes.CDLL, tasks: list[Any], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone. A part without elements writes no shares: they are zeros."""
        super().begin(library, tasks, amp, carries)
        for buffer in self._buffers:
            buffer.zero_()
        if self._told:
            self._of["telemetry"] = [0 if task.telemetry is None else task.telemetry.data_ptr() for task in tasks]

    def _versions(self, tasks: list[Any]) -> list[int]:
        # Operators on a DTensor count as writes of that alone, those on its part as writes of that alone.
        return [one.of._version + one.task.p._version for one in self.held]

    def leave_out(self, good: Tensor | None) -> None:
        """Only what is good is to be written."""
        self._of["skip"] = 0 if good is None else (~good).numpy()
