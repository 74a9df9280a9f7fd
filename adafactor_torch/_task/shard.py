"""Which elements of a parameter this process holds, and the sums that it shares with other processes."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adafactor_spec.factoring import Plan, Shape

GroupKey = tuple[tuple[int, ...], str]  # the ranks of a process group, and the type of the device


class PartialSum(NamedTuple):
    """What is to be replaced, in place, by its sum over the processes of some groups."""

    value: Tensor
    groups: tuple[GroupKey, ...]
    uniform: bool = True  # of the same size on all processes of its mesh, not only on those that add it up


class Shard:
    """The elements of a parameter that this process holds; a whole tensor is a shard with nothing split.

    Args:
        whole: the plan of the parameter.
        plan: the plan of the elements held here.
        split: for each dimension of the mesh that splits an axis among several processes, that axis.
        sizes: the number of processes along each dimension of the mesh.
        groups: the process group along each dimension of the mesh.
        mesh: the mesh that shares the parameter, None without one.
        placements: those of the parameter on its mesh.
        index: makes `elements`.
    """

    def __init__(
        self,
        whole: Plan,
        plan: Plan,
        split: Mapping[int, int] | None = None,
        *,
        sizes: Shape = (),
        groups: Sequence[GroupKey] = (),
        mesh: Any = None,
        placements: tuple[Any, ...] = (),
        index: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self.whole, self.plan, self.mesh, self.placements = whole, plan, mesh, placements
        self.split = dict(split or {})
        self._sizes, self._groups, self._index = sizes, groups, index
        self._axes = frozenset(self.split.values())

    @property
    def is_shared(self) -> bool:
        """Whether a mesh shares the parameter, be it that each of its processes holds all of it."""
        return self.mesh is not None

    def is_split(self, axes: Shape) -> bool:
        """Whether processes hold different elements along some axes."""
        return not self._axes.isdisjoint(axes)

    def count(self, axes: Shape) -> int:
        """The elements of the whole along some axes, at least 1."""
        return max(math.prod(self.whole.matrix_shape[axis] for axis in axes), 1)

    @property
    def per_batch(self) -> int:
        """The elements of the whole that a batch index has, at least 1."""
        batch = (self.whole.shape[axis] for axis in self.whole.batch)
        return max(math.prod(self.whole.shape) // max(math.prod(batch), 1), 1)

    def dims_over(self, axes: Shape) -> tuple[int, ...]:
        """The dimensions of the mesh along which processes hold different elements of some axes."""
        return tuple(dim for dim, axis in self.split.items() if axis in axes)

    def groups_over(self, axes: Shape) -> tuple[GroupKey, ...]:
        """The process groups whose processes hold different elements along some axes."""
        return self.groups_along(self.dims_over(axes))

    def groups_along(self, dims: Iterable[int]) -> tuple[GroupKey, ...]:
        """The process groups along some dimensions of the mesh."""
        return tuple(self._groups[dim] for dim in dims)

    @functools.cached_property
    def several(self) -> tuple[int, ...]:
        """The dimensions of the mesh with more than one process."""
        return tuple(dim for dim, size in enumerate(self._sizes) if size > 1)

    def is_uniform(self, removed: Shape) -> bool:
        """Whether what is left of the elements without some axes has the same size on every process of the mesh."""
        sizes = self.whole.shape
        return all(axis in removed or sizes[axis] % self._shards_of(axis) == 0 for axis in self.split.values())

    def partial_sum(self, value: Tensor, over: Shape, removed: Shape = ()) -> PartialSum:
        """What this process contributes to a mean over some axes; `removed` are further axes that it has no longer."""
        if not self.split:
            return PartialSum(value, ())
        return PartialSum(value, self.groups_over(over), self.is_uniform((*over, *removed)))

    def _shards_of(self, axis: int) -> int:
        return math.prod(self._sizes[dim] for dim, split in self.split.items() if split == axis)

    @functools.cached_property
    def most(self) -> int:
        """About how many elements a process holds: the same number on every process."""
        count = max(math.prod(self.whole.shape), 1)
        for dim in self.split:
            count = -(-count // self._sizes[dim])
        return count

    @functools.cached_property
    def elements(self) -> Tensor | None:
        """The elements held here as indices of the whole, as `element_indices` takes them; None for all of them."""
        return self._index()
