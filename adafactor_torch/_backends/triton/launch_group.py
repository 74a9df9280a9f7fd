"""Launches the Triton kernels for parameters that share one compiled version of them.

Such parameters form a group, and a group takes the same few launches however many parameters it has. Its tables stay on
the device. A step sends to it, without waiting, the numbers of the step and the addresses that have changed.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from adafactor_spec import Numbers

from ..._task.task import NO_AMP, NUMBERS, Amp, Task, mark_written
from ..protocol import Done, Phases
from ..reference import update
from . import tiles
from .stages import stages
from .table_cache import MOVED, cached_tables
from .tables import TaskRow, entry

# Products are not fused into sums: a GPU then rounds as the CPU does, which decides ties of a 16-bit momentum.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def step(tasks: Sequence[Task], amp: Amp = NO_AMP) -> None:
    """One step of every parameter, in place, with nothing read back to the host.

    `reference.update` says what a step does. Where one is left out, a `state["step"]` on the device is taken back; one
    on the host cannot be, as nobody there knows. A parameter without elements has no program and takes the plain path.

    Args:
        tasks: parameters with their gradients, states and numbers. `telemetry` is float32 and contiguous, `skipped`
            int32 or int64.
        amp: what a GradScaler says, on the device.

    Raises:
        RuntimeError: a CUDA graph is being captured, and a tensor is not where it was at the step before.
    """
    for _ in steps(prepare(tasks, amp), tasks, amp, lambda _: None):
        pass


def prepare(tasks: Sequence[Task], amp: Amp) -> "list[LaunchGroup]":
    """What a step needs: the tables of all parameters, and their kernels compiled."""
    full = [task for task in tasks if task.p.numel()]
    capturing = bool(full) and is_captured(full)
    groups = _groups(full, amp, capturing) if full else []
    for group in groups:
        group.prepare(full, amp, capturing)
    return groups


def steps(groups: "list[LaunchGroup]", tasks: Sequence[Task], amp: Amp, done: Done) -> Phases:
    """The step of whole parameters, of what `prepare` gave."""
    for task in tasks:
        if not task.p.numel():
            update(task, amp)
            done([task])
            yield []
    full = [task for task in tasks if task.p.numel()]
    for group in groups:
        for _ in group.step(full, amp):
            pass  # whole parameters have one stage
    mark_written(full)
    done(full)
    yield []


def is_captured(tasks: Sequence[Task]) -> bool:
    """Whether a CUDA graph is being made of a step of these."""
    return tasks[0].p.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class SharedWorkspace(NamedTuple):
    """Where a group has its workspace, where that is a part of a memory of several groups."""

    memory: Tensor
    first: int
    shared: list[dict[int, int]]  # of each parameter the columns of `ints` for what processes share, and where that is


@dataclass
class LaunchGroup:
    """Parameters that the same kernels step, and what these are told of them."""

    options: tiles.Options
    device: torch.device
    members: list[int]  # positions among the tasks
    entries: list[TaskRow]
    room: SharedWorkspace | None = None
    uploaded_addresses: list[list[int]] = field(default_factory=list)  # what `moving` was given last
    uploaded_numbers: list[list[float]] = field(default_factory=list)  # what `numbers` was
    offsets: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # of numbers in one tensor
    compiled: bool = False

    def __post_init__(self) -> None:
        wide, room = wide_of(self.options), self.room
        rows, used = [], room.first if room else 0
        for i, one in enumerate(self.entries):
            row = [0] * tiles.INTS.value
            row[:4] = one.sizes
            for column, size in enumerate(one.workspace, tiles.ROW_PARTS.value):
                row[column], used = used, used + size
            for column, place in one.places.items():
                row[column : column + 5] = place
            for column, where in room.shared[i].items() if room else ():
                row[column] = where
            rows.append(row)
        count = len(rows)
        self.ints = _upload(rows, torch.int64, self.device)
        self.floats = _upload([one.floats for one in self.entries], wide, self.device)
        self.workspace = room.memory if room else torch.empty(used, dtype=wide, device=self.device)
        self.flags = torch.zeros(count, dtype=torch.int32, device=self.device)
        self.moving = torch.zeros((count, tiles.MOVING.value), dtype=torch.int64, device=self.device)
        self.numbers = torch.zeros((count, tiles.NUMBERS_WIDTH.value), dtype=wide, device=self.device)
        self.constant = tiles.Options(*(tl.constexpr(option) for option in self.options))
        self.programs = {kind: self._programs(kind) for kind in self.entries[0].programs}

    def _programs(self, kind: str) -> Tensor:
        counts = torch.tensor([one.programs[kind] for one in self.entries], dtype=torch.int64, device="cpu")
        which = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int64, device="cpu"), counts)
        within = torch.arange(len(which), dtype=torch.int64, device="cpu") - (counts.cumsum(0) - counts)[which]
        return _upload(torch.stack([which, within], dim=1), torch.int32, self.device)

    def prepare(self, tasks: Sequence[Task], amp: Amp, capturing: bool) -> None:
        """What a step needs, and what of it can fail: tables that are up to date, and compiled kernels."""
        self._tell([tasks[i] for i in self.members], capturing)
        if self.device.type == "cuda" and not (self.compiled or capturing):
            with torch.cuda.device(self.device):
                for kernel, programs in itertools.chain(*self._stages()):
                    kernel.warmup(programs, *self._tables(amp), self.constant, grid=(len(programs),), **LAUNCH)
            self.compiled = True

    def step(self, tasks: Sequence[Task], amp: Amp) -> Iterator[None]:
        """One step of its parameters, which pauses between its stages."""
        own = [tasks[i] for i in self.members]
        for task, one in zip(own, self.entries, strict=True):
            for scratch in one.scratch:
                scratch.fill(_tensor(task, scratch.name))
        tables = self._tables(amp)
        if self.options.skips:
            self.flags.zero_()
        for number, stage in enumerate(self._stages()):
            if number:
                yield
            with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
                for kernel, programs in stage:
                    launch(kernel, programs, tables, self.constant)
        for task, one in zip(own, self.entries, strict=True):
            for scratch in one.scratch:
                if scratch.name != "grad":
                    scratch.empty(_tensor(task, scratch.name))

    def _tables(self, amp: Amp) -> tuple[Tensor, ...]:
        pointers = (self.workspace if x is None else x.to(self.device) for x in amp)
        return (self.ints, self.moving, self.floats, self.numbers, self.workspace, self.flags, *pointers)

    def _stages(self) -> list[list[tuple[Any, Tensor]]]:
        """The kernels of each stage, each with its programs; those without any are left out."""
        with_programs = [[(kernel, self.programs[kind]) for kernel, kind in stage] for stage in stages(self.options)]
        return [[(kernel, programs) for kernel, programs in stage if len(programs)] for stage in with_programs]

    def _tell(self, tasks: list[Task], capturing: bool) -> None:
        """Bring the device's tables up to date."""
        nows = {id(task.now): task.now for task in tasks}
        which = {known: i for i, known in enumerate(nows)}
        on_device = any(isinstance(task.key, Tensor) for task in tasks)
        moving = [
            [
                self._grad_address(task, one),
                0 if task.telemetry is None else task.telemetry.data_ptr(),
                0 if task.skipped is None else task.skipped.data_ptr(),
                task.state["step"].data_ptr(),
                which[id(task.now)],
                0 if on_device else task.key,
            ]
            for task, one in zip(tasks, self.entries, strict=True)
        ]
        if moving != self.uploaded_addresses:
            if capturing:
                raise RuntimeError(MOVED)
            self.moving.copy_(_pinned(moving, torch.int64, self.device), non_blocking=True)
            self.uploaded_addresses = moving
        if on_device:
            self.moving[:, tiles.KEY.value].copy_(self._column([task.key for task in tasks]))
        self._number(list(nows.values()), capturing)

    def _number(self, nows: list[Numbers], capturing: bool) -> None:
        columns = [[getattr(now, name) for now in nows] for name in NUMBERS]
        if capturing or any(isinstance(value, Tensor) for column in columns for value in column):
            self.uploaded_numbers = []
            for i, column in enumerate(columns):
                self.numbers[: len(nows), i].copy_(self._column(column))
            return
        numbers = [[value or 0.0 for value in row] for row in zip(*columns, strict=True)]
        if numbers != self.uploaded_numbers:
            self.numbers[: len(nows)].copy_(_pinned(numbers, self.numbers.dtype, self.device), non_blocking=True)
            self.uploaded_numbers = numbers

    def _column(self, values: list[Any]) -> Tensor:
        """Numbers, each a float, None or 0-dimensional tensor, on the device; those of one tensor by one operation."""
        if all(value is values[0] for value in values):
            return self._scalar(values[0]).expand(len(values))
        if not all(isinstance(value, Tensor) and value.dtype == values[0].dtype for value in values):
            return torch.stack([self._scalar(value) for value in values])
        places = [value.data_ptr() for value in values]
        lowest, size, memory = min(places), values[0].element_size(), values[0].untyped_storage()
        start = memory.data_ptr()
        if lowest < start or max(places) + size > start + memory.nbytes():
            return torch.stack([self._scalar(value) for value in values])
        offsets = tuple((place - lowest) // size for place in places)
        if offsets not in self.offsets:
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(MOVED)
            self.offsets[offsets] = _upload(offsets, torch.int64, self.device)
        whole = values[0].as_strided((max(offsets) + 1,), (1,), (lowest - start) // size)
        return whole.index_select(0, self.offsets[offsets])

    def _grad_address(self, task: Task, one: TaskRow) -> int:
        return one.places[tiles.G.value][0] if any(s.name == "grad" for s in one.scratch) else task.grad.data_ptr()

    def _scalar(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self.device).reshape(())
        return torch.full((), float(value or 0.0), dtype=torch.float64, device=self.device)


def launch(kernel: Any, programs: Tensor, tables: tuple[Tensor, ...], options: tiles.Options) -> None:
    """One launch, of as many programs as the table has rows."""
    kernel[(len(programs),)](programs, *tables, options, **LAUNCH)


def _groups(tasks: list[Task], amp: Amp, capturing: bool) -> list[LaunchGroup]:
    """The groups of a set of parameters, made when it is first seen."""
    signature = tuple(x is None for x in amp), tuple(signature_of(task) for task in tasks)
    groups: list[LaunchGroup] = cached_tables(tasks[0].p, tasks, signature, capturing, lambda: _grouped(tasks, amp))
    return groups


def _grouped(tasks: list[Task], amp: Amp) -> list[LaunchGroup]:
    entries = [entry(task, amp) for task in tasks]
    return [LaunchGroup(o, device, own, [entries[i] for i in own]) for device, o, own in alike(tasks, entries)]


def alike(tasks: Sequence[Task], entries: list[TaskRow]) -> list[tuple[torch.device, tiles.Options, list[int]]]:
    """Which parameters make a group: its device, its options, its members."""
    members: dict[tuple[torch.device, tiles.Options], list[int]] = {}
    for i, (task, one) in enumerate(zip(tasks, entries, strict=True)):
        members.setdefault((task.p.device, one.options), []).append(i)
    return [(*kind, own) for kind, own in members.items()]


def wide_of(options: tiles.Options) -> torch.dtype:
    """The dtype of a workspace."""
    return torch.float64 if options.wide == tl.float64 else torch.float32


def signature_of(task: Task) -> tuple[Any, ...]:
    """What a parameter's row in the tables, and its options, depend on."""
    grad, skipped = task.grad, task.skipped
    tensors = [task.p, *(x for name, x in task.state.items() if name != "step")]
    where = [(x.data_ptr(), x.stride(), x.dtype) for x in tensors]
    asked = (task.maximize, task.telemetry is None, skipped if skipped is None else skipped.dtype)
    beside = task.state["step"].device == task.p.device
    return (id(task.config), *asked, beside, grad.dtype, grad.stride(), grad.data_ptr() % 16, *where)


def _tensor(task: Task, name: str) -> Tensor:
    return {"p": task.p, "grad": task.grad}.get(name, task.state.get(name, task.p))


def _pinned(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the host, in memory that a copy to the device need not wait for and that is not reused before it is done."""
    host = torch.as_tensor(values, dtype=dtype, device="cpu")
    return host.pin_memory() if device.type == "cuda" else host


def _upload(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _pinned(values, dtype, device).to(device, non_blocking=True, copy=True)
