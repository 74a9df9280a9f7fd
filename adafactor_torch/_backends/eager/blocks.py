"""Views and blocks of one parameter, or of a stack of parameters, for the eager backend.

The parameter, its gradient and its state are seen as [batch, lead, rows, columns] and split into blocks of rows.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adafactor_spec.factoring import Plan

from ..._task.matrix_view import as_matrices, element_indices, from_matrices, in_memory, matrix_view, reduced_axes
from ..._task.task import Amp, ParamConfig, Task
from .. import reference as phases

OWN = (1, 2, 3)  # the axes of one batch index
# Matrices of at most SMALL_MATRIX elements are too small for an inner loop: where there are MANY, loops go across them.
SMALL_MATRIX, MANY = 64, 16
_ACROSS = (0, 2, 3, 1)


class BlockedTask:
    """A parameter or a stack, its gradient and its state seen as [batch, lead, rows, columns], and their blocks.

    Many small matrices, as of a convolution's kernels, are seen as [batch, rows, columns, lead] (`across`), and a block
    of theirs is copied to that order in memory before it is computed with.

    Args:
        task: the parameter or the stack.
        amp: what a GradScaler says.
        size: elements of a block, about.
        plan: of a stack; the elements of each of its parameters are counted for themselves, by the shard of the task.
    """

    def __init__(self, task: Task, amp: Amp, size: int, plan: Plan | None = None) -> None:
        self.shard, self.one = task.shard, task.shard.plan
        plan = plan or self.one
        self.task, self.plan, self.amp, self.now = task, plan, amp, task.now
        self.applies: Tensor | None = None
        sizes = matrix_view(plan).sizes
        self.across = plan.factored and sizes[2] * sizes[3] <= SMALL_MATRIX and sizes[1] >= MANY
        self.sizes = tuple(sizes[axis] for axis in _ACROSS) if self.across else sizes
        self.cut = BlockSplit(self.sizes, size, plan.factored, self.across)
        self._views = {"p": as_matrices(task.p, plan)} | {
            name: as_matrices(x, plan, reduced_axes(name, plan)) for name, x in task.state.items() if name != "step"
        }
        seen = {name: self._seen(view) for name, view in self._views.items()}
        self.p, self.g, self.state = seen.pop("p"), self._seen(as_matrices(task.grad, plan)), seen
        rows, cols = (((1,), (2,)) if self.across else ((2,), (3,))) if plan.factored else ((), ())
        config = task.config
        self.config = ParamConfig(config.recipe, Plan(self.sizes, rows, cols, (0,)), config.dtype, config.rounding)

    def _seen(self, view: Tensor) -> Tensor:
        return view.permute(_ACROSS) if self.across else view

    def read(self, block: Tensor) -> Tensor:
        """A block in the order in memory in which it is computed with."""
        return block.contiguous() if self.across else block

    def write_copies(self) -> None:
        """Write back what `as_matrices` had to copy."""
        for name, view in self._views.items():
            x = self.task.p if name == "p" else self.task.state[name]
            if view.data_ptr() != x.data_ptr():
                x.copy_(from_matrices(view, self.plan, tuple(x.shape), reduced_axes(name, self.plan)))

    def states(self) -> list[dict[str, Tensor]]:
        """The state of each block; R and C, which blocks share, are not in it."""
        names = [name for name in self.state if name not in ("v_row", "v_col")]
        pieces = [self.cut(self.state[name]) for name in names]
        return [dict(zip(names, of_block, strict=True)) for of_block in zip(*pieces, strict=True)] or self._empty()

    def _empty(self) -> list[dict[str, Tensor]]:
        return [{} for _ in self.cut(self.p)]

    def gradient(self, p: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The gradient of a block as the step takes it."""
        g = self.read(g).to(self.config.compute)
        if self.amp.grad_scale is not None:
            g = g / self.amp.grad_scale.to(g)
        if self.task.maximize:
            g = -g
        return g + self.now.weight_decay * self.weight(p, state) if self.config.decay == "grad" else g

    def weight(self, p: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The weights of a block as the step takes them."""
        return phases.weight(self.read(p), state, self.config)

    def masks(self) -> list[Tensor | None]:
        """For each block, where it is to be written; None for everywhere."""
        return [None] * len(self.cut(self.p)) if self.applies is None else list(self.cut(self.applies))

    def leave_out(self, applies: Tensor) -> None:
        """Only the parameters of the stack for which `applies` says so are to be written."""
        self.applies = applies.repeat_interleave(matrix_view(self.one).sizes[0]).view(-1, 1, 1, 1)

    def elements(self) -> Iterator[Tensor | None]:
        """For stochastic rounding, the indices of each block's elements in C order, int32; made one after the other."""
        if self.config.rounds != "stochastic":
            yield from [None] * len(self.cut(self.p))
            return
        index = self._seen(element_indices(self.one, self.shard.elements))
        if len(index) != self.sizes[0]:  # a stack, which is one block
            yield _indices(index, self.p.device).repeat(self.sizes[0] // len(index), 1, 1, 1)
            return
        for view in self.cut(index):
            yield _indices(view, self.p.device)


def _indices(index: Tensor, device: torch.device) -> Tensor:
    """`element_indices` or a part of it, as int32."""
    return in_memory(index, device) if index.is_meta else index.to(device)


class BlockSplit:
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
