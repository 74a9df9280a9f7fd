"""The Triton kernels that shards need in addition: they write what processes add up, and use the sums.

They use the same tables as `kernels.py`. Counts and powers of two in `floats` are those of the whole parameter, so that
the contributions of all processes add up to its means. `Options.shares` says which mean of R is added up
(`reductions.row_mean_source`).
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from . import tiles
from .formats import load, pointer, round_to, sqrt
from .tiles import mean_of_parts, mean_of_tiles, means, program


@triton.jit
def shares_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """Shares of the means of g^2 over columns and over rows, from the partial sums of units."""
    _, block, row, _, fixed, _ = program(programs, ints, moving, floats, numbers)
    is_row, inner, i, real = means(row, block, o)
    mean = mean_of_parts(row, fixed, workspace, is_row, inner, i, real, o)
    at = tl.load(row + tl.where(is_row, tiles.ROW_MEANS, tiles.COL_MEANS)) + i
    tl.store(workspace + at, mean, mask=real)


@triton.jit
def row_shares_kernel(
    programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr
):
    """Of some matrices, the share of the mean of R over the rows, or of old R and of g^2."""
    _, block, row, _, fixed, now = program(programs, ints, moving, floats, numbers)
    rows, leads = tl.load(row + tiles.ROWS), tl.load(row + tiles.LEAD)
    matrix = block * o.lead + tl.arange(0, o.lead)[:, None]
    matrices, over = tl.load(row + tiles.BATCH) * leads, tl.load(fixed + tiles.OVER_ROWS)
    tensor = row + tiles.V_ROW
    place = matrix // leads * tl.load(tensor + 1) + matrix % leads * tl.load(tensor + 2)
    sums = tl.zeros((o.lead, o.mean_rows), o.wide)
    squares = tl.zeros((o.lead, o.mean_rows), o.wide)
    for first in range(0, rows.to(tl.int32), o.mean_rows):
        r = first + tl.arange(0, o.mean_rows)[None, :]
        mask = (matrix < matrices) & (r < rows)
        if o.shares == "stored":
            x = tl.load(workspace + tl.load(row + tiles.NEW_ROW) + matrix * rows + r, mask=mask, other=0.0)
        else:
            x = load(pointer(tensor, o.v, False) + place + r * tl.load(tensor + 3), mask, o.v, o)
            mean = tl.load(workspace + tl.load(row + tiles.ROW_MEANS) + matrix * rows + r, mask=mask, other=0.0)
            squares += mean * over
            if o.shares == "new":
                x = round_to(tl.load(now + tiles.BETA2) * x + tl.load(now + tiles.BETA2_COMPLEMENT) * mean, o.v, o)
        sums += x * over
    scaled = tl.load(fixed + tiles.OVER_ROWS + 1)
    at, real = workspace + tl.load(row + tiles.NORM_MEANS) + matrix, matrix < matrices
    tl.store(at, tl.sum(sums, axis=1)[:, None] * scaled, mask=real)
    if o.shares == "old and squares":
        at = workspace + tl.load(row + tiles.NORM_SQUARES) + matrix
        tl.store(at, tl.sum(squares, axis=1)[:, None] * scaled, mask=real)


@triton.jit
def row_norm_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """sqrt(mean(R)) of some matrices from what all processes have summed up, the mean at least eps1 where it floors."""
    _, block, row, _, fixed, now = program(programs, ints, moving, floats, numbers)
    matrix = block * o.lead + tl.arange(0, o.lead)
    real = matrix < tl.load(row + tiles.BATCH) * tl.load(row + tiles.LEAD)
    norm = tl.load(workspace + tl.load(row + tiles.NORM_MEANS) + matrix, mask=real, other=1.0)
    if o.shares == "old and squares":
        squares = tl.load(workspace + tl.load(row + tiles.NORM_SQUARES) + matrix, mask=real, other=1.0)
        norm = tl.load(now + tiles.BETA2) * norm + tl.load(now + tiles.BETA2_COMPLEMENT) * squares
    if o.eps1_is_floor:
        eps1 = tl.load(fixed + tiles.EPS1)
        norm = tl.where(norm < eps1, eps1, norm)
    tl.store(workspace + tl.load(row + tiles.NORM) + matrix, sqrt(norm), mask=real)


@triton.jit
def weight_shares_kernel(
    programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr
):
    """Of a batch index, the share of the mean of p^2."""
    _, b, row, _, fixed, _ = program(programs, ints, moving, floats, numbers)
    tl.store(workspace + tl.load(row + tiles.P_MEANS) + b, mean_of_tiles(row, fixed, workspace, tiles.TILE_P, b, o))


@triton.jit
def update_shares_kernel(
    programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr
):
    """Of a batch index, the share of the mean of u^2."""
    _, b, row, _, fixed, _ = program(programs, ints, moving, floats, numbers)
    tl.store(workspace + tl.load(row + tiles.U_MEANS) + b, mean_of_tiles(row, fixed, workspace, tiles.TILE_U, b, o))
