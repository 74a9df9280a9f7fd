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

from ..._sharding.process_groups import ProcessGroups
from ..._sharding.step_mask import StepMask
from ..._task.matrix_view import matrix_view
from ..._task.reductions import Reduction, reductions_of, row_mean_source
from ..._task.shard import GroupKey, PartialSum
from ..._task.task import Amp, Task
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

    def takes(self, task: Task, process_groups: ProcessGroups) -> bool:
        """Whether a part is stepped here, on every process alike; which, is asked for once on each mesh.

        A tensor without elements is not, nor one whose R has to be written before its mean is known.
        """
        if not task.fused or not task.p.is_cpu or 0 in task.shard.whole.shape:
            return False
        if row_mean_source(task) == "stored":
            return False
        return process_groups.agree("library", task.shard.mesh, lambda: _native.library("shard") is not None)

    def steps(self, tasks: list[Task], mask: StepMask, amp: Amp) -> Iterator[list[PartialSum]]:
        """One step, in place; see `sharded.py` for where it pauses."""
        library = _native.library("shard")
        assert library is not None
        table = self._table_of(tasks)
        table.begin(library, tasks, amp, self.compiled.carries)
        table.run(library, _BEGIN)
        yield table.asked[_BEGIN]
        table.leave_out(mask.applies(tasks))
        yield []
        table.run(library, _MIDDLE)
        yield table.asked[_MIDDLE]
        table.run(library, _END)
        self.compiled.notice(table.end(tasks))

    def _table_of(self, tasks: list[Task]) -> "_Table":
        """The table of the last step, where the same tasks are stepped again."""
        if self._table is None or self._table.tasks is not tasks or not self._table.lasts:
            rows = [self.compiled.row(task) for task in tasks]
            if self._table is None or self._table.rows != rows:
                self._table = _Table(tasks, rows)
            self._table.tasks = tasks
        return self._table


class _Table(TaskTable):
    """The arguments of the C++ for some parts, and the buffers of what they share."""

    def __init__(self, tasks: list[Task], rows: list[Any]) -> None:
        super().__init__(tasks, rows)
        self.tasks = tasks
        self.asked: dict[int, list[PartialSum]] = {_BEGIN: [], _MIDDLE: []}
        self._told = any(task.telemetry is not None for task in tasks)
        kinds: dict[tuple[Any, ...], list[tuple[int, Reduction]]] = {}
        for row, task in enumerate(tasks):
            shard = task.shard
            whole = shard.whole
            self._of["all_rows"][row], self._of["all_cols"][row] = shard.count(whole.rows), shard.count(whole.cols)
            self._of["all"][row] = shard.per_batch
            reductions = reductions_of(task)
            if whole.factored:  # local scratch: sqrt(mean(R)) of each matrix
                reductions.append(Reduction("norms", 0, math.prod(matrix_view(shard.plan).sizes[:2]), ()))
            for one in reductions:
                groups, uniform = shard.groups_over(one.over), shard.is_uniform((*one.over, *one.removed))
                kind = task.config.compute, _PHASE_BEFORE[one.phase], groups, uniform
                kinds.setdefault(kind, []).append((row, one))
        self._buffers = [self._laid(reductions, *kind) for kind, reductions in kinds.items()]

    def _laid(
        self,
        reductions: list[tuple[int, Reduction]],
        dtype: torch.dtype,
        phase: int,
        groups: tuple[GroupKey, ...],
        uniform: bool,
    ) -> Tensor:
        buffer = torch.zeros(sum(one.size for _, one in reductions), dtype=dtype, device="cpu")
        place = buffer.data_ptr()
        for row, one in reductions:
            self._of[one.name][row] = place
            place += one.size * buffer.itemsize
        self.asked[phase].append(PartialSum(buffer, groups, uniform))
        return buffer

    def begin(self, library: ctypes.CDLL, tasks: list[Task], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone. A part without elements writes no shares: they are zeros."""
        super().begin(library, tasks, amp, carries)
        for buffer in self._buffers:
            buffer.zero_()
        if self._told:
            self._of["telemetry"] = [0 if task.telemetry is None else task.telemetry.data_ptr() for task in tasks]

    def _versions(self, tasks: list[Task]) -> list[int]:
        # Operators on a DTensor count as writes of that alone, those on its part as writes of that alone.
        return [task.param._version + task.p._version for task in tasks]

    def leave_out(self, good: Tensor | None) -> None:
        """Only what is good is to be written."""
        self._of["skip"] = 0 if good is None else (~good).numpy()
