"""What processes add up of a sharded parameter in one step: which sums, how large, over what, and when.

All paths ask here, so that they have the same sums and, on every process, in the same order.
"""

from typing import NamedTuple

from adafactor_spec.factoring import Plan, Shape

from .matrix_view import matrix_view
from .shard import Piece
from .task import ParamConfig

PHASES = 3  # of a step, at each of which processes add up


class Reduction(NamedTuple):
    """What a process holds of a mean."""

    name: str
    pause: int  # at which it is added up
    size: int
    over: Shape  # the axes of the parameter over which it is
    gone: Shape = ()  # further axes that it has no longer


def row_mean_source(config: ParamConfig, piece: Piece) -> str:
    """How the mean of R over its rows becomes known.

    "here": this process has all rows. "new": the mean of the new R, which is known before the sums are, travels with
    them. "parts": R is not, as the columns are split, too; the means of the old R and of g^2 travel, of which it is the
    average. "stored": of what is kept in 16 bits that is another mean, which is asked for when R has been written.
    """
    plan = config.plan
    if not plan.factored or not piece.is_split(plan.rows):
        return "here"
    if not piece.is_split(plan.cols):
        return "new"
    _, stored = config.layout["v_row"]
    return "parts" if stored == config.compute else "stored"


def reductions_of(config: ParamConfig, plan: Plan, piece: Piece, told: bool) -> list[Reduction]:
    """All that processes add up of a parameter.

    Args:
        config: of the parameter.
        plan: of the part that this process holds.
        piece: where that lies in the whole.
        told: whether the step is shown.
    """
    (batch, lead, rows, cols), mean = matrix_view(plan).sizes, row_mean_source(config, piece)
    matrices, found = batch * lead, list[Reduction]()
    if plan.factored:
        found.append(Reduction("row_means", 0, matrices * rows, plan.cols))
        found.append(Reduction("col_means", 0, matrices * cols, plan.rows))
    if mean != "here":
        found.append(Reduction("means", 1 if mean == "stored" else 0, matrices, plan.rows, plan.cols))
    if mean == "parts":
        found.append(Reduction("square_means", 0, matrices, (*plan.rows, *plan.cols)))
    if config.recipe.multiply_by_parameter_scale or told:
        found.append(Reduction("p_means", 0, batch, plan.rms_axes))
    if config.clips or told:
        found.append(Reduction("u_means", 2, batch, plan.rms_axes))
    return found
