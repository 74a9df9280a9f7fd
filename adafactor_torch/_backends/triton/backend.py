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
from ..._sharding.process_groups import Wires
from ..._sharding.step_mask import Flags
from ..._task.reductions import PAUSES, Share, shares_of
from ..._task.shard import Asked
from ..._task.task import Amp, mark_written
from . import tiles
from .launch_group import Group, Room, alike, is_captured, signature_of, wide_of
from .table_cache import remembered
from .tables import Entry, Part, entry

# A mesh, the dimensions of it along which there is something to add up, and whether that is even.
Dims = tuple[Any, tuple[int, ...], bool]


def steps(held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
    """One step, in place; see `sharded.py` for where it pauses."""
    works, amp = [one.work for one in held], amp._replace(found_inf=None)  # that is one of the flags
    capturing = is_captured(works)
    checks = [flags.checks(one.place) for one in held]
    signature = amp.grad_scale is None, *checks, *((id(one.lay), signature_of(one.work)) for one in held)
    known: _Known = remembered(held[0].of, works, signature, capturing, lambda: _made(held, checks, amp))
    for group in known.groups:
        group.ready(works, amp, capturing)
    running = [group.step(works, amp) for group in known.groups]
    for pause in range(PAUSES):
        for phases in running:
            next(phases)
        for group in known.groups if pause == 0 else ():
            if group.options.skips:
                flags.tell([held[i].place for i in group.members], group.flags != 0)
        yield [Asked(value, wires.of(mesh, dims), even) for value, (mesh, dims, even) in known.sums[pause]]
        for group in known.groups if pause == 0 else ():
            _leave_out(group, flags.good([held[i].place for i in group.members]))
    for phases in running:
        next(phases, None)
    mark_written(works)


def _leave_out(group: Group, good: Tensor | None) -> None:
    """Have the kernels write only the parameters that are good."""
    if good is None:
        group.flags.zero_()
    else:
        group.flags.copy_(~good)


class _Known(NamedTuple):
    """What is remembered of a set of parameters."""

    groups: list[Group]
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
    entries = [entry(one.work, amp, part) for one, part in zip(held, parts, strict=True)]
    known = _Known([], [[] for _ in range(PAUSES)], [one.lay for one in held])
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, (one, told) in enumerate(zip(held, entries, strict=True)):
        kinds.setdefault((one.work.p.device, wide_of(told.options)), []).append(i)
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
        for _, options, own in alike([held[i].work for i in members], chosen):
            room = Room(memory, start, [places[i] for i in own])
            known.groups.append(Group(options, device, [members[i] for i in own], [chosen[i] for i in own], room))
            start += sum(_size(chosen[i]) for i in own)
    return known


def _size(one: Entry) -> int:
    return sum(one.workspace)


def _places(held: Sequence[Held]) -> tuple[list[dict[int, int]], list[tuple[int, Dims, int]]]:
    """Where each parameter has its shares; the regions of what is added up alike: pause, dimensions, elements."""
    regions: dict[tuple[int, Any, tuple[int, ...], bool], list[tuple[int, Share]]] = {}
    for i, one in enumerate(held):
        lay = one.lay
        for share in shares_of(one.work.setting, lay.plan, lay.piece, one.work.telemetry is not None):
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
