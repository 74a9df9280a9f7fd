"""One run in every way of computing it, with infinities, NaN and numbers whose squares overflow put into it.

A run begins after one ordinary step. Then something is put into the gradients, the parameters or the state, a step is
taken, and after it one with ordinary gradients again.
"""

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from adafactor_spec import Recipe, dtypes, factoring, oracle, recipes, replace
from adafactor_torch import Adafactor

Array = Any
Values = dict[tuple[str, str], Array]  # ("p" or the name of a part of the state, the parameter) to its float64 values

# In the order of their names, which is JAX's. A row of `large` is no multiple of what C++ takes at a time, and JAX
# compiles another program for it than for the small ones.
SHAPES: dict[str, tuple[int, ...]] = {
    "filters": (20, 2, 3, 3),
    "kernel": (4, 6),
    "large": (300, 200),
    "scalar": (),
    "stack": (3, 5, 4),
    "vector": (7,),
}
RULE = factoring.by_name({"stack": factoring.explicit(1, 2, 0)}, default=factoring.last_two)
FLOOR: dict[str, Any] = {"eps1": None, "eps1_mode": "floor"}
RECIPES: dict[str, Recipe] = {
    "paper": recipes.paper(),
    "torch": recipes.torch(0.1, weight_decay=0.1),
    "floor": Recipe(
        clipping_threshold=None, multiply_by_parameter_scale=False, factoring=factoring.no_factoring, **FLOOR
    ),
    "not clipped": Recipe(clipping_threshold=None, multiply_by_parameter_scale=False),
    "infinite threshold": Recipe(clipping_threshold=np.inf, max_parameter_scale=1.0),
    "amsgrad": recipes.adafactor_pytorch(non_constant_decay=False),
    "amsgrad and a floor": Recipe(amsgrad=True, beta2=0.9, **FLOOR),
    "averages of gradients": Recipe(beta1=0.9, momentum_of="grad", debias=True, clipping_threshold=None, **FLOOR),
    "averages of updates": Recipe(beta1=0.9, multiply_by_parameter_scale=False),
    "averages of steps": Recipe(beta1=0.9, momentum_of="step", weight_decay=0.1, weight_decay_by="one"),
    "L2": Recipe(weight_decay=1e-3, weight_decay_by="grad"),
    "decay first": Recipe(weight_decay=0.1, weight_decay_by="lr", decay_before_scale=True),
}
# A finite result is the definition's but for rounding: float32's error is some 1e-7 of the largest finite element, and
# a 16-bit number a spacing or two of its own.
NEAR = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}

STATES = ("v_row", "v_col", "v", "v_max", "m", "compensation")


@dataclass(frozen=True)
class Case:
    """A value, put into the gradients ("g"), the parameters ("p") or a part of the state.

    `where` is "one" element in the middle, the "last" one, a "row" or "all".
    """

    what: str
    where: str
    value: float

    def put_into(self, x: Array) -> Array:
        """A copy of x with the value in its place."""
        shape, made = np.shape(x), np.array(x, np.float64)
        middle = tuple(0 if n == 1 else n // 2 for n in shape)
        places: dict[str, Any] = {"one": middle, "last": (-1,) * len(shape), "row": middle[:-1], "all": ...}
        made[places[self.where]] = self.value
        return made


def cases(recipe: Recipe, dtype: str = "float32") -> Iterator[Case]:
    """Those of a recipe; what it does not keep is left out. A second moment is never negative."""
    beyond, largest = (1e160, 1e308) if dtype == "float64" else (1e20, 3e38)  # squares of both overflow
    for value in (np.inf, -np.inf, np.nan, beyond, largest):
        for where in ("one", "last", "row"):
            yield Case("g", where, value)
        yield Case("p", "one", value)
    yield Case("g", "all", np.inf)
    yield Case("p", "last", beyond)
    kept = ["v_row", "v_col", "v", *(["v_max"] if recipe.amsgrad else []), *(["m"] if recipe.beta1 is not None else [])]
    for what in kept:
        for value in (np.inf, np.nan):
            yield Case(what, "one", value)
    yield Case("v_col", "all", np.nan)


def some_cases(recipe: Recipe, *number: int, every: int, dtype: str = "float32") -> list[Case]:
    """Every so many cases of a recipe, which begin at another one for each test number."""
    return list(cases(recipe, dtype))[sum(number) % every :: every]


def gradients(t: int) -> dict[str, Array]:
    """Those of step t, which fit in float32."""
    rng = np.random.default_rng(t)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


class Path(Protocol):
    """A way to compute a run; values go in and come out as float64 arrays that fit the dtype."""

    @property
    def names(self) -> Collection[str]:
        """Of the parameters that are stepped."""

    def begin(self) -> None:
        """To where the first step has led."""

    def put(self, case: Case) -> None:
        """The value into the parameters or the state, where they have such a thing."""

    def step(self, grads: dict[str, Array]) -> None:
        """One step."""

    def values(self) -> Values:
        """The parameters and the state."""


def run(path: Path, case: Case) -> list[Values]:
    """What a case leaves after its step, and after the next one."""
    path.begin()
    made = []
    for t in (2, 3):
        grads = gradients(t)
        if t == 2 and case.what == "g":
            grads = {name: case.put_into(grad) for name, grad in grads.items()}
        elif t == 2:
            path.put(case)
        path.step(grads)
        made.append(path.values())
    return made


class Definition:
    """The oracle in float32, or in float64 for parameters of that."""

    names = tuple(SHAPES)

    def __init__(self, recipe: Recipe, dtype: str = "float32", rounding: str = "nearest") -> None:
        self._recipe, self._dtype = recipe, dtype
        self._compute = np.float64 if dtype == "float64" else np.float32
        self._how: dict[str, Any] = {"dtype": dtype, "compute": self._compute, "rounding": rounding}
        self._first: dict[str, tuple[Array, oracle.State]] = {}
        for name, p in gradients(0).items():
            p = self._rounded(p)
            self._first[name] = p, oracle.init(recipe, p, name=name, **self._how)
        self._now = dict(self._first)
        self.step(gradients(1))
        self._first = dict(self._now)

    def _rounded(self, x: Array) -> Array:
        return dtypes.round_to(np.asarray(x, self._compute), self._dtype)

    def begin(self) -> None:
        self._now = dict(self._first)

    def put(self, case: Case) -> None:
        for name, (p, state) in self._now.items():
            if case.what == "p":
                self._now[name] = self._rounded(case.put_into(p)), state
            elif getattr(state, case.what) is not None:
                own = copy.copy(vars(state)) | {case.what: case.put_into(getattr(state, case.what))}
                self._now[name] = p, oracle.State(**own)

    def step(self, grads: dict[str, Array]) -> None:
        for index, (name, (p, state)) in enumerate(self._now.items()):
            options: dict[str, Any] = {"name": name, "index": index, **self._how}
            self._now[name] = oracle.step(self._recipe, p, self._rounded(grads[name]), state, **options)

    def values(self) -> Values:
        made = {}
        for name, (p, state) in self._now.items():
            made["p", name] = np.asarray(p, np.float64)
            kept = {what: getattr(state, what) for what in STATES}
            made |= {(what, name): np.asarray(x, np.float64) for what, x in kept.items() if x is not None}
        return made


class Torch:
    """The torch optimizer, on the path that `options` choose.

    Args:
        recipe, dtype, rounding: of the optimizer and its parameters.
        names: which of the parameters are stepped.
        laid: gives the parameter or gradient with that index the layout in which the optimizer is to have it.
        options: of the optimizer.
    """

    def __init__(
        self,
        recipe: Recipe,
        dtype: str = "float32",
        rounding: Any = "nearest",
        *,
        names: Sequence[str] = tuple(SHAPES),
        laid: Callable[[int, Tensor], Tensor] = lambda index, whole: whole,
        **options: Any,
    ) -> None:
        self._make = lambda params: Adafactor(params, recipe=recipe, rounding=rounding, **options)
        self._dtype, self._laid = getattr(torch, dtype), laid
        self._names = names
        self.begin()

    @property
    def names(self) -> Collection[str]:
        return self._names

    def begin(self) -> None:
        self._params = {name: torch.nn.Parameter(self._tensors(gradients(0))[name]) for name in self._names}
        self._optimizer = self._make(self._params.items())
        self.step(gradients(1))

    def put(self, case: Case) -> None:
        for p in self._params.values():
            x = p.detach() if case.what == "p" else self._optimizer.state[p].get(case.what)
            if x is not None:
                made = torch.tensor(case.put_into(_values_of(x)))
                with torch.no_grad():
                    (p if case.what == "p" else x).copy_(_laid_like(x, made.to(x.dtype)))

    def step(self, grads: dict[str, Array]) -> None:
        given = self._tensors(grads)
        for name, p in self._params.items():
            p.grad = given[name]
        self._optimizer.step()

    def values(self) -> Values:
        made = {("p", name): _values_of(p.detach()) for name, p in self._params.items()}
        for name, p in self._params.items():
            kept = self._optimizer.state[p]
            made |= {(what, name): _values_of(kept[what]) for what in STATES if what in kept}
        return made

    def _tensors(self, arrays: dict[str, Array]) -> dict[str, Tensor]:
        wholes = {name: torch.tensor(np.asarray(arrays[name])).to(self._dtype) for name in self._names}
        return {name: self._laid(index, whole) for index, (name, whole) in enumerate(wholes.items())}


def _values_of(x: Tensor) -> Array:
    whole = x.full_tensor() if isinstance(x, DTensor) else x
    return whole.double().numpy().copy()


def _laid_like(x: Tensor, whole: Tensor) -> Tensor:
    """The whole tensor, distributed as x is."""
    if not isinstance(x, DTensor):
        return whole
    return distribute_tensor(whole, x.device_mesh, x.placements, src_data_rank=None)


# ----------------------------------------------------------------------------------------------- against the definition


def assert_alike(found: Values, right: Values, near: float, where: object) -> None:
    """Infinite with the same sign, NaN and finite in the same places, and what is finite is near."""
    assert found.keys() == right.keys()
    for key, expected in right.items():
        x, finite = found[key], np.isfinite(expected)
        assert np.array_equal(x[~finite], expected[~finite], equal_nan=True), (where, key)
        assert np.all(np.isfinite(x[finite])), (where, key)
        # Beside a tie the last bit of a step decides which way p is rounded, and what that cuts off changes by a whole
        # spacing: p itself shows whether the rounding is right.
        if finite.any() and key[0] != "compensation":
            largest = np.max(np.abs(expected[finite]))
            assert np.max(np.abs(x[finite] - expected[finite])) <= near * largest, (where, key)


@functools.cache
def recipe_of(name: str) -> Recipe:
    recipe = RECIPES[name]
    return replace(recipe, factoring=RULE) if recipe.factoring == factoring.last_two else recipe


@functools.cache
def defined(name: str, case: Case, *how: str) -> list[Values]:
    """What the definition says, once for all paths."""
    with np.errstate(all="ignore"):
        return run(Definition(recipe_of(name), *how), case)


def assert_as_defined(path: Path, name: str, case: Case, *how: str) -> None:
    near = NEAR[how[0] if how else "float32"]
    for step, (found, right) in enumerate(zip(run(path, case), defined(name, case, *how), strict=True)):
        right = {key: x for key, x in right.items() if key[1] in path.names}
        assert_alike(found, right, near, (case, step))
