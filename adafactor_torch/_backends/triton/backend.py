"""Sharded parameters by the Triton kernels: the parts that this process holds, and a place for all that is shared.

What processes add up lies in the front of a workspace of all groups, in the order of the parameters: groups, which are
compiled alike, may be others on another process, whose parts have other sizes. What the same processes add up at the
same time is one piece of memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._sharding.dtensor import Lay
from ..._sharding.held import Held
from ..._sharding.process_groups import ProcessGroups
from ..._sharding.step_mask import StepMask
from ..._task.reductions import PHASES, Reduction, reductions_of
from ..._task.shard import PartialSum
from ..._task.task import Amp, mark_written
from . import tiles
from .launch_group import LaunchGroup, SharedWorkspace, alike, is_captured, signature_of, wide_of
from .table_cache import cached_tables
from .tables import Part, TaskRow, entry

# A mesh, the dimensions of it along which there is something to add up, and whether that is even.
Dims = tuple[Any, tuple[int, ...], bool]


def steps(held: list[Held], flags: StepMask, process_groups: ProcessGroups, amp: Amp) -> Iterator[list[PartialSum]]:
    """One step, in place; see `sharded.py` for where it pauses."""
    tasks, amp = [one.task for one in held], amp._replace(found_inf=None)  # that is one of the flags
    capturing = is_captured(tasks)
    checks = [flags.checks(one.place) for one in held]
    signature = amp.grad_scale is None, *checks, *((id(one.lay), signature_of(one.task)) for one in held)
    known: _Known = cached_tables(held[0].of, tasks, signature, capturing, lambda: _made(held, checks, amp))
    for group in known.groups:
        group.prepare(tasks, amp, capturing)
    running = [group.step(tasks, amp) for group in known.groups]
    for pause in range(PHASES):
        for phases in running:
            next(phases)
        for group in known.groups if pause == 0 else ():
            if group.options.skips:
                flags.report([held[i].place for i in group.members], group.flags != 0)
        yield [
            PartialSum(value, process_groups.of(mesh, dims), even) for value, (mesh, dims, even) in known.sums[pause]
        ]
        for group in known.groups if pause == 0 else ():
            _leave_out(group, flags.good([held[i].place for i in group.members]))
    for phases in running:
        next(phases, None)
    mark_written(tasks)


def _leave_out(group: LaunchGroup, good: Tensor | None) -> None:
    """Have the kernels write only the parameters that are good."""
    if good is None:
        group.flags.zero_()
    else:
        group.flags.copy_(~good)


class _Known(NamedTuple):
    """What is remembered of a set of parameters."""

    groups: list[LaunchGroup]
    sums: list[list[tuple[Tensor, Dims]]]  # at each pause
    lays: list[Lay]  # alive, for they are known by identity


_COLUMNS = {
    "row_means": tiles.ROW_MEANS.value,
    "col_means": tiles.COL_MEANS.value,
    "means": tiles.NORM_MEANS.value,
    "square_means": tiles.NORM_SQUARES.value,
    "p_means": tiles.P_MEANS.value,
    "u_means": tiles.U_MEANS.value,
}  # of `ints`, for the place of a share


def _made(held: list[Held], checks: list[bool], amp: Amp) -> _Known:
    parts = [Part(one.lay.plan, one.lay.piece, checked) for one, checked in zip(held, checks, strict=True)]
    entries = [entry(one.task, amp, part) for one, part in zip(held, parts, strict=True)]
    known = _Known([], [[] for _ in range(PHASES)], [one.lay for one in held])
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, (one, told) in enumerate(zip(held, entries, strict=True)):
        kinds.setdefault((one.task.p.device, wide_of(told.options)), []).append(i)
    for (device, wide), members in kinds.items():
        chosen = [entries[i] for i in members]
        places, regions = _places([held[i] for i in members])
        used = sum(count for *_, count in regions)
        memory = torch.empty(used + sum(_size(one) for one in chosen), dtype=wide, device=device)
        start = 0
        for pause, dims, count in regions:
            if dims[1]:
                known.sums[pause].append((memory[start : start + count], dims))
            start += count
        for _, options, own in alike([held[i].task for i in members], chosen):
            room = SharedWorkspace(memory, start, [places[i] for i in own])
            known.groups.append(LaunchGroup(options, device, [members[i] for i in own], [chosen[i] for i in own], room))
            start += sum(_size(chosen[i]) for i in own)
    return known


def _size(one: TaskRow) -> int:
    return sum(one.workspace)


def _places(held: Sequence[Held]) -> tuple[list[dict[int, int]], list[tuple[int, Dims, int]]]:
    """Where each parameter has its shares; the regions of what is added up alike: pause, dimensions, elements."""
    regions: dict[tuple[int, Any, tuple[int, ...], bool], list[tuple[int, Reduction]]] = {}
    for i, one in enumerate(held):
        lay = one.lay
        for share in reductions_of(one.task.config, lay.plan, lay.piece, one.task.telemetry is not None):
            kind = share.pause, lay.mesh, lay.dims_of(share.over), lay.is_even((*share.over, *share.gone))
            regions.setdefault(kind, []).append((i, share))
    places: list[dict[int, int]] = [{} for _ in held]
    sizes, start = [], 0
    for (pause, mesh, dims, even), of_region in regions.items():
        for i, share in of_region:
            places[i][_COLUMNS[share.name]] = start
            start += share.size
        sizes.append((pause, (mesh, dims, even), sum(share.size for _, share in of_region)))
    return places, sizes
