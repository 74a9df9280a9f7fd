"""The plots of the report, one PNG each; drawn with figures of their own, so that no display is needed."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from . import _budgets, _zoo
from ._piecewise import BASE, BOUNDARIES, FACTOR, PiecewiseRun
from ._stepping import Stepped
from ._train import Trained
from ._verification import Verification

Style = dict[str, Any]

JAX, TORCH, BOTH, GREY = "#1f5fa8", "#d9641e", "#3c7d3c", "#8a8a8a"
# JAX broad and below, torch thin and dashed above it: where the curves coincide both still show.
JAX_LINE: Style = {"color": JAX, "linewidth": 2.6, "alpha": 0.5}
TORCH_LINE: Style = {"color": TORCH, "linewidth": 1.1, "linestyle": (0, (4, 2))}
JAX_DOT: Style = {"color": JAX, "marker": "o", "markersize": 7, "alpha": 0.5, "linestyle": ""}
TORCH_DOT: Style = {"color": TORCH, "marker": "x", "markersize": 4.5, "linestyle": ""}
PAIR_LINES: dict[str, Style] = {
    "JAX from torch": {"color": BOTH, "linewidth": 4.0, "alpha": 0.35},
    "JAX from oracle": {"color": JAX, "linewidth": 1.3, "marker": "o", "markersize": 3},
    "torch from oracle": {"color": TORCH, "linewidth": 1.3, "marker": "o", "markersize": 3},
    "yardstick": {"color": "black", "linewidth": 1.0, "linestyle": ":", "label": "yardstick: oracle in float32"},
}
WIDTH, DPI = 9.0, 160

NAMES = ("loss", "drift", "state_bytes", "learning_rate", "deviation")


def draw(found: Verification) -> dict[str, bytes]:
    """PNG files by name. Those of the training are there only if there was any."""
    plots = {"deviation": _deviation(found.stepped), "learning_rate": _learning_rate(found.piecewise)}
    if found.trained:
        plots |= {
            "loss": _loss(found.trained, found.entropy),
            "drift": _drift(found.trained),
            "state_bytes": _state_bytes(found.trained[0]),
        }
    return {name: _png(figure) for name, figure in plots.items()}


def _loss(trained: Sequence[Trained], entropy: float) -> Figure:
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    axes = figure.subplots(2, len(trained), squeeze=False, sharex="col", height_ratios=(3, 1.3))
    for (above, below), run in zip(axes.T, trained, strict=True):
        steps = np.arange(1, run.steps + 1)
        above.plot(steps, run.jax.losses, **JAX_LINE, label="JAX")
        above.plot(steps, run.torch.losses, **TORCH_LINE, label="torch")
        above.plot(run.validated_after, run.jax.validation, **JAX_DOT, label="JAX, held out")
        above.plot(run.validated_after, run.torch.validation, **TORCH_DOT, label="torch, held out")
        above.axhline(entropy, color=GREY, linewidth=1, linestyle=":", label="entropy of single characters")
        above.set_title(f"{run.dtype}, recipe {run.setting.label}")
        # Steps at which both losses are the same number have no place on a log axis; dots show that best.
        style = {
            "color": BOTH,
            "marker": ".",
            "markersize": 3,
            "linestyle": "",
            "label": "|JAX − torch|, where not zero",
        }
        _log(below, steps, run.loss_gaps(), **style)
        if run.dtype == "float32":
            _limit(below, _budgets.FLOAT32_LOSS, min(run.steps, _budgets.FLOAT32_LOSS_STEPS))
        _whole_decades(below)
        below.set_xlabel("training step")
        below.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes[0, 0].set_ylabel("loss (nats per character)")
    axes[1, 0].set_ylabel("difference (nats)")
    _legend(figure, ncols=4)
    return _styled(figure)


def _drift(trained: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(trained, (BOTH, "#6b4c9a"), strict=False):
        label = f"{run.dtype}, JAX from torch"
        _log(axes, np.arange(1, run.steps + 1), [d.relative for d in run.drift], color=colour, label=label)
        if run.dtype == "float64":
            steps = min(run.steps, _budgets.FLOAT64_WEIGHTS_STEPS)
            _limit(axes, _budgets.FLOAT64_WEIGHTS, steps, "limit for float64")
    _whole_decades(axes)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylabel("max |JAX − torch| / max |torch|,\nworst parameter")
    axes.set_title("How far the weights drift apart in training")
    _legend(figure, ncols=3)
    return _styled(figure)


def _deviation(stepped: Sequence[Stepped]) -> Figure:
    dtypes = list(dict.fromkeys(row.dtype for row in stepped))
    rows = (len(dtypes) + 1) // 2
    figure = Figure(figsize=(WIDTH, 1.0 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, min(len(dtypes), 2), squeeze=False, sharex=True)
    for axes in grid.flat[len(dtypes) :]:
        axes.set_visible(False)
    for axes, dtype in zip(grid.flat, dtypes, strict=False):
        runs = [row.per_step for row in stepped if row.dtype == dtype]
        for pair, style in PAIR_LINES.items():
            if pair in runs[0]:
                worst = np.max([run[pair] for run in runs], axis=0)
                _log(axes, np.arange(1, worst.size + 1), worst, **{"label": pair, **style})
        _whole_decades(axes)
        axes.set_title(dtype)
        axes.axvline(_zoo.ZERO_STEP, color=GREY, linewidth=0.6)
        axes.set_xticks([1, 5, 10, 15, 20])
    for axes in grid[:, 0]:
        axes.set_ylabel("worst deviation,\nrelative")
    for axes in grid[-1]:
        axes.set_xlabel(f"step (gradients of step {_zoo.ZERO_STEP} are zero)")
    _legend(figure, ncols=4)
    return _styled(figure)


def _state_bytes(run: Trained) -> Figure:
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots()
    bars = {
        "the weights themselves": (run.parameter_bytes, GREY),
        "Adam, optax": (run.jax.adam_bytes, GREY),
        "Adam, torch": (run.torch.adam_bytes, GREY),
        "Adafactor, JAX": (run.jax.state_bytes, JAX),
        "Adafactor, torch": (run.torch.state_bytes, TORCH),
    }
    sizes = [size / 1024 for size, _ in bars.values()]
    drawn = axes.barh(list(bars), sizes, color=[colour for _, colour in bars.values()], height=0.62)
    axes.bar_label(drawn, [f"{size:,.1f}" for size in sizes], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(sizes))
    axes.set_xlabel("KiB")
    axes.set_title(f"Optimizer state of the trained transformer ({run.dtype}, recipe {run.setting.label})")
    return _styled(figure)


def _learning_rate(run: PiecewiseRun) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(run.scheduled) + 1)
    axes.step(steps, run.scheduled, where="mid", color=GREY, linewidth=1, label="schedule")
    axes.plot(steps, run.jax_measured, **JAX_DOT, label="JAX, as the weights move")
    axes.plot(steps, run.torch_measured, **TORCH_DOT, label="torch, as the weights move")
    axes.plot(steps, run.torch_group, ".", color="black", markersize=3, label='torch, group["lr"]')
    axes.set_xticks([1, *BOUNDARIES, len(steps)])
    axes.set_ylim(0, 1.1 * max(run.scheduled))
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate in force")
    axes.set_title(f"schedules.piecewise_constant({BASE}, {BOUNDARIES}, {FACTOR})")
    axes.legend()
    return _styled(figure)


def _log(axes: Axes, steps: np.ndarray, values: Sequence[float] | np.ndarray, **style: Any) -> None:
    """A line on a log axis; zeros and what is not finite leave gaps."""
    found = np.asarray(values, float)
    axes.set_yscale("log")
    axes.plot(steps, np.where((found > 0) & np.isfinite(found), found, np.nan), **style)


def _limit(axes: Axes, limit: float, steps: int, label: str = "limit") -> None:
    axes.plot([1, steps], [limit, limit], color="black", linewidth=0.9, linestyle="--", label=label)


def _whole_decades(axes: Axes) -> None:
    """Limits at powers of ten and at least two of them, so that there are ticks to read and noise looks like noise."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size:
        low, high = np.floor(np.log10(drawn.min())), np.ceil(np.log10(drawn.max()))
        axes.set_ylim(10.0 ** min(low, high - 2), 10.0**high)
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, ncols: int) -> None:
    """One legend above all axes, every label once."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    labels = {str(line.get_label()): line for line in lines if not str(line.get_label()).startswith("_")}
    figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=ncols, frameon=False)


def _styled(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_fontsize(10)
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
    return figure


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
