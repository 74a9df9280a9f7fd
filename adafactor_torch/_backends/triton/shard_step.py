"""Steps shards by the Triton kernels, with a workspace whose front holds what processes add up.

The front is ordered by parameter and not by group: groups are parameters with the same compiled kernels, and another
process, whose shards have other sizes, may have other groups. Values that the same processes add up at the same time
lie side by side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._sharding.step_mask import StepMask
from ..._task.reductions import PHASES, Reduction, reductions_of
from ..._task.shard import GroupKey, PartialSum, Shard
from ..._task.task import Amp, Task, mark_written
from ..protocol import Phases
from . import tiles
from .launch_group import LaunchGroup, SharedWorkspace, alike, is_captured, signature_of, wide_of
from .table_cache import cached_tables
from .tables import TaskRow, entry


def steps(tasks: list[Task], mask: StepMask, amp: Amp) -> Phases:
    """The step of shards."""
    amp = amp._replace(found_inf=None)  # that is one of the flags
    capturing = is_captured(tasks)
    checks = [task.checks for task in tasks]
    signature = amp.grad_scale is None, *checks, *((id(task.shard), signature_of(task)) for task in tasks)
    known: _Known = cached_tables(tasks[0].param, tasks, signature, capturing, lambda: _made(tasks, amp))
    for group in known.groups:
        group.prepare(tasks, amp, capturing)
    running = [group.step(tasks, amp) for group in known.groups]
    for pause in range(PHASES):
        for phases in running:
            next(phases)
        for group in known.groups if pause == 0 else ():
            if group.options.skips:
                mask.report([tasks[i] for i in group.members], group.flags != 0)
        yield known.sums[pause]
        for group in known.groups if pause == 0 else ():
            _leave_out(group, mask.applies([tasks[i] for i in group.members]))
    for phases in running:
        next(phases, None)
    mark_written(tasks)


def _leave_out(group: LaunchGroup, applies: Tensor | None) -> None:
    """Have the kernels write only the parameters for which the mask says so."""
    if applies is None:
        group.flags.zero_()
    else:
        group.flags.copy_(~applies)


class _Known(NamedTuple):
    """What is remembered of a set of parameters."""

    groups: list[LaunchGroup]
    sums: list[list[PartialSum]]  # at each pause
    shards: list[Shard]  # alive, for they are known by identity


_COLUMNS = {
    "row_means": tiles.ROW_MEANS.value,
    "col_means": tiles.COL_MEANS.value,
    "means": tiles.NORM_MEANS.value,
    "square_means": tiles.NORM_SQUARES.value,
    "p_means": tiles.P_MEANS.value,
    "u_means": tiles.U_MEANS.value,
}  # of `ints`, for the place of a share


def _made(tasks: list[Task], amp: Amp) -> _Known:
    entries = [entry(task, amp) for task in tasks]
    known = _Known([], [[] for _ in range(PHASES)], [task.shard for task in tasks])
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, (task, row) in enumerate(zip(tasks, entries, strict=True)):
        kinds.setdefault((task.p.device, wide_of(row.options)), []).append(i)
    for (device, wide), members in kinds.items():
        chosen = [entries[i] for i in members]
        places, regions = _places([tasks[i] for i in members])
        used = sum(region.size for region in regions)
        memory = torch.empty(used + sum(_size(one) for one in chosen), dtype=wide, device=device)
        start = 0
        for phase, groups, uniform, size in regions:
            if groups:
                known.sums[phase].append(PartialSum(memory[start : start + size], groups, uniform))
            start += size
        for _, options, own in alike([tasks[i] for i in members], chosen):
            room = SharedWorkspace(memory, start, [places[i] for i in own])
            known.groups.append(LaunchGroup(options, device, [members[i] for i in own], [chosen[i] for i in own], room))
            start += sum(_size(chosen[i]) for i in own)
    return known


def _size(one: TaskRow) -> int:
    return sum(one.workspace)


class _Region(NamedTuple):
    """Memory of what the same processes add up at the same time."""

    phase: int
    groups: tuple[GroupKey, ...]
    uniform: bool
    size: int


def _places(tasks: Sequence[Task]) -> tuple[list[dict[int, int]], list[_Region]]:
    """Where each parameter has what processes add up of it, and the regions of what they add up alike."""
    kinds: dict[tuple[Any, ...], list[tuple[int, Reduction]]] = {}
    for i, task in enumerate(tasks):
        shard = task.shard
        for one in reductions_of(task):
            kind = one.phase, shard.mesh, shard.dims_over(one.over), shard.is_uniform((*one.over, *one.removed))
            kinds.setdefault(kind, []).append((i, one))
    places: list[dict[int, int]] = [{} for _ in tasks]
    regions, start = list[_Region](), 0
    for (phase, _, _, uniform), of_region in kinds.items():
        first, size = of_region[0], 0
        for i, one in of_region:
            places[i][_COLUMNS[one.name]] = start + size
            size += one.size
        regions.append(_Region(phase, tasks[first[0]].shard.groups_over(first[1].over), uniform, size))
        start += size
    return places, regions
