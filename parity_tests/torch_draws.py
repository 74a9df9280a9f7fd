"""What random interleavings of the torch optimizer draw from: parameters and gradients in every layout of memory,
fields of groups, and what is refused."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from adafactor_spec import factoring, recipes, schedules

from .random_recipes import BETAS, DECAYS, LRS, RULES, SHAPES, STEPWISE, any_recipe
from .torch_runs import Array, Shape

# Large enough for a path that works in blocks. The names are those that the rules of `random_recipes` look for.
KINDS: dict[str, Shape] = {
    **SHAPES,
    "matrix_large": (48, 64),
    "vector_large": (3000,),
    "stack_large": (3, 20, 30),
}


# ---------------------------------------------------------------------------------------------------------- layouts


def dense(x: Array) -> Tensor:
    return torch.tensor(x)


def transposed(x: Array) -> Tensor:
    """The axes lie in memory in reverse order."""
    return torch.tensor(x.T.copy()).permute(tuple(reversed(range(x.ndim))))


def channels_last(x: Array) -> Tensor:
    """Axis 1 is the innermost in memory, as torch's channels_last has it for four axes."""
    return torch.tensor(np.moveaxis(x, 1, -1).copy()).movedim(-1, 1) if x.ndim > 2 else dense(x)


def sliced(x: Array) -> Tensor:
    """Every other number of its memory: no order of the axes makes it contiguous."""
    return torch.full((*x.shape, 2), 7.0, dtype=torch.float64)[..., 1].copy_(torch.tensor(x))


def inside(x: Array) -> Tensor:
    """A part of a longer flat tensor, three numbers from its start and two from its end."""
    flat = torch.full((x.size + 5,), 7.0, dtype=torch.float64)
    return flat[3 : 3 + x.size].view(x.shape).copy_(torch.tensor(x))


def negated(x: Array) -> Tensor:
    """A view that torch negates when it is read: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros(x.shape, dtype=torch.float64), torch.tensor(-x)).conj().imag


def with_graph(x: Array) -> Tensor:
    """As `backward(create_graph=True)` leaves it."""
    return torch.tensor(x).requires_grad_() * 1.0


def expanded(x: Array) -> Tensor:
    """One number, expanded with strides of 0, as the gradient of a sum is."""
    return torch.tensor(float(x.flat[0]) if x.size else 0.0, dtype=torch.float64).expand(x.shape)


LAYOUTS: dict[str, Callable[[Array], Tensor]] = {
    layout.__name__: layout for layout in (dense, transposed, channels_last, sliced, inside)
}
GRADIENT_LAYOUTS = LAYOUTS | {layout.__name__: layout for layout in (negated, with_graph, expanded)}


def _only_the_first(x: Array, rng: np.random.Generator) -> Array:
    """Zero but for the first index of the first axis, as the gradient of an embedding is."""
    return np.concatenate([x[:1], np.zeros_like(x[1:])]) if x.ndim else x


# What is made of normal numbers. No gradient at all: None.
GRADIENTS: dict[str, Callable[[Array, np.random.Generator], Array] | None] = {
    "ordinary": lambda x, rng: x * 10.0 ** rng.uniform(-2, 2),
    "none": None,
    "zero": lambda x, rng: 0.0 * x,
    "huge": lambda x, rng: x * 1e18,
    "tiny": lambda x, rng: x * 1e-18,
    "mixed": lambda x, rng: x * 10.0 ** rng.uniform(-9, 9, x.shape),
    "one row": _only_the_first,
}


def gradient(kind: str, layout: str, shape: Shape, rng: np.random.Generator) -> Tensor | None:
    make = GRADIENTS[kind]
    return None if make is None else GRADIENT_LAYOUTS[layout](np.asarray(make(rng.standard_normal(shape), rng)))


# ------------------------------------------------------------------------------------------------------- what is drawn


OVERRIDES: dict[str, list[Any]] = {
    "lr": LRS,
    "beta2": BETAS,
    "beta1": [None, 0.5, schedules.adam_decay(0.9)],
    "momentum_of": ["grad", "update", "step"],
    "weight_decay": DECAYS,
    "clipping_threshold": [None, 0.3],
    "amsgrad": [True, False],
    "maximize": [True, False],
}
# What may change in a group that has state: the state keeps its shapes.
CHANGES: list[tuple[str, Any]] = [
    *(("lr", value) for value in (0.0, 1e-3, 0.3)),
    *(("beta2", value) for value in (0.9, schedules.power_decay())),
    *(("beta1", value) for value in (0.5, schedules.adam_decay(0.9))),
    *(("weight_decay", value) for value in (0.0, 0.2, STEPWISE)),
    *(("clipping_threshold", value) for value in (None, 0.5, 2.0)),
    *(("multiply_by_parameter_scale", value) for value in (True, False)),
    *(("relative_step", value) for value in (True, False)),
    *(("momentum_of", value) for value in ("grad", "update", "step")),
    *(("debias", value) for value in (True, False)),
    *(("maximize", value) for value in (True, False)),
    ("eps1", 1e-3),
    ("eps2", 0.01),
]
BAD_VALUES: list[tuple[str, Any]] = [
    ("lr", -1.0),
    ("beta2", 1.0),
    ("beta1", -0.1),
    ("weight_decay", float("nan")),
    ("clipping_threshold", 0.0),
    ("maximize", "yes"),
    ("factoring", factoring.explicit((7,), (8,))),
]


def sparse(p: Tensor) -> None:
    p.grad = torch.zeros_like(p).to_sparse()


def complex_(p: Tensor) -> None:
    p.grad_dtype = None
    p.grad = torch.ones_like(p, dtype=torch.complex64)


def of_another_shape(p: Tensor) -> None:
    p.grad = torch.ones_like(p)
    p.grad.data = torch.ones((*p.shape, 2), dtype=p.dtype)


BAD_GRADIENTS = [sparse, of_another_shape] + ([complex_] if hasattr(torch.ones(()), "grad_dtype") else [])

NAMES = [name for name in recipes.NAMES if name != "praxis"]  # has no default for its decay


def _through_torch_save(value: Any) -> Any:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


# Of parameters together with their optimizer.
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": _through_torch_save,
}

SEEDS = st.integers(0, 2**32 - 1)
PARAMETERS = st.lists(
    st.tuples(st.sampled_from(list(KINDS)), st.sampled_from(list(LAYOUTS)), st.sampled_from([1, 1, 2, 5])),
    min_size=1,
    max_size=3,
)
GRADIENT_KINDS = st.lists(
    st.tuples(st.sampled_from(list(GRADIENTS)), st.sampled_from(list(GRADIENT_LAYOUTS))), min_size=1, max_size=7
)
INDEX = st.integers(0, 100)  # of a parameter or group, modulo how many there are


@st.composite
def group_fields(draw: st.DrawFn) -> dict[str, Any]:
    """What a group may say of itself: a recipe, by name or not, and fields over it."""
    fields: dict[str, Any] = {}
    kind = draw(st.sampled_from(["fields", "recipe", "name"]))
    if kind == "recipe":
        fields["recipe"] = draw(any_recipe())
    if kind == "name":
        # As in `any_recipe`: a rule that takes every shape, and no 16-bit momentum.
        fields |= {"recipe": draw(st.sampled_from(NAMES)), "momentum_dtype": None}
        fields |= {"factoring": draw(st.sampled_from(RULES)), "lr": draw(st.sampled_from(LRS))}
    for field in draw(st.sets(st.sampled_from(sorted(OVERRIDES)), max_size=3)):
        fields[field] = draw(st.sampled_from(OVERRIDES[field]))
    return fields


def cycled(choices: list[Any], count: int) -> Iterator[Any]:
    """As many as are needed, from the first one again after the last."""
    return (choices[index % len(choices)] for index in range(count))
