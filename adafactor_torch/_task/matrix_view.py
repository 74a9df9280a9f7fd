"""The view [batch, lead, rows, columns] of a parameter, which every backend but the reference works on.

RMS(p) and RMS(u) belong to a batch index, and the factors to a (batch, lead) matrix. A V that is kept whole has rows
and columns as well, but they only say in which order its elements are visited.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adafactor_spec.factoring import Plan, Shape

# A vector that such rows divide is folded to them, so that several threads or programs can share it.
ROW = 1024


@dataclass(frozen=True)
class MatrixView:
    """The axes of a plan's `matrix_shape` in the order batch, lead, rows, columns, and the four sizes."""

    order: Shape
    sizes: Shape


@functools.cache
def matrix_view(plan: Plan) -> MatrixView:
    """The canonical form of a plan."""
    shape, batch = plan.matrix_shape, plan.batch
    rest = tuple(axis for axis in range(len(shape)) if axis not in (*batch, *plan.rows, *plan.cols))
    stack = math.prod(shape[axis] for axis in batch)
    if plan.factored:
        groups = (batch, rest, plan.rows, plan.cols)
        return MatrixView((*batch, *rest, *plan.rows, *plan.cols), tuple(_size(shape, axes) for axes in groups))
    rows, cols = _size(shape, rest[:-1]), _size(shape, rest[-1:])
    if rows == 1 and cols % ROW == 0 and cols:
        rows, cols = cols // ROW, ROW
    return MatrixView((*batch, *rest), (stack, 1, rows, cols))


def as_matrices(x: Tensor, plan: Plan, reduced: Shape = ()) -> Tensor:
    """x as [batch, lead, rows, columns]; with `reduced` axes, which x has at size 1, as that with 1 in their place.

    A view of the same memory where its strides allow it, else a copy.
    """
    form = matrix_view(plan)
    shape = tuple(1 if axis in reduced else size for axis, size in enumerate(plan.matrix_shape))
    sizes = list(form.sizes)
    if reduced:
        sizes[2 if set(reduced) == set(plan.rows) else 3] = 1
    return x.reshape(shape).permute(form.order).reshape(sizes)


def from_matrices(view: Tensor, plan: Plan, shape: Shape, reduced: Shape = ()) -> Tensor:
    """What `as_matrices` made a view or a copy of, of that shape, again."""
    order = matrix_view(plan).order
    sizes = tuple(1 if axis in reduced else plan.matrix_shape[axis] for axis in order)
    return view.reshape(sizes).permute([order.index(axis) for axis in range(len(order))]).reshape(shape)


def reduced_axes(entry: str, plan: Plan) -> Shape:
    """The axes that a parameter's tensor of that name has at size 1."""
    return {"v_row": plan.cols, "v_col": plan.rows}.get(entry, ())


def strides_of(view: Tensor) -> list[int]:
    """The strides of a canonical view, 0 along an axis on which it has one value for all."""
    return [stride if size > 1 else 0 for size, stride in zip(view.shape, view.stride(), strict=True)]


def element_indices(plan: Plan, index: Tensor | None = None) -> Tensor:
    """The indices of the elements in C order, modulo 2^32, as [batch, lead, rows, columns].

    Without memory, where an element's index is the sum of its places times the strides; else int32.

    Args:
        plan: of the elements.
        index: their indices, where they are a part of a larger tensor: without memory, with the strides of that and
            beginning where its first element lies in that, or int32.
    """
    indices = torch.empty(plan.shape, dtype=torch.int32, device="meta") if index is None else index
    if not indices.is_meta:
        return as_matrices(indices, plan)
    view = indices.reshape(plan.matrix_shape).permute(matrix_view(plan).order)
    try:
        return view.view(matrix_view(plan).sizes)
    except RuntimeError:  # the strides do not allow it
        return as_matrices(in_memory(indices), plan)


def in_memory(index: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Indices that are there without memory, as int32."""
    found = torch.full((1,) * index.ndim, int(index.storage_offset()), dtype=torch.int64, device=device).to(torch.int32)
    for axis, (count, stride) in enumerate(zip(index.shape, index.stride(), strict=True)):
        along = (torch.arange(count, dtype=torch.int64, device=device) * stride).to(torch.int32)
        found = found + along.view([-1 if axis == other else 1 for other in range(index.ndim)])
    return found


def _size(shape: Shape, axes: Shape) -> int:
    return math.prod(shape[axis] for axis in axes)
