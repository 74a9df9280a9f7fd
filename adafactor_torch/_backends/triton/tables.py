"""Makes the row of each parameter in the device tables, and the options that its kernels are compiled for.

A row is made when a set of parameters is first stepped, and is valid while its tensors stay where they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton.language as tl
from torch import Tensor

from adafactor_spec.factoring import Plan, Shape

from ..._task.matrix_view import as_matrices, element_indices, matrix_view, reduced_axes, strides_of
from ..._task.reductions import row_mean_source
from ..._task.task import FLOATS, Amp, Task
from . import tiles

PLACES: dict[str, int] = {
    name: place.value
    for name, place in {
        "p": tiles.P,
        "grad": tiles.G,
        "v_row": tiles.V_ROW,
        "v_col": tiles.V_COL,
        "v": tiles.V,
        "v_max": tiles.V_MAX,
        "m": tiles.M,
        "compensation": tiles.COMPENSATION,
    }.items()
}
TILE = 4096  # elements: 16 for each thread of 8 warps
LARGEST_COLS = 256
PARTS, MEANS = 32, 2048  # partial sums that are added at a time, and of how many elements in all
REPEATS = 8  # tiles of a unit, one below the other: the partial sums of columns are 1/128 of a large matrix


@dataclass(frozen=True)
class Scratch:
    """A canonical copy of a tensor whose memory has no such view, for as long as a step takes."""

    name: str
    memory: Tensor
    plan: Plan
    shape: Shape  # in which the plan sees it

    def fill(self, x: Tensor) -> None:
        """Take the values of x."""
        self._as_seen.copy_(x.reshape(self.shape))

    def empty(self, x: Tensor) -> None:
        """Give them back to x."""
        x.copy_(self._as_seen.reshape(x.shape))

    @property
    def _as_seen(self) -> Tensor:
        order = matrix_view(self.plan).order
        permuted = self.memory.reshape([self.shape[axis] for axis in order])
        return permuted.permute([order.index(axis) for axis in range(len(order))])


@dataclass(frozen=True)
class TaskRow:
    """One parameter as the kernels know it."""

    options: tiles.Options
    sizes: Shape
    places: dict[int, list[int]]  # address and strides of each of its tensors
    floats: list[float]
    scratch: list[Scratch]
    kept: list[Tensor]  # alive, because an address of theirs is in the table

    @property
    def units(self) -> Shape:
        """Units along lead, rows and columns."""
        _, lead, rows, cols = self.sizes
        o = self.options
        if o.shares:  # a part without elements has a unit, which updates R and C with all others
            lead, rows, cols = max(lead, 1), max(rows, 1), max(cols, 1)
        return (_blocks(lead, o.lead), _blocks(rows, o.rows * o.repeats), _blocks(cols, o.cols))

    @property
    def programs(self) -> dict[str, int]:
        """How many programs of each kind it takes."""
        batch, lead, rows, cols = self.sizes
        o, matrices = self.options, batch * lead
        results = [_blocks(matrices * length, o.results) for length in (rows, cols)]
        return {
            "units": batch * math.prod(self.units),
            "moments": sum(results),
            "matrices": _blocks(matrices, o.lead),
            "batch": batch,
        }

    @property
    def workspace(self) -> list[int]:
        """Elements of each of its places in the workspace, in the order of `tiles.ROW_PARTS` to `STEP`."""
        batch, lead, rows, cols = self.sizes
        matrices = batch * lead if self.options.factored else 0
        _, row_units, col_units = self.units
        parts = [matrices * rows * col_units, matrices * cols * row_units]
        return [*parts, matrices * rows, matrices * cols, matrices, *[self.programs["units"]] * 2, 2 * batch]


def entry(task: Task, amp: Amp) -> TaskRow:
    """What the kernels are told of the elements of a parameter that this process holds."""
    shard, plan = task.shard, task.shard.plan
    sizes = matrix_view(plan).sizes
    tensors = {"p": task.p, "grad": task.grad, **{name: x for name, x in task.state.items() if name in PLACES}}
    places: dict[int, list[int]] = {}
    scratch, kept = [], []
    for name, x in tensors.items():
        reduced = reduced_axes(name, plan)
        view = as_matrices(x, plan, reduced)
        if view.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            view = view.contiguous()
            seen = tuple(1 if axis in reduced else size for axis, size in enumerate(plan.matrix_shape))
            scratch.append(Scratch(name, view, plan, seen))
        places[PLACES[name]] = [view.data_ptr(), *strides_of(view)]
    if task.config.rounds == "stochastic":
        index = element_indices(plan, shard.elements)
        index = index if index.is_meta else index.contiguous().to(task.p.device)
        first = int(index.storage_offset()) if index.is_meta else index.data_ptr()
        places[tiles.ELEMENTS.value] = [first, *strides_of(index)]
        kept = [] if index.is_meta else [index]
    shares = row_mean_source(task) if shard.is_shared else ""
    layout = {"indexed": bool(kept), "shares": shares, "skips": task.checks, **_layout(places, sizes), **_tile(sizes)}
    options = _options(task, amp, **layout)
    return TaskRow(options, sizes, places, _floats(task), scratch, kept)


def _options(task: Task, amp: Amp, **layout: Any) -> tiles.Options:
    config, recipe = task.config, task.config.recipe
    scales, telemetry = bool(recipe.multiply_by_parameter_scale), task.telemetry is not None
    skipped = None if task.shard.is_shared else task.skipped  # of a shard the step mask counts it
    leaves_out = skipped is not None or amp.found_inf is not None
    return tiles.Options(
        wide=tl.float64 if config.dtype == "float64" else tl.float32,
        p=config.dtype,
        g=FLOATS[task.grad.dtype],
        v=FLOATS[task.state[config.moments[0]].dtype],
        m=FLOATS[task.state["m"].dtype] if config.momentum else "",
        factored=config.plan.factored,
        eps1_is_floor=config.floor is not None,
        amsgrad=recipe.amsgrad,
        clips=config.clips,
        momentum=config.momentum,
        momentum_rounding=recipe.momentum_rounding,
        debias=recipe.debias,
        multiply_by_parameter_scale=scales,
        decay=config.decay,
        decay_before_scale=config.decay in ("step", "one") and recipe.decay_before_scale,
        rounding=config.rounds,
        grad_scale=amp.grad_scale is not None,
        found_inf=amp.found_inf is not None,
        counts="" if skipped is None else str(skipped.dtype).removeprefix("torch."),
        uncounts=leaves_out and task.state["step"].device == task.p.device,
        telemetry=telemetry,
        needs_update_rms=config.clips or telemetry,
        needs_parameter_rms=scales or telemetry,
        **layout,
    )


def _floats(task: Task) -> list[float]:
    recipe, plan, shard = task.config.recipe, task.config.plan, task.shard
    largest = math.inf if recipe.max_parameter_scale is None else recipe.max_parameter_scale
    threshold = math.inf if recipe.clipping_threshold is None else recipe.clipping_threshold
    sign = -1.0 if task.maximize else 1.0
    numbers = [sign, task.config.eps1, recipe.eps2, largest, threshold]
    for count in (shard.count(plan.cols), shard.count(plan.rows), shard.per_batch):
        power = 2 ** (count - 1).bit_length()
        numbers += [1 / power, power / count]
    return numbers


def _layout(places: Mapping[int, list[int]], sizes: Shape) -> dict[str, Any]:
    reduced = (tiles.V_ROW.value, tiles.V_COL.value, tiles.ELEMENTS.value)
    large = [place for name, place in places.items() if name not in reduced]
    one = {axis: all(place[axis + 1] == 1 or sizes[axis] == 1 for place in large) for axis in (2, 3)}
    unit = "cols" if one[3] and sizes[3] > 1 else "rows" if one[2] else "cols" if one[3] else ""
    even = all(place[0] % 16 == 0 and not any(stride % tiles.ALIGNED.value for stride in place[1:4]) for place in large)
    return {"unit": unit, "aligned": unit == "cols" and even and sizes[3] % tiles.ALIGNED.value == 0}


def _tile(sizes: Shape) -> dict[str, int]:
    """A tile that fits the parameter, its sides powers of 4, so that there are few to compile."""
    _, lead, rows, cols = sizes
    width = _side(cols, TILE if rows == 1 else LARGEST_COLS)
    height = _side(rows, TILE // width)
    whole = width >= cols and height >= rows
    depth = _side(lead, TILE // (width * height)) if whole else 1
    parts = 1 if depth > 1 else PARTS  # matrices that fit in a tile have one
    return {
        "lead": depth,
        "rows": height,
        "cols": width,
        "repeats": REPEATS if rows > height else 1,
        "parts": parts,
        "results": MEANS // parts,
        "mean_rows": max(height, MEANS // depth),
    }


def _side(length: int, most: int) -> int:
    side = 1
    while side < min(length, most):
        side *= 4
    return side


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
