"""How tensors are cut into blocks, and what a process that holds a part of a tensor has to know of the whole."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from adafactor_spec.factoring import Plan, Shape


class Sum(NamedTuple):
    """A process's share of a mean over axes of a parameter, to be replaced in place by the sum of all shares."""

    value: Tensor
    over: Shape  # what other processes hold other parts of
    gone: Shape = ()  # further axes that the value has no longer


class Piece:
    """What the part of a tensor that a process holds has to know of the whole.

    Args:
        whole: the plan of the whole tensor.
        split: its axes along which processes hold different parts.
        index: says the elements of the part as indices of the whole, as `element_indices` takes them.
    """

    def __init__(
        self, whole: Plan, split: frozenset[int] = frozenset(), index: Callable[[], Tensor | None] = lambda: None
    ) -> None:
        self.whole, self.split, self.index = whole, split, index

    def count(self, axes: Shape) -> int:
        """The elements of the whole along some axes, at least 1."""
        return max(math.prod(self.whole.matrix_shape[axis] for axis in axes), 1)

    @property
    def per_batch(self) -> int:
        """The elements of the whole that a batch index has, at least 1."""
        batch = (self.whole.shape[axis] for axis in self.whole.batch)
        return max(math.prod(self.whole.shape) // max(math.prod(batch), 1), 1)

    def is_split(self, axes: Shape) -> bool:
        """Whether processes hold different parts of some axes."""
        return not self.split.isdisjoint(axes)


GroupKey = tuple[tuple[int, ...], str]  # the ranks of a group, and the type of the device


class PartialSum(NamedTuple):
    """What is to be replaced, in place, by its sum over the processes of some groups."""

    value: Tensor
    groups: list[GroupKey]
    uniform: bool = True  # of the same size on all processes of its mesh, not only on those that add it up
