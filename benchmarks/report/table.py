"""The tables on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafactor_parity import terminal

from ..measure.results import Case, Results
from .columns import columns

WIDTH = terminal.WIDTH


def show(results: Results, console: Console | None = None) -> None:
    """Print a table for each case to standard output, or to `console`."""
    console = console or terminal.console(WIDTH)
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
    made = terminal.table(f"{case.title}: {size}")
    made.add_column("", no_wrap=True)
    shown = columns([case])
    for column in shown:
        made.add_column(column.breaks, justify="right", no_wrap=True)
    for row in case.measured:
        label = Text(row.label, style="bold" if row.ours else "")
        made.add_row(label, *(column.cell(case, row) for column in shown))
    return made
