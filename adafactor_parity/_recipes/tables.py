"""The tables that `adafactor recipes` prints: all recipes, one in full, or two side by side."""

import math
import textwrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafactor_spec import recipes, summary

from .. import terminal
from .._about import about
from .difference import LR, SHAPE, SHOWN, STEPS, Difference

WIDEST = 240
NAMES_COLUMN = "recipe"
READABLE = 22  # characters that a column of phrases must have; with fewer it goes into a table of its own below
TOGETHER = "\ue000"  # stands for a space at which no line is broken, until the table is laid out
LEGEND = (
    "t = 1 at the first update; alpha is the step size, V the second moment, u = g / sqrt(V) the update, and "
    "eps(dtype) the machine epsilon of the parameter's dtype. Weight decay is c in p - alpha u - c p; after off stands "
    "what c is with a weight decay wd.",
    "adafactor recipes NAME shows one in full, adafactor recipes A B what differs between two.",
)


def show_all() -> None:
    """Every recipe, one row each; columns that do not fit beside the others follow in a table below."""
    console = terminal.console(WIDEST)
    rows = {name: summary(recipes.shown(name)) for name in recipes.NAMES}
    for columns in _fitting(rows, console.width):
        with console.capture() as printed:
            console.print(_overview(rows, columns))
        console.out(printed.get().replace(TOGETHER, " "), highlight=False)
    for line in LEGEND:
        console.print(line)


def show_one(name: str) -> None:
    """One recipe in full."""
    console, of = terminal.console(terminal.WIDTH), about(name)
    console.print(Text.assemble((name, "bold"), ": ", of.what))
    for note in of.notes:
        console.print()
        console.print(Text(note))
    console.print()
    if of.refused:
        console.print(Text(f"The defaults alone are refused, so this is one setting of it. {of.refused}\n"))
    _print_indented(console, recipes.shown(name).describe())
    console.print()
    if of.arguments:
        table = terminal.table("Arguments, in the original's words")
        for heading in ("argument", "default", "meaning"):
            table.add_column(heading, overflow="fold")
        for argument in of.arguments:
            default = "(must be given)" if argument.default is None else argument.default
            table.add_row(Text(argument.name), Text(default), Text(argument.meaning))
        console.print(table)
        console.print()
    console.print(Text(f"Source: {of.source}"))


def show_two(found: Difference) -> None:
    """What differs between two recipes, and what that does to a matrix."""
    console = terminal.console(terminal.WIDTH)
    first, second = found.names
    if not found.fields:
        console.print(Text(f"With their defaults {first} and {second} are the same recipe."))
        return
    fields = terminal.table("Fields that differ")
    for heading in ("field", first, second):
        fields.add_column(Text(heading), overflow="fold")
    for field, pair in found.fields.items():
        fields.add_row(field, *(Text(value) for value in pair))
    console.print(fields)
    if found.without_effect:
        console.print(f"Without effect, because what they belong to is off: {', '.join(found.without_effect)}.")
    console.print()
    for name in found.without_lr:
        console.print(Text(f"{name} has no learning rate of its own: below it is {LR}."))
    if found.same:
        console.print(f"Over {STEPS} steps of a {SHAPE[0]}x{SHAPE[1]} matrix in float64 both compute the same.")
        if unseen := [field for field in found.fields if field not in found.without_effect]:
            console.print(
                "Such a sample does not show what these fields do, to gradients near 0, to other dtypes, shapes or "
                f"names, or later: {', '.join(unseen)}."
            )
        return
    console.print(_steps(found))
    console.print(
        f"A {SHAPE[0]}x{SHAPE[1]} matrix in float64, the same seeded gradients for both. Apart: the distance between "
        f"the two matrices over the distance that {first} has travelled."
    )


def _overview(rows: dict[str, dict[str, str]], columns: list[str]) -> Table:
    table = terminal.table()
    table.add_column(NAMES_COLUMN, no_wrap=True, min_width=_longest([NAMES_COLUMN, *rows]))
    for column in columns:
        table.add_column(column, max_width=2 * READABLE, overflow="fold")
    for title, names in (("originals", recipes.ORIGINALS), ("settings in use", recipes.VARIANTS)):
        table.add_row(Text(title, style="bold"))
        for name in names:
            table.add_row(name, *(Text(_together(rows[name][column])) for column in columns))
        table.add_section()
    return table


def _fitting(rows: dict[str, dict[str, str]], width: int) -> list[list[str]]:
    """The columns in their order, as many beside each other as stay readable."""
    tables: list[list[str]] = []
    left = 0
    for column in next(iter(rows.values())):
        needs = 1 + min(READABLE, _longest([column, *(row[column] for row in rows.values())]))
        if needs > left:
            tables.append([])
            left = width - _longest([NAMES_COLUMN, *rows])
        tables[-1].append(column)
        left -= needs
    return tables


def _together(phrase: str) -> str:
    """The phrase, its lines not to be broken within short parentheses or before a number."""
    found, depth, opened = list(phrase.replace(">= ", f">={TOGETHER}").replace("<= ", f"<={TOGETHER}")), 0, 0
    for at, character in enumerate(found):
        if character == "(":
            depth, opened = depth + 1, opened if depth else at
        elif character == ")":
            depth -= 1
            if not depth and at - opened < READABLE - 5:
                found[opened:at] = [TOGETHER if inner == " " else inner for inner in found[opened:at]]
    return "".join(found)


def _steps(found: Difference) -> Table:
    table = terminal.table(f"What that does in the first {STEPS} steps")
    headings = ("step", *(f"RMS of the update,\n{name}" for name in found.names), "\napart")
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for step in SHOWN:
        values = (found.rms[0][step - 1], found.rms[1][step - 1], found.apart[step - 1])
        table.add_row(str(step), *("-" if math.isnan(value) else f"{value:.3g}" for value in values))
    return table


def _print_indented(console: Console, text: str) -> None:
    """Lines as they are; what is too long goes on below, further in than it began."""
    for line in text.splitlines():
        further = " " * (len(line) - len(line.lstrip()) + 4)
        folded = textwrap.fill(line, console.width, subsequent_indent=further, break_on_hyphens=False)
        console.print(Text(folded))


def _longest(texts: list[str]) -> int:
    return max(map(len, texts))
