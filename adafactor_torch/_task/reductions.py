"""What processes add up of a sharded parameter in one step: which sums, of what size, over which axes, and when.

All backends ask here. So they have the same sums, in the same order on every process.
"""

from typing import Literal, NamedTuple

from adafactor_spec.factoring import Shape

from .matrix_view import matrix_view
from .task import Task

PHASES = 3  # of a step, at each of which processes add up


class Reduction(NamedTuple):
    """What a process holds of a mean."""

    name: str
    phase: int  # the pause at which it is added up
    size: int
    over: Shape  # the axes of the parameter over which it is
    removed: Shape = ()  # further axes that it has no longer


def row_mean_source(task: Task) -> Literal["local", "new", "old and squares", "stored"]:
    """How the mean of R over its rows becomes known.

    "local": this process has all rows. "new": the mean of the new R, which is known before the sums are, travels with
    them. "old and squares": R is not, as the columns are split, too; the means of the old R and of g^2 travel, of which
    it is the average. "stored": R is kept in 16 bits, and the mean must be that of the rounded R, so that it
    is added up after R has been written.
    """
    config, plan = task.config, task.config.plan
    if not plan.factored or not task.shard.is_split(plan.rows):
        return "local"
    if not task.shard.is_split(plan.cols):
        return "new"
    _, stored = config.layout["v_row"]
    return "old and squares" if stored == config.compute else "stored"


def reductions_of(task: Task) -> list[Reduction]:
    """All that processes add up of a parameter."""
    config, plan, telemetry = task.config, task.shard.plan, task.telemetry is not None
    (batch, lead, rows, cols), mean = matrix_view(plan).sizes, row_mean_source(task)
    matrices, found = batch * lead, list[Reduction]()
    if plan.factored:
        found.append(Reduction("row_means", 0, matrices * rows, plan.cols))
        found.append(Reduction("col_means", 0, matrices * cols, plan.rows))
    if mean != "local":
        found.append(Reduction("means", 1 if mean == "stored" else 0, matrices, plan.rows, plan.cols))
    if mean == "old and squares":
        found.append(Reduction("square_means", 0, matrices, (*plan.rows, *plan.cols)))
    if config.recipe.multiply_by_parameter_scale or telemetry:
        found.append(Reduction("p_means", 0, batch, plan.rms_axes))
    if config.clips or telemetry:
        found.append(Reduction("u_means", 2, batch, plan.rms_axes))
    return found
