"""The three phases of one parameter, or of a stack of them, in row blocks of its canonical view."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adafactor_spec.factoring import Plan

from . import _kernels as kernels
from . import _phases as phases
from ._canonical import canonical, elements_of, from_view, view_of
from ._phases import Amp, Setting, Work
from ._plain_blocks import advance_plain, is_plain
from ._squares import Squares

Block = tuple[slice, slice, slice, slice]
_OWN = (1, 2, 3)  # the axes of one batch index
_ALL = slice(None)


class Part:
    """A parameter or a stack, its gradient and its state seen as [batch, lead, rows, columns].

    Args:
        work: the parameter or the stack.
        plan: of it.
        amp: what a GradScaler says.
        of_one: the plan of one parameter of a stack, whose elements are counted for themselves.
    """

    def __init__(self, work: Work, plan: Plan, amp: Amp, of_one: Plan | None = None) -> None:
        self.work, self.plan, self.amp, self.now = work, plan, amp, work.now
        self.sizes = canonical(plan).sizes
        self._reduced = {"v_row": plan.cols, "v_col": plan.rows}
        self.p, self.g = view_of(work.p, plan), view_of(work.grad, plan)
        self.state = {
            name: view_of(x, plan, self._reduced.get(name, ())) for name, x in work.state.items() if name != "step"
        }
        factored = ((2,), (3,)) if plan.factored else ((), ())
        setting = work.setting
        self.setting = Setting(setting.recipe, Plan(self.sizes, *factored, (0,)), setting.dtype, setting.rounding)
        self._elements = elements_of(of_one or plan) if setting.stochastic else None

    def gradient(self, block: Block) -> Tensor:
        """The gradient of a block as the step takes it."""
        g = self.g[block].to(self.setting.compute)
        if self.amp.grad_scale is not None:
            g = g / self.amp.grad_scale.to(g)
        if self.work.maximize:
            g = -g
        return g + self.now.weight_decay * self.weight(block) if self.setting.l2 else g

    def weight(self, block: Block) -> Tensor:
        """The weights of a block as the step takes them."""
        return phases.weight(self.p[block], self.state_of(block), self.setting)

    def state_of(self, block: Block) -> dict[str, Tensor]:
        """The state of a block; factors, which all blocks of a matrix share, are not in it."""
        return {name: x[block] for name, x in self.state.items() if name not in ("v_row", "v_col")}

    def elements(self, block: Block) -> Tensor | None:
        """The indices of a block's elements in C order, int32, for stochastic rounding."""
        index = self._elements
        if index is None or not index.is_meta:
            return None if index is None else index[block].to(self.p.device)
        places = zip(index.stride(), (range(n)[s] for n, s in zip(index.shape, block, strict=True)), strict=True)
        found = torch.zeros((), dtype=torch.int64, device=self.p.device)
        for axis, (stride, place) in enumerate(places):
            along = torch.arange(place.start, place.stop, device=self.p.device) * stride
            found = found + along.view([-1 if axis == other else 1 for other in range(4)])
        return found.to(torch.int32)

    def write_copies(self) -> None:
        """Write back what `view_of` had to copy."""
        for name, view in {"p": self.p, **self.state}.items():
            x = self.work.p if name == "p" else self.work.state[name]
            if view.data_ptr() != x.data_ptr():
                x.copy_(from_view(view, self.plan, tuple(x.shape), self._reduced.get(name, ())))


def advance(part: Part, size: int, squares: Squares | None) -> None:
    """One step, in place, in blocks of about `size` elements; `squares` carries the sums of p^2 from step to step."""
    setting, recipe = part.setting, part.setting.recipe
    blocks = list(_blocks(part.sizes, size, part.plan.factored))
    if is_plain(part):
        advance_plain(part, blocks, squares)
        return
    roots = _factors(part, blocks) if part.plan.factored else ()
    told = part.work.telemetry is not None
    zero = torch.zeros((part.sizes[0], 1, 1, 1), dtype=setting.compute, device=part.p.device)
    p_rms, u_rms = zero, zero
    if recipe.multiply_by_parameter_scale or told:
        p_rms = torch.sqrt(sum(_mean_square(part, block, part.weight(block)) for block in blocks) + zero)
    if setting.clips or told:
        u_rms = torch.sqrt(sum(_mean_square(part, block, _direction(part, block, roots)[0]) for block in blocks) + zero)
    clip = (u_rms / recipe.clipping_threshold).clamp(min=1.0) if setting.clips else None
    alpha: Any = None
    for block in blocks:
        own = block[:1]
        state, (u, kept) = part.state_of(block), _direction(part, block, roots)
        u = u if clip is None else u / clip[own]
        new, alpha, moved = phases.apply(part.weight(block), u, p_rms[own], state, setting, part.now)
        key = part.work.key[own] if isinstance(part.work.key, Tensor) and part.work.key.ndim else part.work.key
        written = phases.rounded(new, setting, key, part.elements(block))
        part.p[block].copy_(written.pop("p"))
        for name, value in (kept | moved | written).items():
            state[name].copy_(value)
    part.write_copies()


def _factors(part: Part, blocks: list[Block]) -> tuple[Tensor, ...]:
    """Phase 1 and the first half of 2: R and C with the means of g^2 in them; their roots."""
    setting, now = part.setting, part.now
    v_row, v_col = part.state["v_row"], part.state["v_col"]
    rows = torch.zeros(v_row.shape, dtype=setting.compute, device=v_row.device)
    cols = torch.zeros(v_col.shape, dtype=setting.compute, device=v_col.device)
    for block in blocks:
        g = part.gradient(block)
        batch, lead, row, _ = block
        row_means, col_means = kernels.statistics(g, setting.added, _plan_of(g, setting))
        rows[batch, lead, row] = row_means
        cols[batch, lead] += col_means * (g.shape[2] / part.sizes[2])
    for kept, mean in ((v_row, rows), (v_col, cols)):
        kept.copy_(kernels.ema(kept.to(mean.dtype), mean, now.beta2, now.beta2_complement))
    return kernels.root_factors((v_row.to(setting.compute), v_col.to(setting.compute)), setting.floor, setting.plan)


def _direction(part: Part, block: Block, roots: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """u of a block, and what is to be kept of it."""
    setting, now, state = part.setting, part.now, part.state_of(block)
    g, kept = part.gradient(block), dict[str, Tensor]()
    batch, lead, row, _ = block
    if part.plan.factored:
        own: tuple[Tensor, ...] = (roots[0][batch, lead, row], roots[1][batch, lead])
    else:
        (square,) = kernels.statistics(g, setting.added, _plan_of(g, setting))
        v = state["v"]
        kept["v"] = kernels.ema(v.to(g.dtype), square, now.beta2, now.beta2_complement).to(v.dtype)
        own = kernels.root_factors((kept["v"].to(g.dtype),), setting.floor, setting.plan)
    u, moved = phases.direction(g, own, state, setting, now)
    return u, kept | moved


def _plan_of(x: Tensor, setting: Setting) -> Plan:
    """The plan of a block."""
    return Plan(tuple(x.shape), setting.plan.rows, setting.plan.cols, setting.plan.batch)


def _mean_square(part: Part, block: Block, x: Tensor) -> Tensor:
    """What a block adds to the mean of x^2 of its batch indices, [batch, 1, 1, 1]."""
    whole = torch.zeros((part.sizes[0], 1, 1, 1), dtype=x.dtype, device=x.device)
    whole[block[0]] = kernels.mean(x * x, _OWN) * (math.prod(x.shape[1:]) / max(math.prod(part.sizes[1:]), 1))
    return whole


def _blocks(sizes: tuple[int, ...], size: int, factored: bool) -> Iterator[Block]:
    """Blocks of about `size` elements: batch indices, or matrices of one, or rows of one, or elements of a row of V."""
    batch, lead, rows, cols = sizes
    counts = (lead * rows * cols, rows * cols, cols, 1)
    if counts[0] <= size:
        yield from ((s, _ALL, _ALL, _ALL) for s in _slices(batch, size // max(counts[0], 1)))
    elif counts[1] <= size:
        yield from ((b, s, _ALL, _ALL) for b in _slices(batch, 1) for s in _slices(lead, size // counts[1]))
    elif cols <= size or factored:  # a row has one mean: it is not taken apart
        own = [(b, l) for b in _slices(batch, 1) for l in _slices(lead, 1)]
        yield from ((b, l, s, _ALL) for b, l in own for s in _slices(rows, size // cols))
    else:
        own = [(b, l) for b in _slices(batch, 1) for l in _slices(lead, 1)]
        yield from ((b, l, r, s) for b, l in own for r in _slices(rows, 1) for s in _slices(cols, size))


def _slices(count: int, size: int) -> list[slice]:
    step = max(size, 1)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)] or [slice(0, 0)]
