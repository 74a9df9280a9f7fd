"""Who takes part in a run and in each of its cases, and whether the memory is enough for them."""

import itertools
from collections.abc import Callable, Mapping
from math import prod
from typing import Protocol, TypeVar

from adafactor_parity.errors import UsageError

from .options import Options
from .workloads import WORKLOADS

COPY_NUMBERS, QUICK_COPY_NUMBERS = 2**27, 2**20  # of float32: 512 MiB, beyond every cache, and 4 MiB


class TakesPart(Protocol):
    """An optimizer of a framework: in its table, with the fields that a run needs."""

    @property
    def label(self) -> str: ...

    @property
    def ours(self) -> bool: ...

    @property
    def full_states(self) -> int: ...

    def why_not(self, momentum: bool, tensors: int) -> str | None: ...


Entry = TypeVar("Entry", bound=TakesPart)


def chosen(entries: Mapping[str, Entry], options: Options, baseline: str) -> dict[str, Entry]:
    """Those that are asked for, and the baseline."""
    wanted = (*(options.optimizers or entries), baseline)
    return {name: entry for name, entry in entries.items() if name in wanted}


def cases(
    options: Options, entries: Mapping[str, Entry], itemsize: Callable[[str], int], free: int
) -> list[tuple[str, str, bool]]:
    """Workload, dtype and momentum of every case. Raises UsageError where `free` bytes are too few for one."""
    wanted = list(itertools.product(options.workloads, options.dtypes, options.momentum))
    for workload, dtype, momentum in wanted:
        part = taking_part(entries, momentum, len(WORKLOADS[workload](options.quick)))
        check_memory(options, workload, dtype, itemsize(dtype), part, free)
    return wanted


def taking_part(entries: Mapping[str, Entry], momentum: bool, tensors: int) -> dict[str, Entry]:
    """Those with a part in a case of that many tensors, with momentum or without."""
    return {name: entry for name, entry in entries.items() if entry.why_not(momentum, tensors) is None}


def left_out(entries: Mapping[str, Entry], momentum: bool, tensors: int) -> dict[str, str]:
    """Label to reason, of the others."""
    return {entry.label: why for entry in entries.values() if (why := entry.why_not(momentum, tensors))}


def copy_numbers(quick: bool) -> int:
    """How many float32 numbers are copied."""
    return QUICK_COPY_NUMBERS if quick else COPY_NUMBERS


def check_memory(
    options: Options, workload: str, dtype: str, itemsize: int, entries: Mapping[str, Entry], free: int
) -> None:
    """Raise UsageError where `free` bytes are too few for these optimizers side by side."""
    size = itemsize * sum(map(prod, WORKLOADS[workload](options.quick)))
    # Each has its own parameters, its state and a momentum; beside them are the first values, the gradients, and up
    # to three copies of temporaries.
    copies = 5 + sum(2 + entry.full_states for entry in entries.values())
    need = copies * size + 2 * 4 * copy_numbers(options.quick)
    if need > free:
        raise UsageError(
            f"the workload {workload} in {dtype} needs about {need / 2**30:.1f} GiB for {len(entries)} optimizers, "
            f"and {free / 2**30:.1f} GiB are free. Name fewer with --optimizers."
        )
