"""Brings the gradients of DTensors to the placements of their parameters.

Most gradients have those placements already. Others are terms of a sum or are placed otherwise, and processes exchange
them. A process without the gradient takes part in that exchange, so it has to know of it. Therefore processes tell each
other how the gradient of a parameter is placed, in the first step in which one of them has it.
"""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec.errors import refusal

from .._task.shard import PartialSum, Shard
from .._task.task import Task
from .dtensor import local_of
from .process_groups import ProcessGroups

_OWN, _REPLICATED, _SUM, _AVERAGE, _SHARDED = range(5)  # kinds of placements; from _SHARDED on, of axis 0, 1, ...


class GradientPlacements:
    """How gradients arrive, which all processes of a mesh know alike."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[Any, ...]] = {}  # placements

    def of(self, tasks: list[Task], process_groups: ProcessGroups) -> list[Tensor | None]:
        """The part of every gradient that belongs to the part of its parameter; None where there is none here.

        Raises:
            RuntimeError: processes have a gradient in different placements, or in others than in the steps before.
        """
        self._tell(tasks, process_groups)
        found: list[Tensor | None] = []
        moving: list[tuple[int, _Redistribution]] = []
        for i, task in enumerate(tasks):
            known, shard = self._known.get(task.param), task.shard
            grad: Any = task.grad if task.has_grad else None
            if grad is not None and known is not None and grad.placements != known:
                raise RuntimeError(_differing(shard, grad.placements, known))
            own = known is None or known == shard.placements
            found.append(local_of(grad) if own and grad is not None else None)
            if known is not None and not own:
                moving.append((i, _Redistribution(task, known)))
        process_groups.all_reduce([asked for _, one in moving for asked in one.asked()])
        for i, one in moving:
            found[i] = one.moved()
        return found

    def _tell(self, tasks: list[Task], process_groups: ProcessGroups) -> None:
        new = [(task, _kinds(task)) for task in tasks if task.param not in self._known]
        process_groups.all_reduce(
            [PartialSum(kinds, task.shard.groups_along(task.shard.several)) for task, kinds in new]
        )
        for task, kinds in new:
            arriving = [[kind for kind, count in enumerate(row) if count] for row in kinds.tolist()]
            if not all(arriving):
                continue  # no process has one yet
            first, last = (
                tuple(_placement(row[which], task.shard, dim) for dim, row in enumerate(arriving)) for which in (0, -1)
            )
            if first != last:
                raise RuntimeError(_differing(task.shard, first, last))
            self._known[task.param] = first


class _Redistribution:
    """A gradient that is to be added up or moved to become one with the placements of its parameter.

    Args:
        task: of the parameter.
        arrives: the placements of the gradient, also of one that is not here.
    """

    def __init__(self, task: Task, arrives: tuple[Any, ...]) -> None:
        from torch.distributed.tensor import Replicate

        self._task, self._partial = task, [dim for dim, x in enumerate(arrives) if x.is_partial()]
        self._summed = tuple(Replicate() if placement.is_partial() else placement for placement in arrives)
        grad: Any = task.grad if task.has_grad else None
        here = self._zeros() if grad is None else local_of(grad)
        self._term = here.to(task.config.compute, copy=bool(self._partial))
        for dim in self._partial:
            if arrives[dim].reduce_op == "avg":
                self._term /= task.shard.mesh.size(dim)
        self._holders = torch.full((1,), float(grad is not None), dtype=torch.float32, device=self._term.device)

    def asked(self) -> list[PartialSum]:
        """What is to be summed up: the terms, and which processes have one, among those that exchange parts of it."""
        shard, several = self._task.shard, self._task.shard.several
        other = [dim for dim in several if dim in self._partial or self._summed[dim] != shard.placements[dim]]
        terms = [dim for dim in self._partial if dim in several]
        term = PartialSum(self._term, shard.groups_along(terms), uniform=False)
        return [term, PartialSum(self._holders, shard.groups_along(other))]

    def moved(self) -> Tensor | None:
        """The part of the gradient that belongs to the part of the parameter."""
        from torch.distributed.tensor import DTensor

        p, shard, whole = self._task.param, self._task.shard, self._term
        if self._summed != shard.placements:
            stride = torch.empty(p.shape, dtype=p.dtype, device="meta").stride()
            made: Any = DTensor.from_local(
                whole, shard.mesh, self._summed, run_check=False, shape=p.shape, stride=stride
            )
            whole = local_of(made.redistribute(placements=shard.placements))
        # The one read of values, and only where a gradient that moves is missing here: may be nobody has it.
        return whole if self._task.has_grad or self._holders.item() else None

    def _zeros(self) -> Tensor:
        """In the place of a gradient that is not here."""
        from torch.distributed.tensor import distribute_tensor

        p: Any = self._task.param
        whole = torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape)  # takes no memory
        return torch.zeros_like(
            local_of(distribute_tensor(whole, self._task.shard.mesh, self._summed, src_data_rank=None))
        )


def _kinds(task: Task) -> Tensor:
    """For each dimension of the mesh 1 at the kind of the placement with which a gradient arrives here."""
    shard = task.shard
    size = shard.mesh.ndim, _SHARDED + len(shard.whole.shape)
    kinds = torch.zeros(size, dtype=torch.float32, device=task.param.device)
    if task.has_grad:
        grad: Any = task.grad
        for dim, placement in enumerate(grad.placements):
            kinds[dim, _kind(placement, shard, dim)] = 1.0
    return kinds


def _kind(placement: Any, shard: Shard, dim: int) -> int:
    from torch.distributed.tensor import Shard

    if placement == shard.placements[dim]:
        return _OWN
    if placement.is_replicate():
        return _REPLICATED
    if placement.is_partial() and placement.reduce_op in ("sum", "avg"):
        return _SUM if placement.reduce_op == "sum" else _AVERAGE
    if type(placement) is Shard:
        return _SHARDED + placement.dim
    who = f"placements of the gradient of a parameter of shape {shard.whole.shape}"
    raise refusal(who, "Partial of sum or avg, Shard or Replicate", placement, "Redistribute it first.")


def _placement(kind: int, shard: Shard, dim: int) -> Any:
    from torch.distributed.tensor import Partial, Replicate, Shard

    if kind == _OWN:
        return shard.placements[dim]
    made: dict[int, Any] = {_REPLICATED: Replicate(), _SUM: Partial("sum"), _AVERAGE: Partial("avg")}
    return made[kind] if kind in made else Shard(kind - _SHARDED)


def _differing(shard: Shard, one: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    return (
        f"The gradient of a parameter of shape {shard.whole.shape} arrives as {one} and, on another process or in "
        f"the steps before, as {other}. Processes that share it cannot agree on how to add it up. Redistribute it to "
        f"the placements of the parameter, {shard.placements}."
    )
