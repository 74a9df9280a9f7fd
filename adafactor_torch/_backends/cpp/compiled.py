"""`fused=True` on a CPU: a table with a row for each parameter, and one call of the C++ in `src/`.

The sum of p^2 is carried from the step that wrote p to the next one, which then need not read p for RMS(p) alone. It
holds for as long as p's version counter says that nobody else has written p. A write through `p.data` or from outside
torch does not count there: the step notices one, because it adds the squares of what it overwrites, but after the fact.
It warns, and from then on every step reads p first.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from ..._task.task import Amp, Task
from . import build as _native
from .record import TASK, TaskRecord
from .table import TaskTable


class TableHolder(Protocol):
    """Whoever hands out the same tasks at every step, and keeps the table that was made of them."""

    table: Any


class Compiled:
    """Steps parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self.carries = True  # sums of p^2
        self._has_to_warn = False
        self.rows: dict[Tensor, TaskRecord] = {}

    def prepare(self, tasks: list[Task], amp: Amp, holder: TableHolder | None) -> TaskTable | None:
        """What a step of these parameters needs; None where there is no compiled library."""
        library = _native.library()
        if library is None:
            return None
        assert library.adafactor_task() == TASK.itemsize
        table: TaskTable | None = None if holder is None else holder.table
        if table is None:
            table = TaskTable(tasks, [self.row(task) for task in tasks])
            if holder is not None and table.lasts:
                holder.table = table
        table.begin(library, tasks, amp, self.carries)
        return table

    def step(self, table: TaskTable, tasks: list[Task]) -> Iterator[list[Task]]:
        """One step of every parameter, in place. What it yields is stepped."""
        library = _native.library()
        assert library is not None
        table.run(library)
        self.notice(table.end(tasks))
        yield tasks

    def notice(self, surprised: bool) -> None:
        """Carry no sums from now on, where one was another than that of what has been written over."""
        self._has_to_warn |= surprised and self.carries
        self.carries &= not surprised

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

    def row(self, task: Task) -> TaskRecord:
        """What the table has to say of the elements of a parameter that this process holds."""
        row = self.rows.get(task.param)
        if row is None or not row.fits(task):
            row = self.rows[task.param] = TaskRecord(task)
        return row
