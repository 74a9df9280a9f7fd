"""The plot of a run: how long a step takes, as a multiple of the baseline."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adafactor_parity import plot_style as style

from ..measure.results import Case, Measured, Results
from .figures import times

LONGEST = 6.0  # where a bar is cut, with its figure beside it: one slow peer would make all others look alike
HEIGHT, BAR = 0.30, 0.40  # inches per optimizer, and of 1 per bar
PALE = 0.45
BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # above the line at 1


def draw(results: Results) -> bytes:
    """A PNG: a row of panels for each workload, a column for each dtype; in a panel a pair of bars per optimizer."""
    workloads = list(dict.fromkeys(case.workload for case in results.cases))
    dtypes = list(dict.fromkeys(case.dtype for case in results.cases))
    labels = list(dict.fromkeys(row.label for case in results.cases for row in case.measured))
    figure = Figure(figsize=(style.WIDTH, 1.0 + len(workloads) * (0.7 + HEIGHT * len(labels))), layout="constrained")
    grid = figure.subplots(len(workloads), len(dtypes), squeeze=False, sharex=True, sharey=True)
    for line, workload in zip(grid, workloads, strict=True):
        for axes, dtype in zip(line, dtypes, strict=True):
            some = [case for case in results.cases if (case.workload, case.dtype) == (workload, dtype)]
            _panel(axes, some, labels)
            axes.set_title(_title(some, workload, dtype))
    for axes in grid[-1]:
        axes.set_xlabel(f"time of a step / that of {results.baseline}")
    _legend(figure, sorted({case.momentum for case in results.cases}))
    return style.png(_finished(figure, results))


def _title(cases: Sequence[Case], workload: str, dtype: str) -> str:
    size = f": {cases[0].parameters / 1e6:.3g} M, {cases[0].tensors:,} tensors" if cases else ""
    return f"{workload}, {dtype}{size}"


def _panel(axes: Axes, cases: Sequence[Case], labels: Sequence[str]) -> None:
    for case in cases:
        shift = 0.0 if len(cases) == 1 else BAR / 2 if case.momentum else -BAR / 2
        for row in case.measured:
            _bar(axes, row, labels.index(row.label) + shift, case.momentum)
    axes.axvline(1, color="black", linewidth=0.9)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, LONGEST * 1.14)


def _bar(axes: Axes, row: Measured, place: float, momentum: bool) -> None:
    if row.ratio is None:
        axes.text(0.06, place, "fails", va="center", fontsize=7, color=style.SECOND)
        return
    length = min(row.ratio.median, LONGEST)
    colour = style.FIRST if row.ours else style.GREY
    axes.barh(place, length, BAR, color=colour, alpha=PALE if momentum else 1.0)
    if row.ratio.median <= LONGEST:
        axes.plot([row.ratio.lower, min(row.ratio.upper, LONGEST)], [place, place], color="black", linewidth=0.8)
    beyond = " ▸" if row.ratio.median > LONGEST else ""
    end = max(length, min(row.ratio.upper, LONGEST))
    axes.text(end + 0.06, place, times(row.ratio) + beyond, va="center", fontsize=7, bbox=BACKGROUND)


def _legend(figure: Figure, momentum: Sequence[bool]) -> None:
    words = {False: "without momentum", True: "with momentum"}
    handles = [
        Patch(color=colour, alpha=PALE if yes else 1.0, label=f"{who}, {words[yes]}")
        for who, colour in (("ours", style.FIRST), ("others", style.GREY))
        for yes in momentum
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def _finished(figure: Figure, results: Results) -> Figure:
    ours = {row.label for case in results.cases for row in case.measured if row.ours}
    style.styled(figure)
    for axes in figure.axes:
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.title.set_fontsize(9)
        for tick in axes.get_yticklabels():
            tick.set_fontweight("bold" if tick.get_text() in ours else "normal")
    return figure
