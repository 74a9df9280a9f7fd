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


class Cut:
    """How an array of canonical sizes is cut into blocks of about `size` elements.

    By batch indices, or matrices of one, or rows of one; a V that is kept whole also by elements of a row, which of a
    factored matrix has one mean. With `across`, the axes are batch, rows, columns and lead, and only that is cut.
    """

    def __init__(self, sizes: tuple[int, ...], size: int, factored: bool, across: bool) -> None:
        self._sizes = sizes
        inner = [math.prod(sizes[axis + 1 :]) for axis in range(4)]  # elements of one place along each axis
        axis = next((axis for axis in range(4) if inner[axis] <= size), 3)
        axis = min(axis, 2) if factored else axis
        self._steps = [(before, 1) for before in range(axis)] + [(axis, max(size // max(inner[axis], 1), 1))]
        if across:
            self._steps = [(3, max(size // max(math.prod(sizes[:3]), 1), 1))]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The blocks of x, in order; along an axis that x has at size 1 alone, all blocks have the same piece."""
        pieces = [x]
        for axis, step in self._steps:
            pieces = [part for piece in pieces for part in self._along(piece, axis, step)]
        return pieces

    def _along(self, x: Tensor, axis: int, step: int) -> tuple[Tensor, ...]:
        if x.shape[axis] != self._sizes[axis]:
            return (x,) * max(-(-self._sizes[axis] // step), 1)
        return tuple(x.split(step, axis)) if x.shape[axis] else (x,)


class Piece:
    """What the part of a tensor that a process holds has to know of the whole.

    Args:
        whole: the plan of the whole tensor.
        split: its axes along which processes hold different parts.
        index: says the elements of the part as indices of the whole, as `elements_of` takes them.
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
