"""The common case of `_blocks.py` in as few passes as eager torch has: float matrices and g, p, R and C, nothing more."""

import math

import torch
from torch import Tensor

from . import _kernels as kernels
from ._squares import Squares

EPS1 = 1e-32  # in float32 a smaller one would have to be added to every g^2, before the sum's scale makes it vanish


def is_plain(part: "Part") -> bool:
    """Whether a part is of the common case."""
    setting, recipe = part.setting, part.setting.recipe
    kinds = part.p.dtype == part.g.dtype == setting.compute and setting.plan.factored and part.amp.grad_scale is None
    options = setting.floor is not None or recipe.amsgrad or setting.averages or recipe.decays
    return kinds and not options and part.work.telemetry is None and setting.eps1 >= EPS1


def advance_plain(part: "Part", blocks: list["Block"], squares: Squares | None) -> None:
    """One step, in place. Numbers of a batch index are [batch, 1, 1, 1]."""
    setting, recipe, now = part.setting, part.setting.recipe, part.now
    room = part.p.new_empty(max(part.p[block].numel() for block in blocks))
    row_scale, col_scale = _update_factors(part, blocks, room)
    count = math.prod(part.sizes[1:])
    factor = part.p.new_full((part.sizes[0], 1, 1, 1), now.rho)
    if setting.clips:
        u_squares = part.p.new_zeros(factor.shape)
        for block in blocks:
            batch, lead, row, _ = block
            g = part.g[block]
            x = torch.mul(g, col_scale[batch, lead], out=room[: g.numel()].view(g.shape))
            norms = torch.linalg.vector_norm(x, dim=3, keepdim=True).mul_(row_scale[batch, lead, row])
            u_squares[batch] += torch.linalg.vector_norm(norms, dim=(1, 2, 3), keepdim=True).square_()
        factor /= (torch.sqrt(u_squares / count) / recipe.clipping_threshold).clamp_(min=1.0)
    known = None if squares is None else squares.of(part.work.p)
    if recipe.multiply_by_parameter_scale:
        sums = [_squares(part.p[block]) for block in blocks] if known is None else known
        p_squares = part.p.new_zeros(factor.shape)
        for block, of_block in zip(blocks, sums, strict=True):
            p_squares[block[0]] += of_block
        factor *= kernels.parameter_scale(torch.sqrt(p_squares / count), recipe.eps2, recipe.max_parameter_scale)
    row_scale *= factor
    before, after = [], []
    for block in blocks:
        batch, lead, row, _ = block
        g, p = part.g[block], part.p[block]
        if known is not None:
            before.append(_squares(p))
        x = torch.mul(row_scale[batch, lead, row], col_scale[batch, lead], out=room[: g.numel()].view(g.shape))
        p.addcmul_(g, x, value=1.0 if part.work.maximize else -1.0)
        if squares is not None:
            after.append(_squares(p))
    part.write_copies()
    if squares is not None:
        if known is not None:
            squares.check(part.work.p, [float(x) for x in known], [float(x) for x in before])
        squares.put(part.work.p, after)


def _update_factors(part: "Part", blocks: list["Block"], room: Tensor) -> tuple[Tensor, Tensor]:
    """R and C with the means of g^2 in them; sqrt(mean(R) / R) and 1 / sqrt(C), the scales of rows and columns."""
    setting, now = part.setting, part.now
    v_row, v_col = part.state["v_row"], part.state["v_col"]
    rows, cols = torch.zeros_like(v_row, dtype=setting.compute), torch.zeros_like(v_col, dtype=setting.compute)
    # As `kernels.mean`, squares are divided before they are added, by the same power of two for both sums.
    scale = 2.0 ** -(max(part.sizes[2:]) - 1).bit_length()
    nothing = part.p.new_zeros(())
    for block in blocks:
        batch, lead, row, _ = block
        g = part.g[block]
        s = torch.addcmul(nothing, g, g, value=scale, out=room[: g.numel()].view(g.shape))
        rows[batch, lead, row] = torch.sum(s, 3, keepdim=True)
        cols[batch, lead] += torch.sum(s, 2, keepdim=True)
    for kept, sums, count in ((v_row, rows, part.sizes[3]), (v_col, cols, part.sizes[2])):
        means = sums.mul_(1.0 / (scale * count)).add_(setting.added)
        kept.copy_(kernels.ema(kept.to(setting.compute), means, now.beta2, now.beta2_complement))
    row_root, col_root = kernels.root_factors(
        (v_row.to(setting.compute), v_col.to(setting.compute)), None, setting.plan
    )
    return row_root.reciprocal_(), col_root.reciprocal_()


def _squares(p: Tensor) -> Tensor:
    """The sum of p^2 of each batch index of a block."""
    if p.shape[0] == 1 and p.is_contiguous():
        flat = p.view(-1)
        return torch.dot(flat, flat)
    return torch.linalg.vector_norm(p, dim=(1, 2, 3), keepdim=True).square_()
