"""What all plots share: colours, lines, axes, and how a figure becomes a PNG without a display."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Style = dict[str, Any]

FIRST, SECOND, BOTH, GREY = "#1f5fa8", "#d9641e", "#3c7d3c", "#8a8a8a"
# The first broad and below, the second thin and dashed above it: where the curves coincide both still show.
FIRST_LINE: Style = {"color": FIRST, "linewidth": 2.6, "alpha": 0.5}
SECOND_LINE: Style = {"color": SECOND, "linewidth": 1.1, "linestyle": (0, (4, 2))}
WIDTH, DPI = 9.0, 160


def log(axes: Axes, steps: np.ndarray, values: Sequence[float] | np.ndarray, **style: Any) -> None:
    """A line on a log axis; zeros and what is not finite leave gaps."""
    found = np.asarray(values, float)
    axes.set_yscale("log")
    axes.plot(steps, np.where((found > 0) & np.isfinite(found), found, np.nan), **style)


def whole_decades(axes: Axes) -> None:
    """Limits at powers of ten and at least two of them, so that there are ticks to read and noise looks like noise."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size:
        low, high = np.floor(np.log10(drawn.min())), np.ceil(np.log10(drawn.max()))
        axes.set_ylim(10.0 ** min(low, high - 2), 10.0**high)
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, ncols: int) -> None:
    """One legend above all axes, every label once."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    labels = {str(line.get_label()): line for line in lines if not str(line.get_label()).startswith("_")}
    figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=ncols, frameon=False)


def styled(figure: Figure) -> Figure:
    """The figure, its axes with a grid and without a frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_fontsize(10)
        if (own := axes.get_legend()) is not None:
            own.set_frame_on(False)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
