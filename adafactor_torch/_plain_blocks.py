"""The common case of `_blocks.py` in as few passes as eager torch has: matrices with g, p, R and C, nothing more."""

import math

import torch
from torch import Tensor

from . import _kernels as kernels
from ._blocks import OWN, Part

EPS1 = 1e-32  # in float32 a smaller one has to be added to every g^2, before the scale of the sum makes it vanish


def is_plain(part: Part) -> bool:
    """Whether a part is of the common case."""
    setting, recipe = part.setting, part.setting.recipe
    kinds = part.p.dtype == part.g.dtype == setting.compute and part.plan.factored and part.amp.grad_scale is None
    options = setting.floor is not None or recipe.amsgrad or setting.averages or recipe.decays
    return kinds and not options and not part.across and part.work.telemetry is None and setting.eps1 >= EPS1


def advance_plain(part: Part) -> None:
    """One step, in place."""
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
    if recipe.multiply_by_parameter_scale:
        sums = torch.zeros_like(factor)
        for p, of_block in zip(ps, cut(sums), strict=True):
            of_block += torch.linalg.vector_norm(p, dim=OWN, keepdim=True).square_()
        factor *= kernels.parameter_scale(torch.sqrt(sums / count), recipe.eps2, recipe.max_parameter_scale)
    row_scale *= factor
    for g, p, x, row, col in zip(gs, ps, rooms, cut(row_scale), cols, strict=True):
        # Columns first, as in the reference: a product of scales can overflow where g is 0.
        p.addcmul_(torch.mul(g, col, out=x), row, value=1.0 if part.work.maximize else -1.0)
    part.write_copies()


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
