"""Adds up over processes: all that a phase asks for, of all parameters, in one flat all-reduce per process group.

Every process of a group has to ask for the same sums in the same order. So sums and order follow from the parameters,
their placements and their options, and never from which gradients are present. Groups are known by their ranks: equal
meshes may have groups of their own, and the names of groups are counted differently in different processes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._task.shard import GroupKey, PartialSum


class ProcessGroups:
    """The process groups over which parameters are sharded, in the order of their first use."""

    def __init__(self) -> None:
        self._order: dict[GroupKey, Any] = {}
        self._known: dict[tuple[int, int], tuple[Any, GroupKey, Any]] = {}
        self._agreed: dict[tuple[Any, ...], bool] = {}

    def begin(self, used: Iterable[tuple[Any, Iterable[int]]]) -> None:
        """Order the groups by their first use in a step; `used` are meshes and some dimensions of each."""
        self._order = {}
        for mesh, dims in used:
            for dim in dims:
                _, group_key, group = self._of(mesh, dim)
                self._order.setdefault(group_key, group)

    def of(self, mesh: Any, dims: Iterable[int]) -> tuple[GroupKey, ...]:
        """Those along some dimensions of a mesh."""
        return tuple(self._of(mesh, dim)[1] for dim in dims)

    def all_reduce(self, asked: list[PartialSum]) -> None:
        """Replace every tensor by its sum over the processes of its groups.

        The order of additions depends on a value's offset in the buffer. Values that have the same size on every
        process come first; otherwise replicas could differ in the last bit.
        """
        asked = sorted(asked, key=lambda one: not one.uniform)
        for group_key, group in self._order.items():
            values = [one.value for one in asked if group_key in one.groups and one.value.numel()]
            # FSDP2 may offload some of the parameters to the CPU: a group may have a backend for either device.
            for kind in sorted({value.device.type for value in values}):
                _add([value for value in values if value.device.type == kind], group)

    def agree(self, what: str, mesh: Any, has: Callable[[], bool]) -> bool:
        """Whether all processes of a mesh have something, which they tell each other once."""
        dims = [dim for dim in range(mesh.ndim) if mesh.size(dim) > 1]
        key = what, *self.of(mesh, dims)
        if key not in self._agreed:
            said = torch.tensor(float(has()), dtype=torch.float32, device=mesh.device_type)
            for dim in dims:
                dist.all_reduce(said, dist.ReduceOp.MIN, self._of(mesh, dim)[2])
            self._agreed[key] = bool(said)
        return self._agreed[key]

    def _of(self, mesh: Any, dim: int) -> tuple[Any, GroupKey, Any]:
        known = self._known.get((id(mesh), dim))
        if known is None:
            group = mesh.get_group(dim)
            group_key = tuple(dist.get_process_group_ranks(group)), mesh.device_type
            known = self._known[id(mesh), dim] = mesh, group_key, group  # held, so that no other mesh has its address
        return known


def _add(values: list[Tensor], group: Any) -> None:
    if len(values) == 1 and values[0].is_contiguous():
        dist.all_reduce(values[0], group=group)
        return
    dtype = values[0].dtype
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    flat = torch.cat([value.reshape(-1).to(dtype) for value in values])
    dist.all_reduce(flat, group=group)
    pieces = flat.split([value.numel() for value in values])
    for value, piece in zip(values, pieces, strict=True):
        value.copy_(piece.view(value.shape))
