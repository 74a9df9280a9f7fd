"""The table from which the C++ in `src/` steps parameters, and its calls."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import dtypes

from ..._task.task import Amp, ParamConfig, Task, mark_written
from .record import TASK, WORD, TaskRecord

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


class TaskTable:
    """The arguments of the C++ for some tasks, and for those of later steps whose tensors are where they were."""

    def __init__(self, tasks: list[Task], rows: list[TaskRecord]) -> None:
        self.rows, self._of = rows, np.array([row.record for row in rows], TASK)
        self.lasts, self._copies = not any(row.copied for row in rows), any(row.copies for row in rows)
        self._surprised = np.zeros(len(rows), WORD)
        self._of["surprised"] = self._surprised.ctypes.data + 8 * np.arange(len(rows))
        self._of["telemetry"] = [0 if task.telemetry is None else task.telemetry.data_ptr() for task in tasks]
        self._keyed = any(task.config.stochastic for task in tasks)
        self._room: int | None = None
        self._memory: Tensor | None = None
        self._narrows = [row for row, task in enumerate(tasks) if _narrows(task.config)]

    def begin(self, library: ctypes.CDLL, tasks: list[Task], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone, and take the memory that the C++ works in, for as long as that takes."""
        table = self._of
        table["g"]["data"] = [row.gradient(task) for row, task in zip(self.rows, tasks, strict=True)]
        table["known"] = [
            carries and row.known(version) for row, version in zip(self.rows, self._versions(tasks), strict=True)
        ]
        if self._keyed:
            table["key"] = [task.key for task in tasks]
        _write_numbers(table, tasks, amp)
        for place in self._narrows:
            table["narrow1"][place] = _narrow_beta1(tasks[place])
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

    def end(self, tasks: list[Task]) -> bool:
        """Take note of what has been written.

        Returns:
            Whether one was written since the step before, and its version counter does not show it.
        """
        self._memory = None
        if self._copies:
            for row in self.rows:
                row.copy_back()
        mark_written(tasks)
        for row, version in zip(self.rows, self._versions(tasks), strict=True):
            row.version = version
        surprised = bool(self._surprised.any())
        self._surprised[:] = 0
        return surprised

    def _arguments(self) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
        return ctypes.c_void_p(self._of.ctypes.data), ctypes.c_int64(len(self._of))

    def _versions(self, tasks: list[Task]) -> list[int]:
        """A number of each parameter that grows with every write."""
        return [task.p._version for task in tasks]


def _write_numbers(table: Any, tasks: list[Task], amp: Amp) -> None:
    def write(name: str, values: list[float | None]) -> None:
        table[name] = [_NEUTRAL[name] if value is None else value for value in values]

    nows = [task.now for task in tasks]
    nows = nows[:1] if all(now is nows[0] for now in nows) else nows  # a list of one is written to every row
    for name, field in _FIELDS.items():
        write(name, [getattr(now, field) for now in nows])
    table["unscale"] = 1.0 if amp.grad_scale is None else 1.0 / float(amp.grad_scale)


def _narrows(config: ParamConfig) -> bool:
    return config.averages is not None and config.recipe.momentum_rounding == "decay"


def _narrow_beta1(task: Task) -> Any:
    dtype = task.config.recipe.momentum_dtype_for(task.config.dtype)
    return dtypes.round_to(np.asarray(task.now.beta1, np.float64), dtype)
