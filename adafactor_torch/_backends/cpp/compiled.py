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

from ..._sharding.dtensor import Lay
from ..._task.task import Amp, Work
from . import build as _native
from .record import TASK, Row
from .table import Table


class TableHolder(Protocol):
    """Whoever hands out the same works at every step, and keeps the table that was made of them."""

    table: Any


class Compiled:
    """Steps parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self.carries = True  # sums of p^2
        self._has_to_warn = False
        self.rows: dict[Tensor, Row] = {}

    def ready(self, works: list[Work], amp: Amp, steady: TableHolder | None) -> Table | None:
        """What a step of these parameters needs; None where there is no compiled library."""
        library = _native.library()
        if library is None:
            return None
        assert library.adafactor_task() == TASK.itemsize
        table: Table | None = None if steady is None else steady.table
        if table is None:
            table = Table(works, [self.row(work.p, work) for work in works])
            if steady is not None and table.lasts:
                steady.table = table
        table.begin(library, works, amp, self.carries)
        return table

    def step(self, table: Table, works: list[Work]) -> Iterator[list[Work]]:
        """One step of every parameter, in place. What it yields is stepped."""
        library = _native.library()
        assert library is not None
        table.run(library)
        self.notice(table.end(works))
        yield works

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

    def row(self, p: Tensor, work: Work, lay: Lay | None = None) -> Row:
        """What the table has to say of a parameter, or of the part of p that this process holds."""
        row = self.rows.get(p)
        if row is None or not row.fits(work, lay):
            row = self.rows[p] = Row(work, lay)
        return row
