"""Draws what the difference between two recipes does to the sample matrix."""

import numpy as np
from matplotlib.figure import Figure

from ..plot_style import BOTH, FIRST_LINE, SECOND_LINE, WIDTH, legend, log, png, styled, whole_decades
from .difference import SHAPE, STEPS, Difference


def draw(found: Difference) -> bytes:
    """A PNG: the RMS of each one's update, and how far apart they are, at every step."""
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1.3))
    steps = np.arange(1, STEPS + 1)
    for name, rms, line in zip(found.names, found.rms, (FIRST_LINE, SECOND_LINE), strict=True):
        log(above, steps, rms, label=name, **line)
    apart = f"distance between the two / distance that {found.names[0]} has travelled"
    log(below, steps, found.apart, color=BOTH, linewidth=1.3, label=apart)
    for axes in (above, below):
        whole_decades(axes)
    above.set_title(f"{found.names[0]} and {found.names[1]}: a {SHAPE[0]}x{SHAPE[1]} matrix, the same gradients")
    above.set_ylabel("RMS of the update")
    below.set_ylabel("apart")
    below.set_xlabel("step")
    below.set_xticks([1, *range(10, STEPS + 1, 10)])
    legend(figure, ncols=3)
    return png(styled(figure))
