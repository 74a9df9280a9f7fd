"""One run in every way of computing it, with infinities, NaN and numbers whose squares overflow put into it.

A run begins after one ordinary step. Then something is put into the gradients, the parameters or the state, a step is
taken, and after it one with ordinary gradients again.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from adafactor_jax import adafactor
from adafactor_spec import Recipe, dtypes, oracle
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


def gradients(t: int) -> dict[str, Array]:
    """Those of step t, which fit in float32."""
    rng = np.random.default_rng(t)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


class Path(Protocol):
    """A way to compute a run; values go in and come out as float64 arrays that fit the dtype."""

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


class Jax:
    """The optax transformation, compiled."""

    def __init__(self, recipe: Recipe, dtype: str = "float32", rounding: Any = "nearest") -> None:
        tx = adafactor(recipe=recipe, rounding=rounding)

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step)
        self._dtype = jnp.dtype(dtype)
        self._params = {name: jnp.asarray(p, self._dtype) for name, p in gradients(0).items()}
        self._state = tx.init(self._params)
        self.step(gradients(1))
        self._first = self._params, self._state

    def begin(self) -> None:
        self._params, self._state = self._first

    def put(self, case: Case) -> None:
        def changed(tree: Any) -> Any:
            with np.errstate(over="ignore"):  # 1e20 is infinite in float16
                return jax.tree.map(lambda x: jnp.asarray(case.put_into(_wide(x)), x.dtype), tree)

        if case.what == "p":
            self._params = changed(self._params)
        for _, kept in optax.tree_utils.tree_get_all_with_path(self._state, case.what):
            self._state = optax.tree_utils.tree_set(self._state, **{case.what: changed(kept)})

    def step(self, grads: dict[str, Array]) -> None:
        with np.errstate(over="ignore"):  # 1e20 is infinite in float16
            given = {name: jnp.asarray(grad, self._dtype) for name, grad in grads.items()}
        self._params, self._state = self._step(self._params, self._state, given)

    def values(self) -> Values:
        made = {("p", name): _wide(p) for name, p in self._params.items()}
        for what in STATES:
            for _, kept in optax.tree_utils.tree_get_all_with_path(self._state, what):
                made |= {(what, name): _wide(x) for name, x in (kept or {}).items() if x is not None}
        return made


class Torch:
    """The torch optimizer, on the path that `options` choose."""

    def __init__(self, recipe: Recipe, dtype: str = "float32", rounding: Any = "nearest", **options: Any) -> None:
        self._make = lambda params: Adafactor(params, recipe=recipe, rounding=rounding, **options)
        self._dtype = getattr(torch, dtype)
        self.begin()

    def begin(self) -> None:
        self._params = {name: torch.nn.Parameter(self._tensor(p)) for name, p in gradients(0).items()}
        self._optimizer = self._make(self._params.items())
        self.step(gradients(1))

    def put(self, case: Case) -> None:
        for p in self._params.values():
            x = p.detach() if case.what == "p" else self._optimizer.state[p].get(case.what)
            if x is not None:
                with torch.no_grad():
                    (p if case.what == "p" else x).copy_(torch.tensor(case.put_into(x.double().numpy())))

    def step(self, grads: dict[str, Array]) -> None:
        for name, p in self._params.items():
            p.grad = self._tensor(grads[name])
        self._optimizer.step()

    def values(self) -> Values:
        made = {("p", name): p.detach().double().numpy().copy() for name, p in self._params.items()}
        for name, p in self._params.items():
            kept = self._optimizer.state[p]
            made |= {(what, name): kept[what].double().numpy().copy() for what in STATES if what in kept}
        return made

    def _tensor(self, x: Array) -> torch.Tensor:
        return torch.tensor(np.asarray(x)).to(self._dtype)


def _wide(x: jax.Array) -> Array:
    return np.asarray(x.astype(jnp.float32 if x.dtype != jnp.float64 else x.dtype)).astype(np.float64)
