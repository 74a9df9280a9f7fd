"""The record of one parameter in the table that the C++ reads (`struct Task` of task.h)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._task.matrix_view import as_matrices, element_indices, from_matrices, matrix_view, reduced_axes, strides_of
from ..._task.task import Task

WORD = "i8"
_ARRAY = np.dtype([("data", WORD), ("dtype", WORD), ("stride", WORD, 4)])
_ARRAYS = ("p", "g", "v_row", "v_col", "v", "v_max", "m", "compensation", "element")
_FLAGS = (
    *("factored", "eps1_is_floor", "amsgrad", "clips", "momentum", "debias", "momentum_rounding"),
    *("multiply_by_parameter_scale", "decay", "decay_before_scale", "maximize", "rounding", "key"),
)
_NUMBERS = (
    *("rho", "beta2", "beta2_complement", "bias2", "beta1", "beta1_complement", "narrow1", "bias1", "weight_decay"),
    *("eps1", "eps2", "max_parameter_scale", "clipping_threshold", "inverse_grad_scale"),
)
SHARES = ("row_means", "col_means", "means", "square_means", "p_means", "u_means")
# `struct Task` of task.h.
TASK = np.dtype(
    [("size", WORD, 4)]
    + [(name, _ARRAY) for name in _ARRAYS]
    + [(name, WORD) for name in _FLAGS]
    + [(name, "f8") for name in _NUMBERS]
    + [(name, WORD) for name in ("squares", "has_square_sum", "sum_order", "stale_square_sum", "telemetry")]
    + [(name, "f8") for name in ("all_rows", "all_cols", "all")]
    + [(name, WORD) for name in ("first", *SHARES, "norms", "skip")]
)
_ADDRESS = Tensor.data_ptr
_CODES = {getattr(torch, name): code for code, name in enumerate(("float64", "float32", "bfloat16", "float16"))}
_CODES[torch.int32] = -1  # of indices, which the C++ knows as such
_MOMENTUM = ("", "grad", "update", "step")
_DECAY = ("", "grad", "step", "one")
_ROUNDS = ("nearest", "stochastic", "kahan")
_MOMENTUM_ROUNDING = ("store", "use", "decay")


class TaskRecord:
    """What is written into a table for one parameter, for as long as its tensors stay where they are.

    Args:
        task: of the parameter.
    """

    def __init__(self, task: Task) -> None:
        self._config, self._shard = task.config, task.shard
        self._plan = plan = task.shard.plan
        self._scales = bool(task.config.recipe.multiply_by_parameter_scale)
        self._where = _where(task)
        self._copies: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []
        self._gradient: Tensor | None = None
        self.squares = torch.zeros(matrix_view(plan).sizes[0], dtype=torch.float64, device="cpu")
        self.version = -1  # of the parameter after the step in which `squares` were summed
        record = self.record = np.zeros((), TASK)
        record["size"], record["squares"] = matrix_view(plan).sizes, self.squares.data_ptr()
        self._sum_order = np.zeros((), WORD)  # of `squares`, written and read by the C++
        record["sum_order"] = self._sum_order.ctypes.data
        for name, x in {"p": task.p.detach(), **task.state}.items():
            if name != "step":
                reduced = reduced_axes(name, plan)
                view = as_matrices(x, plan, reduced)
                record[name] = _described(view)
                if view.data_ptr() != x.data_ptr():
                    self._copies.append((x, view, reduced))
        self.copied = bool(self._copies)
        self._strides = task.grad.stride()
        gradient = as_matrices(task.grad.detach(), plan)
        record["g"] = _described(gradient)
        self._copies_gradient = gradient.data_ptr() != task.grad.data_ptr()
        if self._config.rounds == "stochastic":
            self._elements = element_indices(plan, task.shard.elements)
            record["element"] = _described(self._elements)
            record["first"] = self._elements.storage_offset() if self._elements.is_meta else 0
        _write_flags(record, task)

    def fits(self, task: Task) -> bool:
        """Whether all is as it was. A copy is of what stood there when it was made, so it never fits again."""
        same = self._config is task.config and self._shard is task.shard and self._where == _where(task)
        return same and not self.copied and self._strides == task.grad.stride()

    def gradient(self, task: Task) -> int:
        """Where the gradient is, or a copy of it that is kept for this step."""
        if not self._copies_gradient:
            return task.grad.data_ptr()
        self._gradient = as_matrices(task.grad.detach(), self._plan)
        return self._gradient.data_ptr()

    def has_square_sum(self, version: int) -> bool:
        """Whether nobody has written the parameter, now of this version, since its squares were summed."""
        return self._scales and self.version == version

    @property
    def copies(self) -> bool:
        """Whether a step has to copy something, be it the gradient alone."""
        return self.copied or self._copies_gradient

    def copy_back(self) -> None:
        """Write what was computed in copies to where it belongs."""
        for x, view, reduced in self._copies:
            x.copy_(from_matrices(view, self._plan, tuple(x.shape), reduced))
        self._copies, self._gradient = [], None


def _where(task: Task) -> tuple[Any, ...]:
    # Addresses and not objects: `tensor.data = ...` moves one. Telemetry decides which sums a table asks for.
    options = task.maximize, task.telemetry is None
    return (*options, task.grad.dtype, task.p.data_ptr(), task.p.stride(), *map(_ADDRESS, task.state.values()))


def _described(view: Tensor) -> tuple[int, int, list[int]]:
    return (0, 0, strides_of(view)) if view.is_meta else (view.data_ptr(), _CODES[view.dtype], strides_of(view))


def _write_flags(record: Any, task: Task) -> None:
    config, recipe = task.config, task.config.recipe
    record["factored"], record["eps1_is_floor"] = config.plan.factored, config.floor is not None
    record["amsgrad"], record["clips"] = recipe.amsgrad, config.clips
    record["momentum"] = _MOMENTUM.index(config.momentum)
    record["debias"] = recipe.debias
    record["momentum_rounding"] = _MOMENTUM_ROUNDING.index(recipe.momentum_rounding)
    record["multiply_by_parameter_scale"] = recipe.multiply_by_parameter_scale
    record["decay_before_scale"] = recipe.decay_before_scale
    record["decay"] = _DECAY.index(config.decay)
    record["rounding"] = _ROUNDS.index(config.rounds)
    record["maximize"] = task.maximize
    record["eps1"], record["eps2"] = config.eps1, recipe.eps2
    record["max_parameter_scale"] = math.inf if recipe.max_parameter_scale is None else recipe.max_parameter_scale
    record["clipping_threshold"] = recipe.clipping_threshold if config.clips else 1.0
