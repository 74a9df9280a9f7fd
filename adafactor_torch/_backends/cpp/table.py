"""The table of records that the C++ reads, with the buffers for what processes add up, and the calls of the C++."""

import ctypes
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import dtypes

from ..._task.matrix_view import matrix_view
from ..._task.reductions import Reduction, reductions_of
from ..._task.shard import GroupKey, PartialSum
from ..._task.task import NUMBERS, Amp, ParamConfig, Task, mark_written
from .record import TASK, WORD, TaskRecord

# What a number is where the recipe has no such thing: an average that is x itself, divided by 1.
_NEUTRAL = {"bias2": 1.0, "beta1": 0.0, "beta1_complement": 1.0, "bias1": 1.0}


BEGIN, MIDDLE, END = range(3)  # `Phase` of shard.cpp
_PHASE_BEFORE = {0: BEGIN, 2: MIDDLE}  # a pause


class TaskTable:
    """The arguments of the C++ for some tasks, and for those of later steps whose tensors are where they were.

    Of shards it has the buffers, too, of what processes add up: all that is added up over the same process groups at
    the same time lies together.
    """

    def __init__(self, tasks: list[Task], rows: list[TaskRecord]) -> None:
        self.rows, self._of = rows, np.array([row.record for row in rows], TASK)
        self.lasts, self._copies = not any(row.copied for row in rows), any(row.copies for row in rows)
        self._stale = np.zeros(len(rows), WORD)
        self._of["stale_square_sum"] = self._stale.ctypes.data + 8 * np.arange(len(rows))
        self._of["telemetry"] = [0 if task.telemetry is None else task.telemetry.data_ptr() for task in tasks]
        self._keyed = any(task.config.rounds == "stochastic" for task in tasks)
        self._room: int | None = None
        self._memory: Tensor | None = None
        self._narrows = [row for row, task in enumerate(tasks) if _narrows(task.config)]
        self._shared = any(task.shard.is_shared for task in tasks)
        self._measures = self._shared and any(task.telemetry is not None for task in tasks)
        self.partial_sums: dict[int, list[PartialSum]] = {BEGIN: [], MIDDLE: []}
        self._buffers = self._laid_out(tasks) if self._shared else []

    def _laid_out(self, tasks: list[Task]) -> list[Tensor]:
        kinds: dict[tuple[Any, ...], list[tuple[int, Reduction]]] = {}
        for row, task in enumerate(tasks):
            shard = task.shard
            whole = shard.whole
            self._of["all_rows"][row], self._of["all_cols"][row] = shard.count(whole.rows), shard.count(whole.cols)
            self._of["all"][row] = shard.per_batch
            reductions = reductions_of(task)
            if whole.factored:  # local scratch: sqrt(mean(R)) of each matrix
                reductions.append(Reduction("norms", 0, math.prod(matrix_view(shard.plan).sizes[:2]), ()))
            for one in reductions:
                groups, uniform = shard.groups_over(one.over), shard.is_uniform((*one.over, *one.removed))
                kind = task.config.compute, _PHASE_BEFORE[one.phase], groups, uniform
                kinds.setdefault(kind, []).append((row, one))
        return [self._laid(reductions, *kind) for kind, reductions in kinds.items()]

    def _laid(
        self,
        reductions: list[tuple[int, Reduction]],
        dtype: torch.dtype,
        phase: int,
        groups: tuple[GroupKey, ...],
        uniform: bool,
    ) -> Tensor:
        buffer = torch.zeros(sum(one.size for _, one in reductions), dtype=dtype, device="cpu")
        place = buffer.data_ptr()
        for row, one in reductions:
            self._of[one.name][row] = place
            place += one.size * buffer.itemsize
        self.partial_sums[phase].append(PartialSum(buffer, groups, uniform))
        return buffer

    def begin(self, library: ctypes.CDLL, tasks: list[Task], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone, and take the memory that the C++ works in, for as long as that takes.

        A shard without elements writes nothing of what processes add up: there are zeros.
        """
        table = self._of
        table["g"]["data"] = [row.gradient(task) for row, task in zip(self.rows, tasks, strict=True)]
        rows = zip(self.rows, self._versions(tasks), strict=True)
        table["has_square_sum"] = [carries and row.has_square_sum(version) for row, version in rows]
        if self._keyed:
            table["key"] = [task.key for task in tasks]
        _write_numbers(table, tasks, amp)
        for place in self._narrows:
            table["narrow1"][place] = _narrow_beta1(tasks[place])
        if self._room is None:
            self._room = library.adafactor_room(*self._arguments())
        self._memory = torch.empty(self._room, dtype=torch.uint8, device="cpu")
        for buffer in self._buffers:
            buffer.zero_()
        if self._measures:
            self._of["telemetry"] = [0 if task.telemetry is None else task.telemetry.data_ptr() for task in tasks]

    def run(self, library: ctypes.CDLL, phase: int | None = None) -> None:
        """Have the C++ do all of a step, or one of its phases."""
        assert self._memory is not None
        threads = ctypes.c_int64(torch.get_num_threads())
        where = ctypes.c_void_p(self._memory.data_ptr())
        if phase is None:
            library.adafactor_step(*self._arguments(), threads, where)
        else:
            library.adafactor_phase(*self._arguments(), threads, where, ctypes.c_int64(phase))

    def leave_out(self, applies: Tensor | None) -> None:
        """Have only the tasks written for which the mask says so."""
        self._of["skip"] = 0 if applies is None else (~applies).numpy()

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
        stale = bool(self._stale.any())
        self._stale[:] = 0
        return stale

    def _arguments(self) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
        return ctypes.c_void_p(self._of.ctypes.data), ctypes.c_int64(len(self._of))

    def _versions(self, tasks: list[Task]) -> list[int]:
        """A number of each parameter that grows with every write.

        Operators on a DTensor count as writes of that alone, those on its local tensor as writes of that alone.
        """
        if self._shared:
            return [task.param._version + task.p._version for task in tasks]
        return [task.p._version for task in tasks]


def _write_numbers(table: Any, tasks: list[Task], amp: Amp) -> None:
    def write(name: str, values: list[float | None]) -> None:
        table[name] = [_NEUTRAL[name] if value is None else value for value in values]

    nows = [task.now for task in tasks]
    nows = nows[:1] if all(now is nows[0] for now in nows) else nows  # a list of one is written to every row
    for name in NUMBERS:
        write(name, [getattr(now, name) for now in nows])
    table["inverse_grad_scale"] = 1.0 if amp.grad_scale is None else 1.0 / float(amp.grad_scale)


def _narrows(config: ParamConfig) -> bool:
    return config.momentum != "" and config.recipe.momentum_rounding == "decay"


def _narrow_beta1(task: Task) -> Any:
    dtype = task.config.recipe.momentum_dtype_for(task.config.dtype)
    return dtypes.round_to(np.asarray(task.now.beta1, np.float64), dtype)
