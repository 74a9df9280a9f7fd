"""The tables that `adafactor verify` prints, at most 100 columns wide."""

from rich.table import Table
from rich.text import Text

from ... import terminal
from ..stepping.deviation import Deviation
from ..stepping.step_all import PAIRS, Stepped
from ..verification import Verification

WIDTH = terminal.WIDTH  # no wider on a terminal than in a pipe


def show(found: Verification) -> None:
    """Print the tables to standard output."""
    console = terminal.console(WIDTH)
    console.print(stepping(found.stepped))
    console.print(_checks(found))
    console.print(_verdict(found))


def deviation(worst: Deviation) -> str:
    """`1.2e-07 (1.5)`: relative to the largest element, and in ulp."""
    if worst.relative == 0:
        return "0"
    if worst.ulp >= 1000:  # of float32, after a first moment that is stored in 16 bits
        ulp = ">999"
    else:
        ulp = "<.01" if worst.ulp < 0.01 else f"{worst.ulp:.{1 if worst.ulp < 1 else 3 if worst.ulp >= 100 else 2}g}"
    return f"{worst.relative:.1e} ({ulp})"


def stepping(stepped: list[Stepped]) -> Table:
    """One row per recipe and dtype."""
    table = terminal.table("Every recipe, stepped: worst deviation relative to the largest element (and in ulp)")
    table.add_column("recipe, dtype", no_wrap=True)
    for pair in PAIRS:
        table.add_column(pair.replace(" from", "\nfrom"), justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    last = None
    for row in stepped:
        if row.setting.label != last:
            last = row.setting.label
            table.add_row(Text(last, style="bold"))
        found = (deviation(row.worst[pair]) for pair in PAIRS)
        table.add_row(f"  {row.dtype}", *found, str(row.budget), _mark(not row.beyond))
    return table


def _checks(found: Verification) -> Table:
    table = terminal.table("Training the same transformer in both, and the learning rate that steps down")
    table.add_column("", overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in found.checks:
        table.add_row(check.name, f"{check.measured:.3g}", f"{check.limit:.3g}", _mark(check.passed))
    return table


def _verdict(found: Verification) -> str:
    failed = len(found.failures())
    says = "Everything is within its budget." if found.passed else f"{failed} beyond the budget."
    return f"{says} {found.seconds:.0f} s."


def _mark(passed: bool | None) -> Text:
    word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}[passed]
    return Text(word, style=style)
