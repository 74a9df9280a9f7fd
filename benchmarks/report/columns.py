"""The columns of every table, on the terminal and on the page. A table has those in which somebody has a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..measure.results import Case, Measured
from .figures import NOTHING, count, milliseconds, percent, quartiles, rounded, times


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of an optimizer in a case, as text. `breaks` is the head on the terminal, where width is scarce.

    In an overview of several cases stand those whose figure hardly depends on the case.
    """

    head: str
    breaks: str
    cell: Callable[[Case, Measured], str]
    in_overview: bool = False


def _column(
    head: str, cell: Callable[[Case, Measured], str], breaks: str | None = None, in_overview: bool = False
) -> Column:
    lines = head.replace(",", "").replace(" ", "\n")
    return Column(head=head, breaks=breaks or lines, cell=cell, in_overview=in_overview)


COLUMNS = (
    _column("ms", lambda case, row: milliseconds(row.milliseconds)),
    _column("quartiles", lambda case, row: quartiles(row.milliseconds)),
    _column("ratio", lambda case, row: times(row.ratio)),
    _column("× bound", lambda case, row: rounded(row.bound_ratio)),
    _column("state, %", lambda case, row: percent(case.share(row.state_bytes)), in_overview=True),
    _column("peak, %", lambda case, row: percent(case.share(row.peak_bytes)), in_overview=True),
    _column(
        "temporaries, %",
        lambda case, row: percent(case.share(row.temporary_bytes)),
        breaks="tempo-\nraries\n%",
        in_overview=True,
    ),
    _column("donated, %", lambda case, row: percent(case.donated(row))),
    _column("XLA, s", lambda case, row: rounded(row.compile_seconds)),
    _column("first step, s", lambda case, row: rounded(row.first_step_seconds), breaks="first\nstep\ns"),
    _column("compilations", lambda case, row: count(row.compilations), breaks="compi-\nlations"),
    _column("launches", lambda case, row: count(row.launches)),
    _column("collectives", lambda case, row: count(row.collectives), breaks="collec-\ntives", in_overview=True),
    _column("summed, KiB", lambda case, row: rounded(None if row.summed_bytes is None else row.summed_bytes / 1024)),
    _column("host reads", lambda case, row: count(row.host_reads)),
)


def columns(cases: Sequence[Case]) -> list[Column]:
    """Those in which an optimizer of these cases has a figure."""
    return [
        column
        for column in COLUMNS
        if any(column.cell(case, row) != NOTHING for case in cases for row in case.measured)
    ]
