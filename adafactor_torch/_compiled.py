"""`fused=True` on a CPU: a table with a row for each parameter, and one call of the C++ in `_native`.

The sum of p^2 is carried from the step that wrote p to the next one, which then need not read p for RMS(p) alone. It
holds for as long as p's version counter says that nobody else has written p. A write through `p.data` or from outside
torch does not count there: the step notices one, because it adds the squares of what it overwrites, but after the fact.
It warns, and from then on every step reads p first.
"""

import ctypes
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import dtypes

from . import _native
from ._canonical import canonical, elements_of, from_view, reduced_axes, strides_of, view_of
from ._phases import Amp, Setting, Work
from ._steady import Steady

_WORD = "i8"
_ARRAY = np.dtype([("data", _WORD), ("dtype", _WORD), ("stride", _WORD, 4)])
_ARRAYS = ("p", "g", "v_row", "v_col", "v", "v_max", "m", "compensation", "element")
_FLAGS = (
    *("factored", "floors", "amsgrad", "clips", "momentum", "debias", "momentum_rounding", "scales", "decay"),
    *("decay_first", "maximize", "rounding", "key"),
)
_NUMBERS = (
    *("rho", "beta2", "complement2", "bias2", "beta1", "complement1", "narrow1", "bias1", "weight_decay"),
    *("eps1", "eps2", "largest", "threshold", "unscale"),
)
# `struct Task` of task.h.
_TASK = np.dtype(
    [("size", _WORD, 4)]
    + [(name, _ARRAY) for name in _ARRAYS]
    + [(name, _WORD) for name in _FLAGS]
    + [(name, "f8") for name in _NUMBERS]
    + [(name, _WORD) for name in ("squares", "known", "surprised", "telemetry")]
)
_ADDRESS = Tensor.data_ptr
_CODES = {getattr(torch, name): code for code, name in enumerate(("float64", "float32", "bfloat16", "float16"))}
_CODES[torch.int32] = -1  # of indices, which the C++ knows as such
_MOMENTUM = (None, "grad", "update", "step")
_MOMENTUM_ROUNDING = ("store", "use", "decay")
_FIELDS = {
    "rho": "rho",
    "beta2": "beta2",
    "complement2": "beta2_complement",
    "bias2": "bias2",
    "beta1": "beta1",
    "complement1": "beta1_complement",
    "bias1": "bias1",
    "weight_decay": "weight_decay",
}


class Compiled:
    """Steps parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self._carries = True  # sums of p^2
        self.rows: dict[Tensor, _Row] = {}

    def step(self, works: list[Work], amp: Amp, steady: Steady | None) -> bool:
        """One step of every parameter; False, and nothing done, where there is no compiled library."""
        library = _native.library()
        if library is None:
            return False
        assert library.adafactor_task() == _TASK.itemsize
        table = None if steady is None else steady.table
        if table is None:
            table = _Table(works, [self._row(work) for work in works])
            if steady is not None and table.lasts:
                steady.table = table
        if table.step(library, works, amp, self._carries):
            self._stop_carrying()
        return True

    def _stop_carrying(self) -> None:
        self._carries = False
        warnings.warn(
            "A parameter was written through .data or from outside torch, which its version counter does not show, so "
            "this step used RMS(p) from before that. From now on every step reads the parameters anew; write them "
            "under torch.no_grad() to keep the faster way.",
            stacklevel=2,
        )

    def _row(self, work: Work) -> "_Row":
        row = self.rows.get(work.p)
        if row is None or not row.fits(work):
            row = self.rows[work.p] = _Row(work)
        return row


class _Table:
    """The arguments of the C++ for some works, and for those of later steps whose tensors are where they were."""

    def __init__(self, works: list[Work], rows: list["_Row"]) -> None:
        self._rows, self._of = rows, np.array([row.record for row in rows], _TASK)
        self.lasts, self._copies = not any(row.copied for row in rows), any(row.copies for row in rows)
        self._surprised = np.zeros(len(rows), _WORD)
        self._of["surprised"] = self._surprised.ctypes.data + 8 * np.arange(len(rows))
        self._of["telemetry"] = [0 if work.telemetry is None else work.telemetry.data_ptr() for work in works]
        self._keyed = any(work.setting.stochastic for work in works)
        self._room: int | None = None
        self._narrows = [row for row, work in enumerate(works) if _narrows(work.setting)]

    def step(self, library: ctypes.CDLL, works: list[Work], amp: Amp, carries: bool) -> bool:
        """Step them; whether one was written since the step before, and its version counter does not show it."""
        table, rows, params = self._of, self._rows, [work.p for work in works]
        table["g"]["data"] = [row.gradient(work) for row, work in zip(rows, works, strict=True)]
        table["known"] = [carries and row.known(p) for row, p in zip(rows, params, strict=True)]
        if self._keyed:
            table["key"] = [work.key for work in works]
        _write_numbers(table, works, amp)
        for place in self._narrows:
            table["narrow1"][place] = _narrow_beta1(works[place])
        arguments = ctypes.c_void_p(table.ctypes.data), ctypes.c_int64(len(table))
        if self._room is None:
            self._room = library.adafactor_room(*arguments)
        room = torch.empty(self._room, dtype=torch.uint8)
        threads = ctypes.c_int64(torch.get_num_threads())
        library.adafactor_step(*arguments, threads, ctypes.c_void_p(room.data_ptr()))
        if self._copies:
            for row in rows:
                row.copy_back()
        torch.autograd.graph.increment_version(params)
        for row, p in zip(rows, params, strict=True):
            row.version = p._version
        surprised = bool(self._surprised.any())
        self._surprised[:] = 0
        return surprised


class _Row:
    """What is written into the table for one parameter, for as long as its tensors stay where they are."""

    def __init__(self, work: Work) -> None:
        self._setting, plan = work.setting, work.setting.plan
        self._scales = bool(work.setting.recipe.multiply_by_parameter_scale)
        self._where = _where(work)
        self._copies: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []
        self._gradient: Tensor | None = None
        self.squares = torch.zeros(canonical(plan).sizes[0], dtype=torch.float64)
        self.version = -1  # of the parameter after the step in which `squares` were summed
        record = self.record = np.zeros((), _TASK)
        record["size"], record["squares"] = canonical(plan).sizes, self.squares.data_ptr()
        for name, x in {"p": work.p.detach(), **work.state}.items():
            if name != "step":
                reduced = reduced_axes(name, plan)
                view = view_of(x, plan, reduced)
                record[name] = _described(view)
                if view.data_ptr() != x.data_ptr():
                    self._copies.append((x, view, reduced))
        self.copied = bool(self._copies)
        self._strides = work.grad.stride()
        gradient = view_of(work.grad.detach(), plan)
        record["g"] = _described(gradient)
        self._copies_gradient = gradient.data_ptr() != work.grad.data_ptr()
        if self._setting.stochastic:
            self._elements = elements_of(plan)
            record["element"] = _described(self._elements)
        _write_flags(record, work)

    def fits(self, work: Work) -> bool:
        """Whether all is as it was. A copy is of what stood there when it was made, so it never fits again."""
        same = self._setting is work.setting and self._where == _where(work)
        return same and not self.copied and self._strides == work.grad.stride()

    def gradient(self, work: Work) -> int:
        """Where the gradient is, or a copy of it that is kept for this step."""
        if not self._copies_gradient:
            return work.grad.data_ptr()
        self._gradient = view_of(work.grad.detach(), work.setting.plan)
        return self._gradient.data_ptr()

    def known(self, p: Tensor) -> bool:
        """Whether nobody has written the parameter since the squares of its elements were summed."""
        return self._scales and self.version == p._version

    @property
    def copies(self) -> bool:
        """Whether a step has to copy something, be it the gradient alone."""
        return self.copied or self._copies_gradient

    def copy_back(self) -> None:
        """Write what was computed in copies to where it belongs."""
        for x, view, reduced in self._copies:
            x.copy_(from_view(view, self._setting.plan, tuple(x.shape), reduced))
        self._copies, self._gradient = [], None


def _where(work: Work) -> tuple[Any, ...]:
    # Addresses and not objects: `tensor.data = ...` moves one.
    return (work.maximize, work.grad.dtype, work.p.data_ptr(), work.p.stride(), *map(_ADDRESS, work.state.values()))


def _described(view: Tensor) -> tuple[int, int, list[int]]:
    return (0, 0, strides_of(view)) if view.is_meta else (view.data_ptr(), _CODES[view.dtype], strides_of(view))


def _write_flags(record: Any, work: Work) -> None:
    setting, recipe = work.setting, work.setting.recipe
    record["factored"], record["floors"] = setting.plan.factored, setting.floor is not None
    record["amsgrad"], record["clips"] = recipe.amsgrad, setting.clips
    record["momentum"] = _MOMENTUM.index(setting.averages)
    record["debias"] = recipe.debias
    record["momentum_rounding"] = _MOMENTUM_ROUNDING.index(recipe.momentum_rounding)
    record["scales"], record["decay_first"] = recipe.multiply_by_parameter_scale, recipe.decay_before_scale
    record["decay"] = 1 if setting.l2 else 0 if not setting.decoupled else 2 if recipe.weight_decay_by == "step" else 3
    record["rounding"] = 1 if setting.stochastic else 2 if setting.compensated else 0
    record["maximize"] = work.maximize
    record["eps1"], record["eps2"] = setting.eps1, recipe.eps2
    record["largest"] = math.inf if recipe.max_parameter_scale is None else recipe.max_parameter_scale
    record["threshold"] = recipe.clipping_threshold if setting.clips else 1.0


def _write_numbers(table: Any, works: list[Work], amp: Amp) -> None:
    def write(name: str, values: list[float | None]) -> None:
        table[name] = [0.0 if value is None else value for value in values]

    nows = [work.now for work in works]
    nows = nows[:1] if all(now is nows[0] for now in nows) else nows  # a list of one is written to every row
    for name, field in _FIELDS.items():
        write(name, [getattr(now, field) for now in nows])
    table["unscale"] = 1.0 if amp.grad_scale is None else 1.0 / float(amp.grad_scale)


def _narrows(setting: Setting) -> bool:
    return setting.averages is not None and setting.recipe.momentum_rounding == "decay"


def _narrow_beta1(work: Work) -> Any:
    dtype = work.setting.recipe.momentum_dtype_for(work.setting.dtype)
    return dtypes.round_to(np.asarray(work.now.beta1, np.float64), dtype)
