"""Steps parameters on a CPU by compiled C++ (`fused=True`): whole parameters in one call, shards in one call per phase.

A table tells the C++ of each parameter. RMS(p) is carried over: while a step writes p, it also adds up p^2, so that the
next step need not read p for that sum alone. The sum is used only if p's version counter shows no other write. A write
through `p.data` or from outside torch does not change the counter. The step notices such a write afterwards, because it
also adds up the squares of the values that it overwrites; then it warns, and every later step reads p first. For a
shard the sum covers the elements that this process holds.
"""

import ctypes
import warnings
from collections.abc import Collection

from torch import Tensor

from ..._sharding.step_mask import StepMask
from ..._task.reductions import row_mean_source
from ..._task.task import Amp, Task
from ..protocol import Backend, Batch, Done, Phases
from . import build
from .record import TASK, TaskRecord
from .table import BEGIN, END, MIDDLE, TaskTable


class CppBackend(Backend):
    """Steps parameters on a CPU, and remembers between steps what it has to know of each."""

    name = "C++"

    def __init__(self) -> None:
        self.carries = True  # sums of p^2
        self._has_to_warn = False
        self.rows: dict[Tensor, TaskRecord] = {}
        self._of_shards: TaskTable | None = None  # of the last step

    def available(self, shared: bool) -> bool:
        """Whether there is a compiled library; asking builds it."""
        return build.library("shard" if shared else "whole") is not None

    def why_not(self, task: Task) -> str | None:
        """Why it does not step a task; None where it does."""
        if not task.fused or not task.p.is_cpu:
            return "it is not asked for" if task.p.is_cpu else "it is for CPUs"
        if not task.shard.is_shared:
            return None if task.by_address else "only torch's operators can read the tensors"
        if 0 in task.shard.whole.shape:
            return "there are no elements"
        return "R has to be written before its mean is known" if row_mean_source(task) == "stored" else None

    def steps(self, batch: Batch, mask: StepMask | None, amp: Amp, done: Done) -> Phases:
        """One call of the C++ for whole parameters, three for shards."""
        if mask is not None:
            return self._step_shards(batch, mask, amp)
        library = build.library()
        assert library is not None and library.adafactor_task() == TASK.itemsize
        table: TaskTable | None = batch.table
        if table is None or not table.lasts:
            table = batch.table = TaskTable(batch.tasks, [self._row(task) for task in batch.tasks])
        table.begin(library, batch.tasks, amp, self.carries)
        return self._step_whole(library, table, batch.tasks, done)

    def _step_whole(self, library: ctypes.CDLL, table: TaskTable, tasks: list[Task], done: Done) -> Phases:
        table.run(library)
        self._notice(table.end(tasks))
        done(tasks)
        yield []

    def _step_shards(self, batch: Batch, mask: StepMask, amp: Amp) -> Phases:
        library, tasks = build.library("shard"), batch.tasks
        assert library is not None
        table = self._table_of_shards(batch)
        table.begin(library, tasks, amp, self.carries)
        table.run(library, BEGIN)
        yield table.partial_sums[BEGIN]
        table.leave_out(mask.applies(tasks))
        yield []
        table.run(library, MIDDLE)
        yield table.partial_sums[MIDDLE]
        table.run(library, END)
        self._notice(table.end(tasks))

    def _table_of_shards(self, batch: Batch) -> TaskTable:
        """The table of the step before, where the same tensors are stepped again."""
        table: TaskTable | None = batch.table
        if table is None or not table.lasts:
            rows, table = [self._row(task) for task in batch.tasks], self._of_shards
            if table is None or table.rows != rows:
                table = TaskTable(batch.tasks, rows)
            batch.table = self._of_shards = table
        return table

    def _row(self, task: Task) -> TaskRecord:
        """What the table has to say of the elements of a parameter that this process holds."""
        row = self.rows.get(task.param)
        if row is None or not row.fits(task):
            row = self.rows[task.param] = TaskRecord(task)
        return row

    def _notice(self, stale: bool) -> None:
        """Carry no sums from now on, where one was another than that of what has been written over."""
        self._has_to_warn |= stale and self.carries
        self.carries &= not stale

    def forget(self, params: Collection[Tensor]) -> None:
        """Keep nothing of these parameters of the optimizer."""
        for p in params:
            self.rows.pop(p, None)
        self._of_shards = None

    def warn(self) -> None:
        """Say what was noticed: after the step, as a warning may be an error."""
        if not self._has_to_warn:
            return
        self._has_to_warn = False
        warnings.warn(
            "A parameter was written through .data or from outside torch, which its version counter does not show, so "
            "this step used RMS(p) from before that. From now on every step reads the parameters anew; write them "
            "under torch.no_grad() to keep the faster way.",
            stacklevel=2,
        )
