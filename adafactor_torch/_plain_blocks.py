"""The common case of `_blocks.py` in as few passes as eager torch has: matrices, at most with a momentum of u."""

import math
from itertools import groupby

import torch
from torch import Tensor

from . import _kernels as kernels
from ._blocks import OWN, Part

# g / sqrt(C) is at most sqrt(rows / (1 - beta2)), some 1e5: lifted by this, the squares of 1e-30 of it are there, too.
LIFT = 2.0**36
EPS1 = 1e-32  # in float32 a smaller one has to be added to every g^2, before the scale of the sum makes it vanish


def is_plain(part: Part) -> bool:
    """Whether a part is of the common case."""
    setting, recipe = part.setting, part.setting.recipe
    kinds = part.p.dtype == part.g.dtype == setting.compute and part.plan.factored and part.amp.grad_scale is None
    options = setting.floor is not None or recipe.amsgrad or recipe.decays or not _has_plain_momentum(part)
    return kinds and not options and not part.across and part.work.telemetry is None and setting.eps1 >= EPS1


def _has_plain_momentum(part: Part) -> bool:
    """Whether a part has no momentum, or one of the clipped u that no storing rounds."""
    setting = part.setting
    if setting.averages is None:
        return True
    return setting.averages == "update" and part.state["m"].dtype == setting.compute and not setting.recipe.debias


def advance_plain(part: Part) -> None:
    """One step, in place."""
    setting, recipe, cut = part.setting, part.setting.recipe, part.cut
    ps, gs = cut(part.p), cut(part.g)
    rooms = _rooms(gs)
    row_scale, col_scale = _update_factors(part, gs, rooms)
    cols = cut(col_scale)
    count = math.prod(part.sizes[1:])
    size = part.p.new_ones((part.sizes[0], 1, 1, 1)) * part.now.rho
    norms = torch.empty_like(row_scale)  # of rows, in one pass: torch is slow to add all of a block to one number
    if setting.clips:
        for g, x, col, norm in zip(gs, rooms, cols, cut(norms), strict=True):
            torch.linalg.vector_norm(torch.mul(g, col, out=x), dim=3, keepdim=True, out=norm)
        u_rms = torch.linalg.vector_norm(norms.mul_(row_scale), dim=OWN, keepdim=True) / math.sqrt(count)
        row_scale /= (u_rms / recipe.clipping_threshold).clamp_(min=1.0)
    if recipe.multiply_by_parameter_scale:
        for p, norm in zip(ps, cut(norms), strict=True):
            torch.linalg.vector_norm(p, dim=3, keepdim=True, out=norm)
        p_rms = torch.linalg.vector_norm(norms, dim=OWN, keepdim=True) / math.sqrt(count)
        size *= kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)
    sign, beta1 = -1.0 if part.work.maximize else 1.0, part.now.beta1
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


def _rooms(blocks: list[Tensor]) -> list[Tensor]:
    """The same memory in the shape of each block; the first one is the largest."""
    room = torch.empty_like(blocks[0], memory_format=torch.contiguous_format)
    return [_like(block, room) for block in blocks]


def _like(block: Tensor, room: Tensor) -> Tensor:
    return room if block.shape == room.shape else room.view(-1)[: block.numel()].view(block.shape)


def _update_factors(part: Part, gs: list[Tensor], rooms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """R and C with the means of g^2 in them; sqrt(mean(R) / R) and 1 / sqrt(C), the scales of rows and columns,
    these lifted and those lowered."""
    setting, now, cut = part.setting, part.now, part.cut
    moments = part.state["v_row"], part.state["v_col"]
    rows, cols = (torch.zeros_like(moment, dtype=setting.compute) for moment in moments)
    # As in `kernels.mean`, squares are divided before they are added, by one power of two for both sums.
    scale = 2.0 ** -(max(part.sizes[2:]) - 1).bit_length()
    nothing = part.p.new_zeros((1, 1, 1, part.sizes[3]))  # without axes it would keep torch from using vectors
    # Blocks of one matrix are added to its first one, and that over its rows, which is slow, once.
    first = torch.empty_like(rooms[0]) if len(gs) > 1 else rooms[0]
    blocks = zip(gs, rooms, cut(rows), cut(cols), strict=True)
    for _, of_matrix in groupby(blocks, lambda block: block[3].data_ptr()):
        (g, _, row, col), *others = of_matrix
        total = _like(g, first)
        torch.addcmul(nothing, g, g, value=scale, out=total)
        torch.sum(total, 3, keepdim=True, out=row)
        for g, x, row, _ in others:
            torch.addcmul(nothing, g, g, value=scale, out=x)
            torch.sum(x, 3, keepdim=True, out=row)
            total[:, :, : x.shape[2]].add_(x)
        torch.sum(total, 2, keepdim=True, out=col)
    for kept, sums, count in zip(moments, (rows, cols), (part.sizes[3], part.sizes[2]), strict=True):
        means = sums.mul_(1.0 / (scale * count)).add_(setting.added)
        kept.copy_(kernels.ema(kept.to(setting.compute), means, now.beta2, now.beta2_complement))
    v_row, v_col = (moment.to(setting.compute) for moment in moments)
    row_root, col_root = kernels.root_factors((v_row, v_col), None, setting.plan)
    return row_root.reciprocal_().mul_(1 / LIFT), col_root.reciprocal_().mul_(LIFT)
