"""The three phases of a step on blocks: one form for every recipe, and one in fewer passes for the common ones."""

import math
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from ... import _kernels as kernels
from ..._task.shard import PartialSum
from .. import reference as phases
from .blocks import OWN, BlockedTask
from .factors import Factors, no_means, plan_of, write

# g / sqrt(C) is at most sqrt(rows / (1 - beta2)), some 1e5: lifted by this, the squares of 1e-30 of it are there, too.
LIFT = 2.0**36
EPS1 = 1e-32  # in float32 a smaller one has to be added to every g^2, before the scale of the sum makes it vanish


def is_dense_matrix(part: BlockedTask) -> bool:
    """Whether a part is of the common case."""
    config, recipe = part.config, part.config.recipe
    kinds = part.p.dtype == part.g.dtype == config.compute and part.plan.factored and part.amp.grad_scale is None
    options = config.floor is not None or recipe.amsgrad or recipe.decays or not _has_plain_momentum(part)
    measured = part.task.telemetry is not None or not part.p.numel()
    return kinds and not options and not part.across and not measured and config.eps1 >= EPS1


def _has_plain_momentum(part: BlockedTask) -> bool:
    """Whether a part has no momentum, or one of the clipped u that no storing rounds."""
    config = part.config
    if not config.momentum:
        return True
    return config.momentum == "update" and part.state["m"].dtype == config.compute and not config.recipe.debias


def advance_dense_matrix(part: BlockedTask) -> None:
    """One step of whole tensors, in place."""
    for _ in step_dense_matrix(part):
        pass  # what it asks for is there already


def step_dense_matrix(part: BlockedTask) -> Iterator[list[PartialSum]]:
    """One step, in place, of parameters that all take it: with the pauses of `step_blocks`, and the same sums."""
    config, recipe, cut = part.config, part.config.recipe, part.cut
    ps, gs = cut(part.p), cut(part.g)
    rooms = _rooms(gs)
    factors, sums = Factors(part, *_means_of(part, gs, rooms)), list[PartialSum]()
    norms = torch.empty_like(factors.rows)  # of rows, in one pass: torch is slow to add all of a block to one number

    def squares_of_p() -> Tensor:
        for p, norm in zip(ps, cut(norms), strict=True):
            torch.linalg.vector_norm(p, dim=3, keepdim=True, out=norm)
        return _share(norms, part)

    scales, alone = recipe.multiply_by_parameter_scale, not part.shard.is_split(part.one.rms_axes)
    if scales and not alone:
        sums.append(part.shard.partial_sum(p_squares := squares_of_p(), part.one.rms_axes))
    yield [*factors.sums, *sums]
    yield factors.update()
    row_root, col_root = factors.roots()
    row_scale, col_scale = row_root.reciprocal_().mul_(1 / LIFT), col_root.reciprocal_().mul_(LIFT)
    cols, sums = cut(col_scale), []
    if config.clips:
        for g, x, col, norm in zip(gs, rooms, cols, cut(norms), strict=True):
            torch.linalg.vector_norm(torch.mul(g, col, out=x), dim=3, keepdim=True, out=norm)
        sums.append(part.shard.partial_sum(u_squares := _share(norms.mul_(row_scale), part), part.one.rms_axes))
    yield sums
    if config.clips:
        row_scale = kernels.clip(row_scale, torch.sqrt(u_squares), recipe.clipping_threshold or math.inf)
    size = part.p.new_ones((part.sizes[0], 1, 1, 1)) * part.now.rho
    if scales:  # alone it reads p right before p is written
        p_rms = torch.sqrt(squares_of_p() if alone else p_squares)
        size *= kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)
    sign, beta1 = -1.0 if part.task.maximize else 1.0, part.now.beta1
    ms = cut(part.state["m"]) if beta1 is not None else [None] * len(ps)
    row_scale *= size if beta1 is None else part.now.beta1_complement
    for g, p, m, x, row, col, own_size in zip(gs, ps, ms, rooms, cut(row_scale), cols, cut(size), strict=True):
        # Columns first, as in the reference: a product of scales can overflow where g is 0.
        torch.mul(g, col, out=x)
        if m is None:
            p.addcmul_(x, row, value=-sign)
        else:
            m.mul_(beta1).addcmul_(x, row, value=sign)
            p.sub_(torch.mul(m, own_size, out=x))
    part.write_copies()


def _share(norms: Tensor, part: BlockedTask) -> Tensor:
    """What the norms of rows add to the mean of squares of their batch indices."""
    return (torch.linalg.vector_norm(norms, dim=OWN, keepdim=True) / math.sqrt(part.shard.per_batch)).square_()


def _rooms(blocks: list[Tensor]) -> list[Tensor]:
    """The same memory in the shape of each block; the first one is the largest."""
    room = torch.empty_like(blocks[0], memory_format=torch.contiguous_format)
    return [_like(block, room) for block in blocks]


def _like(block: Tensor, room: Tensor) -> Tensor:
    return room if block.shape == room.shape else room.view(-1)[: block.numel()].view(block.shape)


def _means_of(part: BlockedTask, gs: list[Tensor], rooms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The means of g^2 that `Factors` takes."""
    config, cut, (rows, cols) = part.config, part.cut, no_means(part)
    # As in `kernels.mean`, squares are divided before they are added, by one power of two for both sums. The square is
    # divided and not the gradient: what is infinite of it is infinite on every path.
    scale = 2.0 ** -(max(part.sizes[2:]) - 1).bit_length()
    # Blocks of one matrix are added to its first one, and that over its rows, which is slow, once.
    first = torch.empty_like(rooms[0]) if len(gs) > 1 else rooms[0]
    blocks = zip(gs, rooms, cut(rows), cut(cols), strict=True)
    for _, of_matrix in groupby(blocks, lambda block: block[3].data_ptr()):
        (g, _, row, col), *others = of_matrix
        total = _like(g, first)
        torch.mul(g, g, out=total).mul_(scale)
        torch.sum(total, 3, keepdim=True, out=row)
        for g, x, row, _ in others:
            torch.mul(g, g, out=x).mul_(scale)
            torch.sum(x, 3, keepdim=True, out=row)
            total[:, :, : x.shape[2]].add_(x)
        torch.sum(total, 2, keepdim=True, out=col)
    all_rows = part.shard.count(part.one.rows)
    rows.mul_(1.0 / (scale * part.sizes[3])).add_(config.added)
    cols.mul_(1.0 / (scale * all_rows)).add_(config.added * (part.sizes[2] / all_rows))
    return rows, cols


Roots = list[tuple[Tensor, ...]]


def advance(part: BlockedTask) -> None:
    """One step of whole tensors, in place."""
    for _ in step_blocks(part):
        pass  # what it asks for is there already


def step_blocks(part: BlockedTask) -> Iterator[list[PartialSum]]:
    """One step, in place, which stops between phases for the sums that it needs from all processes.

    Where `part.applies` has been set by then, a mask [batch, 1, 1, 1], the step is written only there.
    """
    config, recipe, cut, telemetry = part.config, part.config.recipe, part.cut, part.task.telemetry
    ps, gs, states = cut(part.p), cut(part.g), part.states()
    per_batch = part.p.new_zeros((part.sizes[0], 1, 1, 1), dtype=config.compute)
    p_squares, u_squares = per_batch.clone(), per_batch.clone()
    factors = Factors(part, *means_of(part, ps, gs, states)) if part.plan.factored else None
    sums = [] if factors is None else factors.sums
    if recipe.multiply_by_parameter_scale or telemetry is not None:
        for into, p, state in zip(cut(p_squares), ps, states, strict=True):
            into += _share_of_squares(part.weight(p, state), part)
        sums.append(part.shard.partial_sum(p_squares, part.one.rms_axes))
    yield sums
    yield [] if factors is None else factors.update()
    roots: Roots = [()] * len(ps) if factors is None else list(zip(*map(cut, factors.roots()), strict=True))
    if config.clips or telemetry is not None:
        for into, p, g, root, state in zip(cut(u_squares), ps, gs, roots, states, strict=True):
            into += _share_of_squares(_direction(part, p, g, root, state)[0], part)
    yield [part.shard.partial_sum(u_squares, part.one.rms_axes)] if config.clips or telemetry is not None else []
    p_rms, u_rms = torch.sqrt(p_squares), torch.sqrt(u_squares)
    clip = kernels.clip_factor(u_rms, recipe.clipping_threshold or math.inf)
    key = part.task.key
    keys = cut(key) if isinstance(key, Tensor) and key.ndim else [key] * len(ps)
    rows = zip(ps, gs, states, roots, cut(p_rms), cut(clip), keys, part.masks(), strict=True)
    for (p, g, state, root, own_rms, own_clip, own_key, applies), elements in zip(rows, part.elements(), strict=True):
        u, kept = _direction(part, p, g, root, state)
        u = u / own_clip if config.clips else u
        new, moved = phases.apply(part.weight(p, state), u, own_rms, state, config, part.now)
        written = phases.rounded(new, config, own_key, elements)
        write(p, written.pop("p"), applies)
        for name, value in (kept | moved | written).items():
            write(state[name], value, applies)
    if telemetry is not None:
        value = phases.telemetry_of(u_rms, p_rms, config, part.now)
        write(telemetry, value, None if part.applies is None else part.applies.view(-1, 1))
    part.write_copies()


def _direction(
    part: BlockedTask, p: Tensor, g: Tensor, roots: tuple[Tensor, ...], state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """u of a block, and what is to be kept of it."""
    config, now, kept = part.config, part.now, dict[str, Tensor]()
    g = part.gradient(p, g, state)
    if not roots:
        (square,) = kernels.statistics(g, config.added, plan_of(g, config))
        v = state["v"]
        kept["v"] = kernels.ema(v.to(g.dtype), square, now.beta2, now.beta2_complement).to(v.dtype)
        roots = kernels.root_factors((kept["v"].to(g.dtype),), config.floor, config.plan)
    u, moved = phases.direction(g, roots, state, config, now)
    return u, kept | moved


def _share_of_squares(x: Tensor, part: BlockedTask) -> Tensor:
    """What a block adds to the mean of x^2 of its batch indices."""
    return kernels.mean(x * x, OWN) * (math.prod(x.shape[1:]) / part.shard.per_batch)


def means_of(
    part: BlockedTask, ps: list[Tensor], gs: list[Tensor], states: list[dict[str, Tensor]]
) -> tuple[Tensor, ...]:
    """The means of g^2 that `Factors` takes, from blocks: phase 1."""
    config, cut, (rows, cols) = part.config, part.cut, no_means(part)
    (of_rows,) = config.plan.rows
    for p, g, state, row, col in zip(ps, gs, states, cut(rows), cut(cols), strict=True):
        wide = part.gradient(p, g, state)
        row_means, col_means = kernels.statistics(wide, config.added, plan_of(wide, config))
        row.copy_(row_means)
        col += col_means * (wide.shape[of_rows] / part.shard.count(part.one.rows))
    return rows, cols
