"""The row and column factors R and C of a parameter or a stack, updated from sums over its blocks."""

import torch
from torch import Tensor

from adafactor_spec.factoring import Plan

from ... import _kernels as kernels
from ..._task.reductions import row_mean_source
from ..._task.shard import PartialSum
from ..._task.task import ParamConfig
from .blocks import BlockedTask


class Factors:
    """R and C of a part in one step: the first half of phase 2.

    Args:
        part: the part.
        rows: means of g^2 over the columns that this process holds, like R.
        cols: this process's shares of the means over all rows, like C.
    """

    def __init__(self, part: BlockedTask, rows: Tensor, cols: Tensor) -> None:
        self._part, one, shard = part, part.one, part.shard
        self.rows, self.cols = rows, cols
        self._kept = part.state["v_row"], part.state["v_col"]
        (of_cols,) = part.config.plan.cols
        self.sums: list[PartialSum] = []
        self._norm: Tensor | None = None
        if shard.is_split(one.cols):
            self.rows *= part.sizes[of_cols] / shard.count(one.cols)
            self.sums.append(shard.partial_sum(self.rows, one.cols))
        self.sums.append(shard.partial_sum(self.cols, one.rows))
        self._means: tuple[Tensor, Tensor] | None = None  # of old R and of g^2, over the rows
        self._mean, row = row_mean_source(part.task), self._kept[0]
        if self._mean == "new":
            self._norm = self._mean_of_rows(self._updated(0).to(row.dtype))
            self.sums.append(shard.partial_sum(self._norm, one.rows, one.cols))
        if self._mean == "old and squares":
            self._means = old, squares = self._mean_of_rows(row), self._mean_of_rows(self.rows)
            self.sums += [
                shard.partial_sum(old, one.rows, one.cols),
                shard.partial_sum(squares, (*one.rows, *one.cols)),
            ]

    def update(self) -> list[PartialSum]:
        """Put the means into R and C; what is still to be summed up."""
        part, one, shard, now = self._part, self._part.one, self._part.shard, self._part.now
        for which, kept in enumerate(self._kept):
            write(kept, self._updated(which), part.applies)
        if self._means is not None:
            self._norm = kernels.ema(*self._means, now.beta2, now.beta2_complement)
        if self._mean == "stored":
            self._norm = self._mean_of_rows(self._kept[0])
            return [shard.partial_sum(self._norm, one.rows, one.cols)]
        return []

    def roots(self) -> tuple[Tensor, ...]:
        """The roots of both factors."""
        part, config = self._part, self._part.config
        v_row, v_col = (part.read(moment).to(config.compute) for moment in self._kept)
        return kernels.root_factors((v_row, v_col), config.floor, config.plan, self._norm)

    def _updated(self, which: int) -> Tensor:
        now, mean = self._part.now, (self.rows, self.cols)[which]
        return kernels.ema(self._kept[which].to(mean.dtype), mean, now.beta2, now.beta2_complement)

    def _mean_of_rows(self, x: Tensor) -> Tensor:
        """This process's share of a mean over the rows."""
        part = self._part
        (of_rows,) = part.config.plan.rows
        share = part.sizes[of_rows] / part.shard.count(part.one.rows)
        return kernels.mean(x.to(part.config.compute), part.config.plan.rows) * share


def no_means(part: BlockedTask) -> tuple[Tensor, Tensor]:
    """Zeros like R and C, in the computing dtype."""
    v_row, v_col = part.state["v_row"], part.state["v_col"]
    rows, cols = (torch.zeros(x.shape, dtype=part.config.compute, device=x.device) for x in (v_row, v_col))
    return rows, cols


def write(into: Tensor, value: Tensor, applies: Tensor | None) -> None:
    """Copy a value to where the mask says so, or everywhere."""
    into.copy_(value if applies is None else torch.where(applies, value, into.to(value.dtype)))


def plan_of(x: Tensor, config: ParamConfig) -> Plan:
    """The plan of a block."""
    return Plan(tuple(x.shape), config.plan.rows, config.plan.cols, config.plan.batch)
