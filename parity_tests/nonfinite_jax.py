"""The optax transformation's way through the runs of `nonfinite`, on one device or on a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_jax import adafactor
from adafactor_spec import Recipe

from .nonfinite import SHAPES, STATES, Array, Case, Values, gradients


class Jax:
    """The optax transformation, compiled.

    Args:
        recipe, dtype, rounding: of the optimizer and its parameters.
        placed: puts a parameter or gradient on the devices where the step is to find it.
    """

    names = tuple(SHAPES)

    def __init__(
        self,
        recipe: Recipe,
        dtype: str = "float32",
        rounding: Any = "nearest",
        placed: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> None:
        tx = adafactor(recipe=recipe, rounding=rounding)

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step)
        self._dtype, self._placed = jnp.dtype(dtype), placed
        self._params = self._arrays(gradients(0))
        self._state = tx.init(self._params)
        if all(len(p.sharding.device_set) == 1 for p in self._params.values()):
            self._params, self._state = _committed(self._params), _committed(self._state)
        self.step(gradients(1))
        self._first = self._params, self._state

    def begin(self) -> None:
        self._params, self._state = self._first

    def put(self, case: Case) -> None:
        def changed(tree: Any) -> Any:
            with np.errstate(over="ignore"):  # 1e20 is infinite in float16
                made = jax.tree.map(lambda x: jnp.asarray(case.put_into(_wide(x)), x.dtype), tree)
            return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), made, tree)

        if case.what == "p":
            self._params = changed(self._params)
        for _, kept in optax.tree_utils.tree_get_all_with_path(self._state, case.what):
            self._state = optax.tree_utils.tree_set(self._state, **{case.what: changed(kept)})

    def step(self, grads: dict[str, Array]) -> None:
        self._params, self._state = self._step(self._params, self._state, self._arrays(grads))

    def values(self) -> Values:
        made = {("p", name): _wide(p) for name, p in self._params.items()}
        for what in STATES:
            for _, kept in optax.tree_utils.tree_get_all_with_path(self._state, what):
                made |= {(what, name): _wide(x) for name, x in (kept or {}).items() if x is not None}
        return made

    def _arrays(self, values: dict[str, Array]) -> dict[str, jax.Array]:
        with np.errstate(over="ignore"):  # 1e20 is infinite in float16
            return {name: self._placed(jnp.asarray(x, self._dtype)) for name, x in values.items()}


def _committed(tree: Any) -> Any:
    """The arrays where they lie, said to have to lie there: what `put` writes does, too, and compiles nothing again."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


def _wide(x: jax.Array) -> Array:
    return np.asarray(x.astype(jnp.float32 if x.dtype != jnp.float64 else x.dtype)).astype(np.float64)
