"""Draws the plots of the report, one PNG each."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...plot_style import (
    BOTH,
    FIRST,
    FIRST_LINE,
    GREY,
    SECOND,
    SECOND_LINE,
    WIDTH,
    Style,
    legend,
    log,
    png,
    styled,
    whole_decades,
)
from ..piecewise import BASE, BOUNDARIES, FACTOR, PiecewiseRun
from ..stepping import budgets, zoo
from ..stepping.step_all import Stepped
from ..training.train import Trained

JAX, JAX_LINE, TORCH, TORCH_LINE = FIRST, FIRST_LINE, SECOND, SECOND_LINE
JAX_DOT: Style = {"color": JAX, "marker": "o", "markersize": 7, "alpha": 0.5, "linestyle": ""}
TORCH_DOT: Style = {"color": TORCH, "marker": "x", "markersize": 4.5, "linestyle": ""}
PAIR_LINES: dict[str, Style] = {
    "JAX from torch": {"color": BOTH, "linewidth": 4.0, "alpha": 0.35},
    "JAX from oracle": {"color": JAX, "linewidth": 1.3, "marker": "o", "markersize": 3},
    "torch from oracle": {"color": TORCH, "linewidth": 1.3, "marker": "o", "markersize": 3},
    "yardstick": {"color": "black", "linewidth": 1.0, "linestyle": ":", "label": "yardstick: oracle in float32"},
}
NAMES = ("loss", "drift", "state_bytes", "learning_rate", "deviation")


def draw_training(trained: Sequence[Trained], entropy: float) -> dict[str, bytes]:
    """PNG files of the training runs, by name; none if there was no training."""
    if not trained:
        return {}
    return {
        "loss": png(_loss(trained, entropy)),
        "drift": png(_drift(trained)),
        "state_bytes": png(_state_bytes(trained[0])),
    }


def draw_schedule(run: PiecewiseRun) -> dict[str, bytes]:
    """The PNG file of the learning rate that steps down, by name."""
    return {"learning_rate": png(_learning_rate(run))}


def draw_stepping(stepped: Sequence[Stepped]) -> dict[str, bytes]:
    """The PNG file of the deviations, by name."""
    return {"deviation": png(_deviation(stepped))}


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
        log(below, steps, run.loss_gaps(), **style)
        if run.dtype == "float32":
            _limit(below, budgets.FLOAT32_LOSS, min(run.steps, budgets.FLOAT32_LOSS_STEPS))
        whole_decades(below)
        below.set_xlabel("training step")
        below.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes[0, 0].set_ylabel("loss (nats per character)")
    axes[1, 0].set_ylabel("difference (nats)")
    legend(figure, ncols=4)
    return styled(figure)


def _drift(trained: Sequence[Trained]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(trained, (BOTH, "#6b4c9a"), strict=False):
        label = f"{run.dtype}, JAX from torch"
        log(axes, np.arange(1, run.steps + 1), [d.relative for d in run.drift], color=colour, label=label)
        if run.dtype == "float64":
            steps = min(run.steps, budgets.FLOAT64_WEIGHTS_STEPS)
            _limit(axes, budgets.FLOAT64_WEIGHTS, steps, "limit for float64")
    whole_decades(axes)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylabel("max |JAX − torch| / max |torch|,\nworst parameter")
    axes.set_title("How far the weights drift apart in training")
    legend(figure, ncols=3)
    return styled(figure)


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
                log(axes, np.arange(1, worst.size + 1), worst, **{"label": pair, **style})
        whole_decades(axes)
        axes.set_title(dtype)
        axes.axvline(zoo.ZERO_STEP, color=GREY, linewidth=0.6)
        axes.set_xticks([1, 5, 10, 15, 20])
    for axes in grid[:, 0]:
        axes.set_ylabel("worst deviation,\nrelative")
    for axes in grid[-1]:
        axes.set_xlabel(f"step (gradients of step {zoo.ZERO_STEP} are zero)")
    legend(figure, ncols=4)
    return styled(figure)


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
    return styled(figure)


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
    return styled(figure)


def _limit(axes: Axes, limit: float, steps: int, label: str = "limit") -> None:
    axes.plot([1, steps], [limit, limit], color="black", linewidth=0.9, linestyle="--", label=label)
