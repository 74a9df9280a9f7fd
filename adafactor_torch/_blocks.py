"""The three phases of one parameter, or of a stack of them, in row blocks of its canonical view.

What is stepped may be the part of a tensor that this process holds. Then what has been added up over that part has to
be added up over the parts of all processes between two phases (`stepped`).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adafactor_spec.factoring import Plan

from . import _kernels as kernels
from . import _phases as phases
from ._canonical import canonical, elements_of, from_view, in_memory, reduced_axes, view_of
from ._factors import Factors, means_of, plan_of, write
from ._phases import Amp, Setting, Work
from ._pieces import Cut, Piece, Sum

Roots = list[tuple[Tensor, ...]]

OWN = (1, 2, 3)  # the axes of one batch index
# Elements of a matrix that is too small to be an inner loop, and so many of them that one across them is worth it.
SMALL_MATRIX, MANY = 64, 16
_ACROSS = (0, 2, 3, 1)


class Part:
    """A parameter or a stack, its gradient and its state seen as [batch, lead, rows, columns], and their blocks.

    Many small matrices, as of a convolution's kernels, are seen as [batch, rows, columns, lead] (`across`), and a block
    of theirs is copied to that order in memory before it is computed with.

    Args:
        work: the parameter or the stack.
        plan: of it.
        amp: what a GradScaler says.
        size: elements of a block, about.
        of_one: the plan of one parameter of a stack, whose elements are counted for themselves.
        piece: where this is a part of a tensor, what there is to know of the whole.
    """

    def __init__(
        self, work: Work, plan: Plan, amp: Amp, size: int, of_one: Plan | None = None, piece: Piece | None = None
    ) -> None:
        self.work, self.plan, self.amp, self.now = work, plan, amp, work.now
        self.one = of_one or plan
        self.good: Tensor | None = None
        self.piece = piece or Piece(self.one)
        sizes = canonical(plan).sizes
        self.across = plan.factored and sizes[2] * sizes[3] <= SMALL_MATRIX and sizes[1] >= MANY
        self.sizes = tuple(sizes[axis] for axis in _ACROSS) if self.across else sizes
        self.cut = Cut(self.sizes, size, plan.factored, self.across)
        self._views = {"p": view_of(work.p, plan)} | {
            name: view_of(x, plan, reduced_axes(name, plan)) for name, x in work.state.items() if name != "step"
        }
        seen = {name: self._seen(view) for name, view in self._views.items()}
        self.p, self.g, self.state = seen.pop("p"), self._seen(view_of(work.grad, plan)), seen
        rows, cols = (((1,), (2,)) if self.across else ((2,), (3,))) if plan.factored else ((), ())
        setting = work.setting
        self.setting = Setting(setting.recipe, Plan(self.sizes, rows, cols, (0,)), setting.dtype, setting.rounding)

    def _seen(self, view: Tensor) -> Tensor:
        return view.permute(_ACROSS) if self.across else view

    def read(self, block: Tensor) -> Tensor:
        """A block in the order in memory in which it is computed with."""
        return block.contiguous() if self.across else block

    def write_copies(self) -> None:
        """Write back what `view_of` had to copy."""
        for name, view in self._views.items():
            x = self.work.p if name == "p" else self.work.state[name]
            if view.data_ptr() != x.data_ptr():
                x.copy_(from_view(view, self.plan, tuple(x.shape), reduced_axes(name, self.plan)))

    def states(self) -> list[dict[str, Tensor]]:
        """The state of each block; R and C, which blocks share, are not in it."""
        names = [name for name in self.state if name not in ("v_row", "v_col")]
        pieces = [self.cut(self.state[name]) for name in names]
        return [dict(zip(names, of_block, strict=True)) for of_block in zip(*pieces, strict=True)] or self._empty()

    def _empty(self) -> list[dict[str, Tensor]]:
        return [{} for _ in self.cut(self.p)]

    def gradient(self, p: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The gradient of a block as the step takes it."""
        g = self.read(g).to(self.setting.compute)
        if self.amp.grad_scale is not None:
            g = g / self.amp.grad_scale.to(g)
        if self.work.maximize:
            g = -g
        return g + self.now.weight_decay * self.weight(p, state) if self.setting.l2 else g

    def weight(self, p: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The weights of a block as the step takes them."""
        return phases.weight(self.read(p), state, self.setting)

    def goods(self) -> list[Tensor | None]:
        """For each block, where it is to be written; None for everywhere."""
        return [None] * len(self.cut(self.p)) if self.good is None else list(self.cut(self.good))

    def leave_out(self, good: Tensor) -> None:
        """Only the parameters of the stack for which `good` says so are to be written."""
        self.good = good.repeat_interleave(canonical(self.one).sizes[0]).view(-1, 1, 1, 1)

    def elements(self) -> Iterator[Tensor | None]:
        """For stochastic rounding, the indices of each block's elements in C order, int32; made one after the other."""
        if not self.setting.stochastic:
            yield from [None] * len(self.cut(self.p))
            return
        index = self._seen(elements_of(self.one, self.piece.index()))
        if len(index) != self.sizes[0]:  # a stack, which is one block
            yield _indices(index, self.p.device).repeat(self.sizes[0] // len(index), 1, 1, 1)
            return
        for view in self.cut(index):
            yield _indices(view, self.p.device)


def advance(part: Part) -> None:
    """One step of whole tensors, in place."""
    for _ in stepped(part):
        pass  # what it asks for is there already


def stepped(part: Part) -> Iterator[list[Sum]]:
    """One step, in place, which stops between phases for the sums that it needs from all processes.

    Where `part.good` has been set by then, a mask [batch, 1, 1, 1], the step is written only there.
    """
    setting, recipe, cut, told = part.setting, part.setting.recipe, part.cut, part.work.telemetry
    ps, gs, states = cut(part.p), cut(part.g), part.states()
    per_batch = part.p.new_zeros((part.sizes[0], 1, 1, 1), dtype=setting.compute)
    p_squares, u_squares = per_batch.clone(), per_batch.clone()
    factors = Factors(part, *means_of(part, ps, gs, states)) if part.plan.factored else None
    sums = [] if factors is None else factors.sums
    if recipe.multiply_by_parameter_scale or told is not None:
        for into, p, state in zip(cut(p_squares), ps, states, strict=True):
            into += _share(part.weight(p, state), part)
        sums.append(Sum(p_squares, part.one.rms_axes))
    yield sums
    yield [] if factors is None else factors.update()
    roots: Roots = [()] * len(ps) if factors is None else list(zip(*map(cut, factors.roots()), strict=True))
    if setting.clips or told is not None:
        for into, p, g, root, state in zip(cut(u_squares), ps, gs, roots, states, strict=True):
            into += _share(_direction(part, p, g, root, state)[0], part)
    yield [Sum(u_squares, part.one.rms_axes)] if setting.clips or told is not None else []
    p_rms, u_rms = torch.sqrt(p_squares), torch.sqrt(u_squares)
    clip = kernels.clip_factor(u_rms, recipe.clipping_threshold or math.inf)
    key = part.work.key
    keys = cut(key) if isinstance(key, Tensor) and key.ndim else [key] * len(ps)
    rows = zip(ps, gs, states, roots, cut(p_rms), cut(clip), keys, part.goods(), strict=True)
    for (p, g, state, root, own_rms, own_clip, own_key, good), elements in zip(rows, part.elements(), strict=True):
        u, kept = _direction(part, p, g, root, state)
        u = u / own_clip if setting.clips else u
        new, moved = phases.apply(part.weight(p, state), u, own_rms, state, setting, part.now)
        written = phases.rounded(new, setting, own_key, elements)
        write(p, written.pop("p"), good)
        for name, value in (kept | moved | written).items():
            write(state[name], value, good)
    if told is not None:
        shown = phases.shown(u_rms, p_rms, setting, part.now)
        write(told, shown, None if part.good is None else part.good.view(-1, 1))
    part.write_copies()


def _direction(
    part: Part, p: Tensor, g: Tensor, roots: tuple[Tensor, ...], state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """u of a block, and what is to be kept of it."""
    setting, now, kept = part.setting, part.now, dict[str, Tensor]()
    g = part.gradient(p, g, state)
    if not roots:
        (square,) = kernels.statistics(g, setting.added, plan_of(g, setting))
        v = state["v"]
        kept["v"] = kernels.ema(v.to(g.dtype), square, now.beta2, now.beta2_complement).to(v.dtype)
        roots = kernels.root_factors((kept["v"].to(g.dtype),), setting.floor, setting.plan)
    u, moved = phases.direction(g, roots, state, setting, now)
    return u, kept | moved


def _share(x: Tensor, part: Part) -> Tensor:
    """What a block adds to the mean of x^2 of its batch indices."""
    return kernels.mean(x * x, OWN) * (math.prod(x.shape[1:]) / part.piece.per_batch)


def _indices(index: Tensor, device: torch.device) -> Tensor:
    """`elements_of` or a part of it, as int32."""
    return in_memory(index, device) if index.is_meta else index.to(device)
