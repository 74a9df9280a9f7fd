"""The tables on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafactor_parity import _terminal

from ._results import Case, Measured, Results
from ._text import NOTHING, milliseconds, percent, quartiles, rounded, times

WIDTH = _terminal.WIDTH


def show(results: Results, console: Console | None = None) -> None:
    """Print a table for each case to standard output, or to `console`."""
    console = console or _terminal.console(WIDTH)
    for case in results.cases:
        console.print(table(case))
        for row in case.measured:
            if row.error is not None:
                console.print(Text(f"{row.label} fails: {row.error}", style="red"))
            for line in row.warnings:
                console.print(Text(f"{row.label} warns: {line}", style="dim"))
        for label, reason in case.left_out.items():
            console.print(Text(f"{label} {reason} and is left out.", style="dim"))
        console.print(Text(f"copy: {case.copy_bytes_per_second / 1e9:.1f} GB/s, read and written", style="dim"))
    console.print(Text(f"ratio: to {results.baseline}, within each round."))
    if results.quick:
        console.print(Text("--quick: these sizes show that everything runs, not how fast.", style="bold"))
    console.print(Text(results.on()), soft_wrap=True)


def table(case: Case) -> Table:
    """One row per optimizer."""
    size = f"{case.parameters / 1e6:.3g} M parameters in {case.tensors:,} tensors"
    made = _terminal.table(f"{case.title}: {size}")
    made.add_column("", no_wrap=True)
    on_gpu = any(row.launches is not None for row in case.measured)
    heads = ["ms", "quartiles", "ratio", "×\nbound", "state\n%", "peak\n%", "first\nstep, s"]
    for head in [*heads, *(["launches", "host\nreads"] if on_gpu else [])]:
        made.add_column(head, justify="right", no_wrap=True)
    for row in case.measured:
        counts = [NOTHING if count is None else str(count) for count in (row.launches, row.host_reads)]
        label = Text(row.label, style="bold" if row.ours else "")
        made.add_row(label, *_cells(case, row), *(counts if on_gpu else []))
    return made


def _cells(case: Case, row: Measured) -> list[str]:
    return [
        milliseconds(row.milliseconds),
        quartiles(row.milliseconds),
        times(row.ratio),
        rounded(row.bound_ratio),
        percent(case.share(row.state_bytes)),
        percent(case.share(row.peak_bytes)),
        rounded(row.first_step_seconds),
    ]
