"""Hostile parameters and gradients of a torch step, and the oracle's answer to one step of them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

from adafactor_spec import Recipe, dtypes, oracle

from .torch_runs import FLOAT64, GAPS, Array, Shape

# Beside sums, whose roundings `GAPS` is for, a step rounds an element at most about sixteen times, each time by half a
# unit in the last place of something that is no larger than the largest element of the array before and after.
ROUNDINGS = 16


class SubClass(Tensor):
    """A tensor of another class, with memory of its own."""


# ---------------------------------------------------------------------------------------------------------- layouts


def _sliced(x: Tensor) -> Tensor:
    return x.new_full((*x.shape, 2), 7.0)[..., 1].copy_(x)


def _inside(x: Tensor) -> Tensor:
    flat = x.new_full((x.numel() + 5,), 7.0)
    return flat[3 : 3 + x.numel()].view(x.shape).copy_(x)


def _reversed(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def _permuted(x: Tensor) -> Tensor:
    """Axis 1 is the innermost in memory, as torch's channels_last has it."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x.clone()


def _expanded(x: Tensor) -> Tensor:
    return x.reshape(-1)[:1].clone().reshape(()).expand(x.shape) if x.numel() else x.clone()


def _overlapping(x: Tensor) -> Tensor:
    """Neighbours share memory, though no stride is 0."""
    strides = (1,) * x.ndim
    return torch.as_strided(x.new_ones(1 + sum(n - 1 for n in x.shape)), x.shape, strides) if x.numel() else x.clone()


DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": torch.clone,
    "reversed": _reversed,
    "permuted": _permuted,
    "sliced": _sliced,
    "inside": _inside,
}
# What a gradient may be beside that. A parameter in the first two has no memory of its own for each element.
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    **DENSE,
    "expanded": _expanded,
    "overlapping": _overlapping,
    "negative": lambda x: torch._neg_view(-x),
    "with a graph": lambda x: x.clone().requires_grad_() * 1.0,
    "of another class": lambda x: x.clone().as_subclass(SubClass),
}
# What is no gradient of a parameter. torch looks when it is set, and lets such a tensor through in other ways.
WRONG_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: torch.complex(x.float(), x.float()),
    "longer": lambda x: x.new_ones((*x.shape, 2)),
    "of another rank": lambda x: x[None],
}
PARAMETERS: dict[str, Callable[[Tensor], Tensor]] = {
    **DENSE,
    "expanded": _expanded,
    "overlapping": _overlapping,
    "negative": lambda x: torch._neg_view(-x),
    "of another class": lambda x: x.clone().as_subclass(SubClass),
    "two tensors": lambda x: TwoTensor(x.clone(), x.clone()),
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: torch.complex(x.float(), x.float()),
    "whole": lambda x: x.nan_to_num().clamp(-9, 9).to(torch.int32),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
}
_HAS_NO_MEMORY = ("expanded", "overlapping", "negative")
# Of which a step may be refused, and a right one taken.
_UNSURE = ("of another class", "two tensors")


def must_be_refused(layout: str, p: Tensor) -> bool:
    """Whether a parameter in the layout has no memory of its own for each element, or is not real and floating."""
    if layout == "negative":
        return p.is_neg()
    shares = layout in _HAS_NO_MEMORY and any(n > 1 for n in p.shape) and p.numel() > 0
    return (shares and not (layout == "overlapping" and sum(n > 1 for n in p.shape) == 1)) or layout not in (
        *DENSE,
        *_HAS_NO_MEMORY,
        *_UNSURE,
    )


# ----------------------------------------------------------------------------------------------------------- values


VALUES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "ordinary": lambda x, rng: x,
    "zero": lambda x, rng: 0.0 * x,
    "negative zero": lambda x, rng: -0.0 * np.ones_like(x),
    "ones": lambda x, rng: np.ones_like(x),
    "huge": lambda x, rng: x * 1e17,
    "tiny": lambda x, rng: x * 1e-17,
    "subnormal": lambda x, rng: x * 1e-40,
    "mixed": lambda x, rng: x * 10.0 ** rng.uniform(-9, 9, x.shape),
    "one row": lambda x, rng: np.concatenate([x[:1], 0.0 * x[1:]]) if x.ndim else x,
    "inf": lambda x, rng: _spoiled(x, rng, math.inf),
    "-inf": lambda x, rng: _spoiled(x, rng, -math.inf),
    "nan": lambda x, rng: _spoiled(x, rng, math.nan),
    "all nan": lambda x, rng: np.full_like(x, math.nan),
}


def _spoiled(x: Array, rng: np.random.Generator, by: float) -> Array:
    x = np.array(x)
    if x.size:
        x.flat[int(rng.integers(x.size))] = by
    return x


# Mostly small ones of every rank; some that are worth a block or a vector of their own.
SMALL = st.lists(st.sampled_from([1, 2, 3, 3, 4, 0]), max_size=5).map(tuple)
SHAPES = st.one_of(
    SMALL, SMALL, SMALL, SMALL, st.sampled_from([(33, 65), (257,), (5, 7, 31), (16, 16), (64, 3), (1, 129)])
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One parameter, and its gradients."""

    shape: Shape
    dtype: str
    layout: str
    value: str
    grads: tuple[tuple[str, str], ...]  # (value, layout) of each step
    seed: int

    def parameter(self) -> Tensor:
        return (
            PARAMETERS[self.layout](self._tensor(self.value, self.seed))
            .detach()
            .requires_grad_(self.layout not in ("whole",))
        )

    def gradient(self, step: int) -> Tensor:
        value, layout = self.grads[step]
        return {**GRADIENTS, **WRONG_GRADIENTS}[layout](self._tensor(value, self.seed + step + 1))

    def is_wrong(self, step: int) -> bool:
        """Whether the gradient of this step is none of the parameter."""
        return step < len(self.grads) and self.grads[step][1] in WRONG_GRADIENTS

    def _tensor(self, value: str, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        x = np.asarray(VALUES[value](np.asarray(rng.standard_normal(self.shape)), rng))
        return torch.tensor(x).to(getattr(torch, self.dtype))


@st.composite
def parameters(draw: st.DrawFn) -> Drawn:
    usual = st.sampled_from(list(DENSE))
    layouts = [*GRADIENTS, *GRADIENTS, *GRADIENTS, *WRONG_GRADIENTS]
    one = st.tuples(st.sampled_from(list(VALUES)), st.sampled_from(layouts))
    return Drawn(
        shape=draw(SHAPES),
        dtype=draw(st.sampled_from(dtypes.NAMES)),
        layout=draw(st.one_of(usual, usual, usual, st.sampled_from(list(PARAMETERS)))),
        value=draw(st.sampled_from(["ordinary", "ordinary", *VALUES])),
        grads=tuple(draw(st.lists(one, min_size=1, max_size=2))),
        seed=draw(st.integers(0, 2**31)),
    )


def give(p: Tensor, grad: Tensor | None) -> None:
    """Set the gradient of a parameter, of whatever kind it is."""
    try:
        p.grad = grad
    except RuntimeError:
        assert grad is not None
        if hasattr(p, "grad_dtype"):
            p.grad_dtype = None
        p.grad = torch.zeros_like(p, dtype=grad.dtype)
        p.grad.data = grad


# ----------------------------------------------------------------------------------------------------------- oracle


def array(x: Tensor) -> Array:
    held = x.a if isinstance(x, TwoTensor) else x  # both of the two hold the same
    return held.detach().resolve_neg().to(torch.float64).numpy().copy()


def arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    return {key: array(x) for key, x in state.items()}


def stored_in(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {key: str(x.dtype).removeprefix("torch.") for key, x in state.items()}


@dataclasses.dataclass
class Judge:
    """The oracle beside one parameter of an optimizer; it goes on from the optimizer's own numbers, as float64 arrays.

    `by_addition`: the parameter reaches its new value as optax has it, by a difference that is added to it.
    """

    recipe: Recipe
    dtype: str
    name: str
    index: int
    rounding: str = "nearest"
    seed: int = 0
    sign: float = 1.0
    by_addition: bool = False

    def __post_init__(self) -> None:
        self.compute: Any = np.float64 if self.dtype == "float64" else np.float32
        self.recipe = dataclasses.replace(self.recipe, eps1=self.recipe.eps1_for(self.dtype))

    def _step(self, p: Array, grad: Array, before: Mapping[str, Array], compute: Any) -> dict[str, Array]:
        """What a step makes of the parameter and its state, `before` that with its `step`, in this arithmetic."""
        how: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "compute": compute, "rounding": self.rounding}
        with np.errstate(all="ignore"):
            state = oracle.init(self.recipe, np.asarray(p, compute), **how)
            kept = {key: np.asarray(x, compute) for key, x in before.items() if key != "step"}
            state = dataclasses.replace(state, step=int(before.get("step", 0)), **kept)
            g = self.sign * np.asarray(grad, compute)
            after, state = oracle.step(self.recipe, p, g, state, seed=self.seed, index=self.index, **how)
        entries = {key: np.asarray(x, np.float64) for key, x in vars(state).items() if x is not None}
        return {"p": np.asarray(after, np.float64), **entries}

    def check(
        self,
        p: Array,
        grad: Array,
        before: Mapping[str, Array],
        after: Array,
        state: Mapping[str, Array],
        stored: Mapping[str, str],
    ) -> None:
        """The parameter and the state after a step are the oracle's.

        Args:
            p, after: the parameter before and after the step.
            grad: its gradient.
            before, state: its state before and after, with its `step`; nothing before the first one.
            stored: the dtype that each entry of the state is kept in.
        """
        exact, own = (self._step(p, grad, before, compute) for compute in (np.float64, self.compute))
        found = {"p": after, **state}
        assert found.keys() == own.keys(), (found.keys(), own.keys())
        if "compensation" in found:  # which is another where p is the other neighbour: their sum is compared
            for which in (found, exact, own):
                with np.errstate(invalid="ignore"):
                    which["compensation"] = which["p"] + which["compensation"]
        for key, x in found.items():
            assert x.shape == own[key].shape, key
            if key == "step":
                assert x == own[key], f"step: {x} is not {own[key]}"
                continue
            started = p if key == "p" else before.get(key, np.zeros_like(x))
            self._near(key, x, exact[key], own[key], started, self.dtype if key == "p" else stored[key])

    def _near(self, key: str, x: Array, exact: Array, own: Array, started: Array, stored: str) -> None:
        finite = np.isfinite(own)
        same = np.array_equal(x[~finite], own[~finite], equal_nan=True) and np.all(np.isfinite(x[finite]))
        assert same, f"{key}: {x} is not {own}"
        largest = max(float(np.max(np.abs(y[np.isfinite(y)]), initial=0.0)) for y in (own, started))
        if self.dtype == "float64":
            budget: Any = FLOAT64 * largest
        else:
            both = finite & np.isfinite(exact)
            gap = float(np.max(np.abs(exact[both] - own[both]), initial=0.0))
            budget = GAPS * gap + ROUNDINGS * dtypes.epsilon("float32") * largest
            budget += float(np.finfo(np.float32).tiny) * self.by_addition  # below which XLA has only 0
        if key == "compensation":  # in bfloat16, of at most half a unit in the last place
            budget = budget + dtypes.spacing(dtypes.spacing(own[finite], self.dtype), stored)
            if self.by_addition:  # the parameter may be a unit beside what was rounded, see docs/numerics.md
                budget = budget + 2 * dtypes.spacing(np.full(1, largest), self.dtype)
        elif dtypes.is_narrow(stored):  # the neighbour, of a float32 near the middle between two
            budget = budget + dtypes.spacing(own[finite], stored)
            if key == "p" and self.by_addition:  # and the update is rounded too, as is its sum with the parameter
                budget = budget + 2 * dtypes.spacing(np.full(1, largest), stored)
        apart = np.abs(x[finite] - own[finite])
        assert np.all(apart <= budget), f"{key}: {np.max(apart)} apart, more than {np.max(budget)}"
