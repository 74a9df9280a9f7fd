"""The generated parts of the pages on performance, one for each framework and device, and their plots."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..measure.options import write as write_text
from ..measure.results import Case, Results
from .columns import Column, columns
from .figures import NOTHING, times

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"torch": "performance.md", "jax": "performance_jax.md", "torch_sharded": "performance_sharded.md"}


def write(results: Results, docs: Path = DOCS) -> tuple[Path, Path]:
    """Write the part of this device into the framework's page, in place of the one before, and its plot.

    Returns:
        The page and the plot.
    """
    from . import plot as plots  # matplotlib takes a second to load

    page, plot = docs / PAGES[results.framework], docs / "images" / image(results)
    before = page.read_text(encoding="utf-8")
    write_text("--write-docs", page, replaced(before, results))
    plot.write_bytes(plots.draw(results))
    return page, plot


def image(results: Results) -> str:
    """The plot's file name: `performance.png` for torch on a CPU, what everybody can measure, else a longer one."""
    place = "" if (results.framework, results.device) == ("torch", "cpu") else f"-{results.framework}-{results.device}"
    return f"performance{place}.png"


def replaced(text: str, results: Results) -> str:
    """The page with the part of this framework and device made anew; a page without that part gets it at its end."""
    start, end = (f"<!-- {which}: {results.framework} {results.device} -->" for which in ("generated", "end"))
    part = "\n".join([start, *section(results), end])
    before, found, rest = text.partition(start)
    if not found:
        return f"{text.rstrip()}\n\n{part}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        page = PAGES[results.framework]
        raise ValueError(f"docs/{page} must have a line {end!r} behind {start!r}, got none. Put it back.")
    return before + part + after


def section(results: Results) -> Iterator[str]:
    """The lines of one part."""
    yield from (f"## {results.framework} on {results.device}", "")
    yield from (f"{results.date}. {results.on()}", "")
    yield from (f"`{results.command}`: medians of {results.rounds} interleaved rounds.", "")
    if results.quick:
        yield from ("**Made with `--quick`: these sizes show that everything runs, not how fast.**", "")
    yield from (f"![Time of a step as a multiple of {results.baseline}](images/{image(results)})", "")
    for workload in dict.fromkeys(case.workload for case in results.cases):
        yield from _overview([case for case in results.cases if case.workload == workload], results.baseline)
    yield from ("<details><summary>Every figure</summary>", "")
    for case in results.cases:
        yield from _figures(case)
    yield "</details>"


def _overview(cases: Sequence[Case], baseline: str) -> Iterator[str]:
    first, shown = cases[0], [column for column in columns(cases) if column.in_overview]
    names = " and ".join(column.head.partition(",")[0] for column in shown)
    of_first = f"; {names} are those of the first column that has one" if shown else ""
    yield from (f"### {first.workload}: {first.parameters / 1e6:.3g} M parameters in {first.tensors:,} tensors", "")
    yield from (f"Time as a multiple of {baseline}{of_first}.", "")
    heads = [case.dtype + (", momentum" if case.momentum else "") for case in cases]
    rows = {row.label: row.ours for case in cases for row in case.measured}
    body = (_overview_row(label, ours, cases, shown) for label, ours in rows.items())
    yield from _table(["", *heads, *(column.head for column in shown)], body)
    yield ""


def _overview_row(label: str, ours: bool, cases: Sequence[Case], shown: Sequence[Column]) -> list[str]:
    found = [next((row for row in case.measured if row.label == label), None) for case in cases]
    cells = [NOTHING if row is None else "fails" if row.error else times(row.ratio) for row in found]
    case, row = next((case, row) for case, row in zip(cases, found, strict=True) if row is not None)
    shares = [column.cell(case, row) for column in shown]
    return [_bold(label, ours), *(_bold(cell, ours) for cell in cells), *shares]


def _figures(case: Case) -> Iterator[str]:
    yield from (f"**{case.title}.** Copying runs at {case.copy_bytes_per_second / 1e9:.1f} GB/s, read and written.", "")
    shown = columns([case])
    body = ([_bold(row.label, row.ours), *(column.cell(case, row) for column in shown)] for row in case.measured)
    yield from _table(["", *(column.head for column in shown)], body)
    yield ""
    said = [f"{row.label} fails: {row.error}" for row in case.measured if row.error is not None]
    said += [f"{row.label} warns: {line}" for row in case.measured for line in row.warnings]
    said += [f"{label} {reason} and is left out." for label, reason in case.left_out.items()]
    yield from (f"* {_escaped(line)}" for line in said)
    yield from [""] if said else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes and text != NOTHING else text


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", r"\|")
