"""Device functions and table layouts that the Triton kernels share: options, columns, and reading and summing tiles."""

# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import triton
import triton.language as tl

from .formats import divide, load, pointer, round_to, sqrt

# Columns of the table `ints`: sizes, places in the workspace, five for each tensor (its address and four strides), and
# places in what processes share. Of the elements' indices without memory the address is that of the first.
BATCH, LEAD, ROWS, COLS = (tl.constexpr(i) for i in range(4))
ROW_PARTS, COL_PARTS, NEW_ROW, NEW_COL, NORM, TILE_P, TILE_U, STEP = (tl.constexpr(4 + i) for i in range(8))
P, G, V_ROW, V_COL, V, V_MAX, M, COMPENSATION, ELEMENTS = (tl.constexpr(12 + 5 * i) for i in range(9))
ROW_MEANS, COL_MEANS, NORM_MEANS, NORM_SQUARES, P_MEANS, U_MEANS = (tl.constexpr(57 + i) for i in range(6))
INTS = tl.constexpr(63)

# Of `moving`, what may be another at each step: addresses, the row of `numbers`, the key of the random bits.
GRAD, TELEMETRY, SKIPPED, COUNT, NUMBERS, KEY = (tl.constexpr(i) for i in range(6))
MOVING = tl.constexpr(6)

# Of `floats`: sign of the gradient; 1 / power and power / count for the means over columns, rows and a batch index.
SIGN, EPS1, EPS2, MAX_PARAMETER_SCALE, CLIPPING_THRESHOLD = (tl.constexpr(i) for i in range(5))
OVER_COLS, OVER_ROWS, OVER_ALL = (tl.constexpr(5 + 2 * i) for i in range(3))
FLOATS = tl.constexpr(11)

# Of `numbers`, the schedules at this step.
RHO, BETA2, BETA2_COMPLEMENT, BIAS2, BETA1, BETA1_COMPLEMENT, BIAS1, WEIGHT_DECAY = (tl.constexpr(i) for i in range(8))
NUMBERS_WIDTH = tl.constexpr(8)

ALIGNED = tl.constexpr(8)  # elements: 16 bytes of a 16-bit format


class Options(NamedTuple):
    """What a kernel is compiled for. A dtype is its name, "" where there is no such tensor."""

    wide: tl.dtype
    p: str
    g: str
    v: str
    m: str
    factored: bool
    eps1_is_floor: bool
    amsgrad: bool
    clips: bool
    momentum: str  # "", "grad", "update", "step"
    momentum_rounding: str
    debias: bool
    multiply_by_parameter_scale: bool
    decay: str  # "", "grad", "step", "one"
    decay_before_scale: bool
    rounding: str
    indexed: bool  # whether the elements' C-order indices are a tensor of their own
    unit: str  # the axis along which all large tensors have stride 1: "cols", "rows" or ""
    aligned: bool  # other strides and columns are multiples of ALIGNED, addresses of 16 bytes
    lead: int  # the tile, and after how many of its rows a unit ends
    rows: int
    cols: int
    repeats: int
    grad_scale: bool  # there is a scale to divide by
    found_inf: bool  # there is a found_inf
    skips: bool
    counts: str  # dtype of the counter of steps left out, or ""
    uncounts: bool  # whether the kernels take back the count of a step that is left out
    telemetry: bool  # whether telemetry is recorded
    needs_update_rms: bool  # whether RMS(u) is needed, and RMS(p)
    needs_parameter_rms: bool
    shares: str  # "" of whole parameters, else which mean of R their processes add up: `shard_kernels.py`
    parts: int  # how many partial sums are added at a time, for how many means; rows of a program of `row_mean_kernel`
    results: int
    mean_rows: int


# --- places ------------------------------------------------------------------------------------------------------


@triton.jit
def units(row, o: tl.constexpr):
    # Units along lead, rows and columns; of a part without elements one, which finds nothing.
    leads, rows, cols = tl.load(row + LEAD), tl.load(row + ROWS), tl.load(row + COLS)
    if o.shares != "":
        leads, rows, cols = tl.maximum(leads, 1), tl.maximum(rows, 1), tl.maximum(cols, 1)
    return tl.cdiv(leads, o.lead), tl.cdiv(rows, o.rows * o.repeats), tl.cdiv(cols, o.cols)


@triton.jit
def place(row, tile, o: tl.constexpr):
    # Batch index, and the unit along lead, rows and columns.
    leads, rows, cols = units(row, o)
    return tile // (leads * rows * cols), (tile // (rows * cols)) % leads, (tile // cols) % rows, tile % cols


@triton.jit
def axes(lead_unit, row_start, col_unit, o: tl.constexpr):
    # Indices along lead, rows and columns, as [lead, 1, 1], [1, rows, 1] and [1, 1, columns].
    lead = lead_unit * o.lead + tl.arange(0, o.lead)[:, None, None]
    r = row_start + tl.arange(0, o.rows)[None, :, None]
    c = col_unit * o.cols + tl.arange(0, o.cols)[None, None, :]
    return lead, r, c


@triton.jit
def inside(row, lead, r, c, o: tl.constexpr):
    cols = tl.load(row + COLS)
    if o.aligned:
        cols = tl.multiple_of(cols, ALIGNED)
    return (lead < tl.load(row + LEAD)) & (r < tl.load(row + ROWS)) & (c < cols)


@triton.jit
def offset(row, tensor: tl.constexpr, b, lead, r, c):
    start = b * tl.load(row + tensor + 1) + lead * tl.load(row + tensor + 2)
    return start + r * tl.load(row + tensor + 3) + c * tl.load(row + tensor + 4)


@triton.jit
def within(row, tensor: tl.constexpr, b, lead, r, c, o: tl.constexpr):
    # The same in a tensor of full size, with what the compiler needs to know for wide loads.
    over_rows, over_cols = tl.load(row + tensor + 3), tl.load(row + tensor + 4)
    over_batch, over_lead = tl.load(row + tensor + 1), tl.load(row + tensor + 2)
    if o.aligned:
        over_batch, over_lead = tl.multiple_of(over_batch, ALIGNED), tl.multiple_of(over_lead, ALIGNED)
        over_rows = tl.multiple_of(over_rows, ALIGNED)
    if o.unit == "cols":
        along = c + r * over_rows
    elif o.unit == "rows":
        along = r + c * over_cols
    else:
        along = r * over_rows + c * over_cols
    return b * over_batch + lead * over_lead + along


@triton.jit
def large(row, tensor: tl.constexpr, b, lead, r, c, dtype: tl.constexpr, o: tl.constexpr):
    # Pointers into a tensor of full size.
    return pointer(row + tensor, dtype, o.aligned) + within(row, tensor, b, lead, r, c, o)


# --- what is read of a tile --------------------------------------------------------------------------------------


@triton.jit
def weight(row, b, lead, r, c, mask, o: tl.constexpr):
    # The parameter; with a compensation the sum of the two.
    p = load(large(row, P, b, lead, r, c, o.p, o), mask, o.p, o)
    if o.rounding == "kahan":
        p += load(large(row, COMPENSATION, b, lead, r, c, "bfloat16", o), mask, "bfloat16", o)
    return p


@triton.jit
def raw_gradient(row, moving, b, lead, r, c, mask, o: tl.constexpr):
    at = pointer(moving + GRAD, o.g, o.aligned) + within(row, G, b, lead, r, c, o)
    return load(at, mask, o.g, o)


@triton.jit
def gradient(row, moving, floats, numbers, grad_scale, p, b, lead, r, c, mask, o: tl.constexpr):
    # The gradient, unscaled, with its sign turned to ascend, and with the decay that is a part of it.
    factor = tl.load(floats + SIGN)
    if o.grad_scale:
        factor = divide(factor, tl.load(grad_scale).to(o.wide))
    g = raw_gradient(row, moving, b, lead, r, c, mask, o) * factor
    if o.decay == "grad":
        g += tl.load(numbers + WEIGHT_DECAY) * p
    return g


@triton.jit
def average(row, numbers, x, b, lead, r, c, mask, o: tl.constexpr):
    # `_kernels.average`: (the average that is used, the one that is stored).
    m = load(large(row, M, b, lead, r, c, o.m, o), mask, o.m, o)
    beta, complement = tl.load(numbers + BETA1), tl.load(numbers + BETA1_COMPLEMENT)
    if o.momentum_rounding == "use":
        x = round_to(x, o.m, o)
        kept = round_to(tl.where(complement < 0.5, m + complement * (x - m), x - beta * (x - m)), o.m, o)
        used = kept
    else:
        if o.momentum_rounding == "decay":
            used = round_to(round_to(beta, o.m, o) * m, o.m, o) + complement * x
        else:
            used = beta * m + complement * x
        kept = round_to(used, o.m, o)
    if o.debias:
        used = divide(used, tl.load(numbers + BIAS1))
    return used, kept


@triton.jit
def direction(row, floats, numbers, workspace, g, b, lead, r, c, mask, o: tl.constexpr):
    # u = x / sqrt(V), and the new V (not factored), V_max and first moment (of gradients): g where there is none.
    x, v, v_max, m = g, g, g, g
    if o.momentum == "grad":
        x, m = average(row, numbers, g, b, lead, r, c, mask, o)
    eps1 = tl.load(floats + EPS1)
    if o.factored:
        leads, rows, cols = tl.load(row + LEAD), tl.load(row + ROWS), tl.load(row + COLS)
        matrix, real = b * leads + lead, lead < leads
        norm = tl.load(workspace + tl.load(row + NORM) + matrix, mask=real, other=1.0)
        r_root = tl.load(workspace + tl.load(row + NEW_ROW) + matrix * rows + r, mask=real & (r < rows), other=1.0)
        c_root = tl.load(workspace + tl.load(row + NEW_COL) + matrix * cols + c, mask=real & (c < cols), other=1.0)
        r_root, c_root = divide(sqrt(r_root), norm), sqrt(c_root)
        root = r_root * c_root
    else:
        old = load(large(row, V, b, lead, r, c, o.v, o), mask, o.v, o)
        s = g * g if o.eps1_is_floor else g * g + eps1
        v = round_to(tl.load(numbers + BETA2) * old + tl.load(numbers + BETA2_COMPLEMENT) * s, o.v, o)
        root = sqrt(tl.where(mask, v, 1.0))
    if o.eps1_is_floor:
        root = tl.where(root < eps1, eps1, root)
    if o.amsgrad:
        old = load(large(row, V_MAX, b, lead, r, c, o.v, o), mask, o.v, o)
        square = root * root
        v_max = round_to(tl.where((old > square) | (old != old), old, square), o.v, o)
        u = divide(x, sqrt(divide(v_max, tl.load(numbers + BIAS2))) + eps1)
    elif o.factored and not o.eps1_is_floor:  # columns first: the product of the roots may underflow
        u = x * divide(1.0, c_root) * divide(1.0, r_root)
    else:
        u = divide(x, root)
    return tl.where(mask, u, 0.0), v, v_max, m


@triton.jit
def program(programs, ints, moving, floats, numbers):
    # Parameter and number of this program in it, and the parameter's rows in the tables.
    entry = programs + 2 * tl.program_id(0)
    which, tile = tl.load(entry), tl.load(entry + 1)
    own = moving + which * MOVING
    now = numbers + tl.load(own + NUMBERS) * NUMBERS_WIDTH
    return which, tile.to(tl.int64), ints + which * INTS, own, floats + which * FLOATS, now


@triton.jit
def means(row, block, o: tl.constexpr):
    # Of a program of means: whether they are R's, how many a matrix has, which these are, and which of them exist.
    rows, cols = tl.load(row + ROWS), tl.load(row + COLS)
    matrices = tl.load(row + BATCH) * tl.load(row + LEAD)
    row_blocks = tl.cdiv(matrices * rows, o.results)
    is_row = block < row_blocks
    inner = tl.where(is_row, rows, cols)
    i = tl.where(is_row, block, block - row_blocks) * o.results + tl.arange(0, o.results)
    return is_row, inner, i, i < matrices * inner


@triton.jit
def mean_of_parts(row, fixed, workspace, is_row, inner, i, real, o: tl.constexpr):
    # From the partial sums of units.
    _, row_units, col_units = units(row, o)
    parts = tl.where(is_row, col_units, row_units)
    source = tl.load(row + tl.where(is_row, ROW_PARTS, COL_PARTS))
    scaled = tl.load(fixed + tl.where(is_row, OVER_COLS, OVER_ROWS) + 1)
    matrix, e = i // inner, i % inner
    sums = tl.zeros((o.parts, o.results), o.wide)
    for first in range(0, parts.to(tl.int32), o.parts):
        part = first + tl.arange(0, o.parts)[:, None]
        at = source + (matrix[None, :] * parts + part) * inner + e[None, :]
        sums += tl.load(workspace + at, mask=real[None, :] & (part < parts), other=0.0)
    return tl.sum(sums, axis=0) * scaled


@triton.jit
def mean_of_tiles(row, fixed, workspace, place_of: tl.constexpr, b, o: tl.constexpr):
    # The mean over a batch index from the sums of its units.
    leads, rows, cols = units(row, o)
    count = leads * rows * cols
    start = tl.load(row + place_of) + b * count
    sums = tl.zeros((1024,), o.wide)
    for first in range(0, count.to(tl.int32), 1024):
        i = first + tl.arange(0, 1024)
        sums += tl.load(workspace + start + i, mask=i < count, other=0.0)
    return tl.sum(sums) * tl.load(fixed + OVER_ALL + 1)
