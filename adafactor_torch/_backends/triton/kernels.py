"""The Triton kernels of a step, in the order in which `stages.py` launches them.

One launch covers many parameters. A program of it takes a unit, which is some rows or some small matrices of one
parameter, seen as [batch, lead, rows, columns] (`matrix_view.py`), and finds all that it needs in tables. Its sums go
to their own place in a workspace and are added in a fixed order. So there are no atomics, and the result for one
parameter does not depend on the others. No state is written before `apply_kernel`. Squares are divided by a power of
two before they are added, as in `_kernels.mean`.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from . import tiles
from .formats import divide, load, mix, pointer, round_stochastically, round_to, sqrt, store
from .tiles import mean_of_parts, mean_of_tiles, means, program


@triton.jit
def _live(which, flags, found_inf, b, o: tl.constexpr):
    # Whether the step of a parameter is taken; of a part, all processes have decided it.
    live = b >= 0
    if o.skips or o.shares != "":
        live = live & (tl.load(flags + which) == 0)
    if o.found_inf:
        live = live & (tl.load(found_inf) == 0.0)
    return live


@triton.jit
def statistics_kernel(
    programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr
):
    """Sums over a unit: of s = g^2 + eps1 over its columns and over its rows, of p^2; whether g is finite."""
    which, tile, row, own, fixed, now = program(programs, ints, moving, floats, numbers)
    b, lead_unit, row_unit, col_unit = tiles.place(row, tile, o)
    leads, rows, cols = tl.load(row + tiles.LEAD), tl.load(row + tiles.ROWS), tl.load(row + tiles.COLS)
    _, row_units, col_units = tiles.units(row, o)
    added = 0.0 if o.eps1_is_floor else tl.load(fixed + tiles.EPS1)
    over_cols, over_rows, over_all = (
        tl.load(fixed + tiles.OVER_COLS),
        tl.load(fixed + tiles.OVER_ROWS),
        tl.load(fixed + tiles.OVER_ALL),
    )
    col_sum = tl.zeros((o.lead, o.cols), o.wide)
    p_sum = tl.zeros((o.lead, o.rows, o.cols), o.wide)
    bad = tl.zeros((o.lead, o.rows, o.cols), tl.int32)
    start = row_unit * (o.rows * o.repeats)
    for i in range(tl.minimum(o.repeats, tl.cdiv(rows - start, o.rows)).to(tl.int32)):
        lead, r, c = tiles.axes(lead_unit, start + i * o.rows, col_unit, o)
        mask = tiles.inside(row, lead, r, c, o)
        p = tl.zeros((o.lead, o.rows, o.cols), o.wide)
        if o.needs_parameter_rms or o.decay == "grad":
            p = tiles.weight(row, b, lead, r, c, mask, o)
            p_sum += p * p * over_all
        if o.skips:
            g = tiles.raw_gradient(row, own, b, lead, r, c, mask, o)
            bad |= (tl.abs(g) < float("inf")).to(tl.int32) ^ 1
        if o.factored:
            g = tiles.gradient(row, own, fixed, now, grad_scale, p, b, lead, r, c, mask, o)
            s = tl.where(mask, g * g + added, 0.0)
            col_sum += tl.sum(s * over_rows, axis=1)
            matrix, line = b * leads + lead, tl.sum(s * over_cols, axis=2)[:, :, None]
            at = tl.load(row + tiles.ROW_PARTS) + (matrix * col_units + col_unit) * rows + r
            tl.store(workspace + at, line, mask=(lead < leads) & (r < rows))
    if o.factored:
        lead, r, c = tiles.axes(lead_unit, start, col_unit, o)
        at = tl.load(row + tiles.COL_PARTS) + ((b * leads + lead) * row_units + row_unit) * cols + c
        tl.store(workspace + at, col_sum[:, None, :], mask=(lead < leads) & (c < cols))
    if o.needs_parameter_rms:
        tl.store(workspace + tl.load(row + tiles.TILE_P) + tile, tl.sum(p_sum))
    if o.skips:  # whoever finds one writes the same
        tl.store(flags + which, 1, mask=tl.sum(bad) > 0)


@triton.jit
def moments_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """New R and C: beta2 * old + (1 - beta2) * mean, rounded as they are stored; first R's programs, then C's."""
    _, block, row, _, fixed, now = program(programs, ints, moving, floats, numbers)
    is_row, inner, i, real = means(row, block, o)
    if o.shares != "":
        at = tl.load(row + tl.where(is_row, tiles.ROW_MEANS, tiles.COL_MEANS)) + i
        mean = tl.load(workspace + at, mask=real, other=0.0)
    else:
        mean = mean_of_parts(row, fixed, workspace, is_row, inner, i, real, o)
    leads = tl.load(row + tiles.LEAD)
    target = tl.load(row + tl.where(is_row, tiles.NEW_ROW, tiles.NEW_COL))
    tensor = row + tl.where(is_row, tiles.V_ROW, tiles.V_COL)
    stride = tl.load(tensor + tl.where(is_row, 3, 4))
    matrix, e = i // inner, i % inner
    at = matrix // leads * tl.load(tensor + 1) + matrix % leads * tl.load(tensor + 2) + e * stride
    old = load(pointer(tensor, o.v, False) + at, real, o.v, o)
    new = round_to(tl.load(now + tiles.BETA2) * old + tl.load(now + tiles.BETA2_COMPLEMENT) * mean, o.v, o)
    tl.store(workspace + target + i, new, mask=real)


@triton.jit
def row_mean_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """sqrt(mean(R)) of some matrices, the mean at least eps1 where that is a floor."""
    _, block, row, _, fixed, _ = program(programs, ints, moving, floats, numbers)
    rows, matrices = tl.load(row + tiles.ROWS), tl.load(row + tiles.BATCH) * tl.load(row + tiles.LEAD)
    matrix = block * o.lead + tl.arange(0, o.lead)[:, None]
    sums = tl.zeros((o.lead, o.mean_rows), o.wide)
    for first in range(0, rows.to(tl.int32), o.mean_rows):
        r = first + tl.arange(0, o.mean_rows)[None, :]
        at = tl.load(row + tiles.NEW_ROW) + matrix * rows + r
        sums += tl.load(workspace + at, mask=(matrix < matrices) & (r < rows), other=0.0) * tl.load(
            fixed + tiles.OVER_ROWS
        )
    norm = tl.sum(sums, axis=1)[:, None] * tl.load(fixed + tiles.OVER_ROWS + 1)
    if o.eps1_is_floor:
        eps1 = tl.load(fixed + tiles.EPS1)
        norm = tl.where(norm < eps1, eps1, norm)
    tl.store(workspace + tl.load(row + tiles.NORM) + matrix, sqrt(norm), mask=matrix < matrices)


@triton.jit
def norm_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """Sum of u^2 over a unit."""
    _which, tile, row, own, fixed, now = program(programs, ints, moving, floats, numbers)
    b, lead_unit, row_unit, col_unit = tiles.place(row, tile, o)
    rows, over_all = tl.load(row + tiles.ROWS), tl.load(fixed + tiles.OVER_ALL)
    sums = tl.zeros((o.lead, o.rows, o.cols), o.wide)
    start = row_unit * (o.rows * o.repeats)
    for i in range(tl.minimum(o.repeats, tl.cdiv(rows - start, o.rows)).to(tl.int32)):
        lead, r, c = tiles.axes(lead_unit, start + i * o.rows, col_unit, o)
        mask = tiles.inside(row, lead, r, c, o)
        p = tl.zeros((o.lead, o.rows, o.cols), o.wide)
        if o.decay == "grad":
            p = tiles.weight(row, b, lead, r, c, mask, o)
        g = tiles.gradient(row, own, fixed, now, grad_scale, p, b, lead, r, c, mask, o)
        u, _v, _v_max, _m = tiles.direction(row, fixed, now, workspace, g, b, lead, r, c, mask, o)
        sums += u * u * over_all
    tl.store(workspace + tl.load(row + tiles.TILE_U) + tile, tl.sum(sums))


@triton.jit
def _mean_square(row, fixed, workspace, own: tl.constexpr, shared: tl.constexpr, b, o: tl.constexpr):
    # The mean over a batch index, from its own units or as all processes have summed it up.
    return (
        tl.load(workspace + tl.load(row + shared) + b)
        if o.shares != ""
        else mean_of_tiles(row, fixed, workspace, own, b, o)
    )


@triton.jit
def size_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """Of a batch index: alpha = rho * clip(RMS(p), eps2, largest), and max(1, RMS(u) / d)."""
    which, b, row, own, fixed, now = program(programs, ints, moving, floats, numbers)
    alpha = tl.load(now + tiles.RHO)
    p_rms, u_rms, clip = alpha * 0.0, alpha * 0.0, alpha * 0.0 + 1.0
    if o.needs_parameter_rms:
        p_rms = sqrt(_mean_square(row, fixed, workspace, tiles.TILE_P, tiles.P_MEANS, b, o))
    if o.multiply_by_parameter_scale:
        scaled = p_rms
        if o.decay_before_scale:
            scaled = scaled * tl.abs(1.0 - tl.load(now + tiles.WEIGHT_DECAY))
        smallest, largest = tl.load(fixed + tiles.EPS2), tl.load(fixed + tiles.MAX_PARAMETER_SCALE)
        scaled = tl.where(scaled < smallest, smallest, scaled)
        alpha = alpha * tl.where(scaled > largest, largest, scaled)
    if o.needs_update_rms:
        u_rms = sqrt(_mean_square(row, fixed, workspace, tiles.TILE_U, tiles.U_MEANS, b, o))
    if o.clips:
        clip = divide(u_rms, tl.load(fixed + tiles.CLIPPING_THRESHOLD))
        clip = tl.where(clip < 1.0, 1.0, clip)
    tl.store(workspace + tl.load(row + tiles.STEP) + 2 * b, alpha)
    tl.store(workspace + tl.load(row + tiles.STEP) + 2 * b + 1, divide(1.0, clip))

    live = _live(which, flags, found_inf, b, o)
    if o.telemetry:
        at = tl.load(own + tiles.TELEMETRY).to(tl.pointer_type(tl.float32)) + 4 * b
        tl.store(at, alpha.to(tl.float32), mask=live)
        tl.store(at + 1, u_rms.to(tl.float32), mask=live)
        tl.store(at + 2, clip.to(tl.float32), mask=live)
        tl.store(at + 3, p_rms.to(tl.float32), mask=live)
    left_out = (b == 0) & (live == 0)
    if o.counts == "int32":
        counter = tl.load(own + tiles.SKIPPED).to(tl.pointer_type(tl.int32))
        tl.store(counter, tl.load(counter) + 1, mask=left_out)
    elif o.counts != "":
        counter = tl.load(own + tiles.SKIPPED).to(tl.pointer_type(tl.int64))
        tl.store(counter, tl.load(counter) + 1, mask=left_out)
    if o.uncounts:
        count = tl.load(own + tiles.COUNT).to(tl.pointer_type(tl.int64))
        tl.store(count, tl.load(count) - 1, mask=left_out)


@triton.jit
def apply_kernel(programs, ints, moving, floats, numbers, workspace, flags, grad_scale, found_inf, o: tl.constexpr):
    """Clip, scale, average, decay, round once; everything that the step changes is written here."""
    which, tile, row, own, fixed, now = program(programs, ints, moving, floats, numbers)
    b, lead_unit, row_unit, col_unit = tiles.place(row, tile, o)
    leads, rows, cols = tl.load(row + tiles.LEAD), tl.load(row + tiles.ROWS), tl.load(row + tiles.COLS)
    alpha = tl.load(workspace + tl.load(row + tiles.STEP) + 2 * b)
    unclipped = tl.load(workspace + tl.load(row + tiles.STEP) + 2 * b + 1)
    live = _live(which, flags, found_inf, b, o)
    last = tl.where(live, rows, 0)
    start = row_unit * (o.rows * o.repeats)
    for i in range(tl.minimum(o.repeats, tl.cdiv(rows - start, o.rows)).to(tl.int32)):
        lead, r, c = tiles.axes(lead_unit, start + i * o.rows, col_unit, o)
        mask = tiles.inside(row, lead, r, c, o)
        writes = mask & (r < last)
        p = tiles.weight(row, b, lead, r, c, mask, o)
        g = tiles.gradient(row, own, fixed, now, grad_scale, p, b, lead, r, c, mask, o)
        u, v, v_max, m = tiles.direction(row, fixed, now, workspace, g, b, lead, r, c, mask, o)
        if o.clips:
            u = u * unclipped
        if o.momentum == "update":
            u, m = tiles.average(row, now, u, b, lead, r, c, mask, o)
        change = alpha * u
        if o.momentum == "step":
            change, m = tiles.average(row, now, change, b, lead, r, c, mask, o)
        if o.decay == "step":
            change += tl.load(now + tiles.WEIGHT_DECAY) * alpha * p
        if o.decay == "one":
            change += tl.load(now + tiles.WEIGHT_DECAY) * p
        _store_weight(row, own, p - change, b, lead, r, c, writes, o)
        if o.momentum != "":
            store(tiles.large(row, tiles.M, b, lead, r, c, o.m, o), m, writes, o.m)
        if not o.factored:
            store(tiles.large(row, tiles.V, b, lead, r, c, o.v, o), v, writes, o.v)
        if o.amsgrad:
            store(tiles.large(row, tiles.V_MAX, b, lead, r, c, o.v, o), v_max, writes, o.v)
        if o.factored:
            real = (lead < leads) & (r < rows)
            new = tl.load(
                workspace + tl.load(row + tiles.NEW_ROW) + (b * leads + lead) * rows + r, mask=real, other=0.0
            )
            at = pointer(row + tiles.V_ROW, o.v, False) + tiles.offset(row, tiles.V_ROW, b, lead, r, 0)
            store(at, new, (lead < leads) & (r < tl.where(col_unit == 0, last, 0)), o.v)
    if o.factored:
        lead, r, c = tiles.axes(lead_unit, start, col_unit, o)
        real = (lead < leads) & (c < cols)
        new = tl.load(workspace + tl.load(row + tiles.NEW_COL) + (b * leads + lead) * cols + c, mask=real, other=0.0)
        at = pointer(row + tiles.V_COL, o.v, False) + tiles.offset(row, tiles.V_COL, b, lead, 0, c)
        store(at, new, (lead < leads) & (c < tl.where(live & (row_unit == 0), cols, 0)), o.v)


@triton.jit
def _store_weight(row, own, x, b, lead, r, c, mask, o: tl.constexpr):
    # x, rounded to the parameter's dtype by the rule asked for.
    if o.rounding == "stochastic":
        element = tiles.offset(row, tiles.ELEMENTS, b, lead, r, c)
        if o.indexed:
            element = tl.load(tl.load(row + tiles.ELEMENTS).to(tl.pointer_type(tl.int32)) + element, mask=mask, other=0)
        elif o.shares != "":
            element += tl.load(row + tiles.ELEMENTS)
        key = tl.load(own + tiles.KEY).to(tl.uint32)
        new = round_stochastically(x, mix(element.to(tl.uint32) ^ key), o.p, o)
    else:
        new = round_to(x, o.p, o)
    store(tiles.large(row, tiles.P, b, lead, r, c, o.p, o), new, mask, o.p)
    if o.rounding == "kahan":
        rest = round_to(x - new, "bfloat16", o)
        store(tiles.large(row, tiles.COMPENSATION, b, lead, r, c, "bfloat16", o), rest, mask, "bfloat16")
