"""The table from which the C++ in `src/` steps parameters, and its calls."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import dtypes

from ..._task.task import Amp, Setting, Work, mark_written
from .record import TASK, WORD, Row

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
# What a number is where the recipe has no such thing: an average that is x itself, divided by 1.
_NEUTRAL = {"bias2": 1.0, "beta1": 0.0, "complement1": 1.0, "bias1": 1.0}


class Table:
    """The arguments of the C++ for some works, and for those of later steps whose tensors are where they were."""

    def __init__(self, works: list[Work], rows: list[Row]) -> None:
        self.rows, self._of = rows, np.array([row.record for row in rows], TASK)
        self.lasts, self._copies = not any(row.copied for row in rows), any(row.copies for row in rows)
        self._surprised = np.zeros(len(rows), WORD)
        self._of["surprised"] = self._surprised.ctypes.data + 8 * np.arange(len(rows))
        self._of["telemetry"] = [0 if work.telemetry is None else work.telemetry.data_ptr() for work in works]
        self._keyed = any(work.setting.stochastic for work in works)
        self._room: int | None = None
        self._memory: Tensor | None = None
        self._narrows = [row for row, work in enumerate(works) if _narrows(work.setting)]

    def begin(self, library: ctypes.CDLL, works: list[Work], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone, and take the memory that the C++ works in, for as long as that takes."""
        table = self._of
        table["g"]["data"] = [row.gradient(work) for row, work in zip(self.rows, works, strict=True)]
        table["known"] = [
            carries and row.known(version) for row, version in zip(self.rows, self._versions(works), strict=True)
        ]
        if self._keyed:
            table["key"] = [work.key for work in works]
        _write_numbers(table, works, amp)
        for place in self._narrows:
            table["narrow1"][place] = _narrow_beta1(works[place])
        if self._room is None:
            self._room = library.adafactor_room(*self._arguments())
        self._memory = torch.empty(self._room, dtype=torch.uint8, device="cpu")

    def run(self, library: ctypes.CDLL, phase: int | None = None) -> None:
        """Have the C++ do all of a step, or one of its phases."""
        assert self._memory is not None
        threads = ctypes.c_int64(torch.get_num_threads())
        where = ctypes.c_void_p(self._memory.data_ptr())
        if phase is None:
            library.adafactor_step(*self._arguments(), threads, where)
        else:
            library.adafactor_phase(*self._arguments(), threads, where, ctypes.c_int64(phase))

    def end(self, works: list[Work]) -> bool:
        """Take note of what has been written.

        Returns:
            Whether one was written since the step before, and its version counter does not show it.
        """
        self._memory = None
        if self._copies:
            for row in self.rows:
                row.copy_back()
        mark_written(works)
        for row, version in zip(self.rows, self._versions(works), strict=True):
            row.version = version
        surprised = bool(self._surprised.any())
        self._surprised[:] = 0
        return surprised

    def _arguments(self) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
        return ctypes.c_void_p(self._of.ctypes.data), ctypes.c_int64(len(self._of))

    def _versions(self, works: list[Work]) -> list[int]:
        """A number of each parameter that grows with every write."""
        return [work.p._version for work in works]


def _write_numbers(table: Any, works: list[Work], amp: Amp) -> None:
    def write(name: str, values: list[float | None]) -> None:
        table[name] = [_NEUTRAL[name] if value is None else value for value in values]

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
