"""The common case of `_blocks.py` in as few passes as eager torch has: matrices with g, p, R and C, nothing more."""

import math

import torch
from torch import Tensor

from . import _kernels as kernels
from ._blocks import OWN, Part
from ._squares import Squares

EPS1 = 1e-32  # in float32 a smaller one has to be added to every g^2, before the scale of the sum makes it vanish


def is_plain(part: Part) -> bool:
    """Whether a part is of the common case."""
    setting, recipe = part.setting, part.setting.recipe
    kinds = part.p.dtype == part.g.dtype == setting.compute and part.plan.factored and part.amp.grad_scale is None
    options = setting.floor is not None or recipe.amsgrad or setting.averages or recipe.decays
    return kinds and not options and not part.across and part.work.telemetry is None and setting.eps1 >= EPS1


def advance_plain(part: Part, squares: Squares | None) -> None:
    """One step, in place; `squares` carries the sums of p^2 from step to step."""
    setting, recipe, cut = part.setting, part.setting.recipe, part.cut
    ps, gs = cut(part.p), cut(part.g)
    room = torch.empty_like(gs[0], memory_format=torch.contiguous_format)
    rooms = [room if g.shape == room.shape else room.view(-1)[: g.numel()].view(g.shape) for g in gs]
    row_scale, col_scale = _update_factors(part, gs, rooms)
    cols = cut(col_scale)
    count = math.prod(part.sizes[1:])
    factor = part.p.new_ones((part.sizes[0], 1, 1, 1)) * part.now.rho
    if setting.clips:
        norms = torch.empty_like(row_scale)
        for g, x, col, norm in zip(gs, rooms, cols, cut(norms), strict=True):
            torch.linalg.vector_norm(torch.mul(g, col, out=x), dim=3, keepdim=True, out=norm)
        u_rms = torch.linalg.vector_norm(norms.mul_(row_scale), dim=OWN, keepdim=True) / math.sqrt(count)
        factor /= (u_rms / recipe.clipping_threshold).clamp_(min=1.0)
    alone = squares is not None
    known = None if squares is None else squares.of(part.work.p)
    before, after = (torch.zeros_like(factor) for _ in range(2))
    if recipe.multiply_by_parameter_scale:
        if known is None:
            for p, sums in zip(ps, cut(before), strict=True):
                sums += _square_sum(p, alone)
        p_rms = torch.sqrt((before if known is None else known) / count)
        factor *= kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)
    row_scale *= factor
    rows = zip(gs, ps, rooms, cut(row_scale), cols, cut(before), cut(after), strict=True)
    for g, p, x, row, col, of_old, of_new in rows:
        if known is not None:
            of_old += _square_sum(p, alone)
        # Columns first, as in the reference: a product of scales can overflow where g is 0.
        p.addcmul_(torch.mul(g, col, out=x), row, value=1.0 if part.work.maximize else -1.0)
        if squares is not None:
            of_new += _square_sum(p, alone)
    part.write_copies()
    if squares is not None and recipe.multiply_by_parameter_scale:
        if known is not None and not torch.equal(known, before):
            squares.surprise(part.work.p)
        squares.put(part.work.p, after)


def _update_factors(part: Part, gs: list[Tensor], rooms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """R and C with the means of g^2 in them; sqrt(mean(R) / R) and 1 / sqrt(C), the scales of rows and columns."""
    setting, now, cut = part.setting, part.now, part.cut
    moments = part.state["v_row"], part.state["v_col"]
    rows, cols = (torch.zeros_like(moment, dtype=setting.compute) for moment in moments)
    # As in `kernels.mean`, squares are divided before they are added, by one power of two for both sums.
    scale = 2.0 ** -(max(part.sizes[2:]) - 1).bit_length()
    nothing = part.p.new_zeros(())
    for g, x, row, col in zip(gs, rooms, cut(rows), cut(cols), strict=True):
        torch.addcmul(nothing, g, g, value=scale, out=x)
        torch.sum(x, 3, keepdim=True, out=row)
        col += torch.sum(x, 2, keepdim=True)
    for kept, sums, count in zip(moments, (rows, cols), (part.sizes[3], part.sizes[2]), strict=True):
        means = sums.mul_(1.0 / (scale * count)).add_(setting.added)
        kept.copy_(kernels.ema(kept.to(setting.compute), means, now.beta2, now.beta2_complement))
    v_row, v_col = (moment.to(setting.compute) for moment in moments)
    row_root, col_root = kernels.root_factors((v_row, v_col), None, setting.plan)
    return row_root.reciprocal_(), col_root.reciprocal_()


def _square_sum(p: Tensor, alone: bool) -> Tensor:
    """The sum of p^2 of each batch index of a block, [batch, 1, 1, 1].

    The dot product is the fastest, but a stack has none, and what is stacked now and not the next time must be added in
    one order.
    """
    if alone and p.shape[0] == 1 and p.is_contiguous():
        flat = p.view(-1)
        return torch.dot(flat, flat).view(1, 1, 1, 1)
    return torch.linalg.vector_norm(p, dim=OWN, keepdim=True).square_()
