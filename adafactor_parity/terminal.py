"""The width of what is printed on a terminal, and the form of its tables."""

import os

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH, NARROWEST = 100, 40  # some terminals say 0 columns; in a few, a table would show nothing


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that rich has just caught; its own way is to exit, with status 1


def console(widest: int) -> Console:
    """Standard output: as wide as the terminal or COLUMNS says, else `WIDTH`, and at most `widest`."""
    own = Console(highlight=False)
    width = own.width if own.is_terminal or "COLUMNS" in os.environ else WIDTH
    return _Console(highlight=False, width=max(NARROWEST, min(width, widest)))


def table(title: str | None = None) -> Table:
    """An empty table: a line under its head, no frame."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
