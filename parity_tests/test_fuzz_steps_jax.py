"""Whatever parameters and gradients a JAX step is given: it is the oracle's, compiled or not, or refused in form."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import sparse

from adafactor_jax import adafactor
from adafactor_spec import Recipe, dtypes

from .hostile import Failing, cases, refusal_of
from .hostile_steps import VALUES, Judge
from .random_recipes import any_recipe
from .torch_runs import Array, Shape

# Few, as every operation is compiled for every shape.
SHAPES: tuple[Shape, ...] = ((), (3,), (2, 3), (0, 3), (1, 4), (2, 3, 4), (3, 1, 2, 2), (2, 1, 2, 1, 3))
SMALLEST = float(np.finfo(np.float32).tiny)
# How an array can be given.
ARRAYS: dict[str, Callable[[Array], Any]] = {
    "jax": jnp.asarray,
    "NumPy": np.asarray,
    "Fortran": lambda x: np.array(x, order="F"),
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "strided": lambda x: np.stack([x, x], axis=-1)[..., 1],
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}
# What is no gradient of a parameter, and has to be refused.
WRONG: dict[str, Callable[[Array], Any]] = {
    "longer": lambda x: jnp.zeros((*x.shape, 2)),
    "complex": lambda x: jnp.asarray(x + 1j),
    "text": lambda x: "gradient",
    "failing": lambda x: Failing(),
    "sparse": lambda x: sparse.BCOO.fromdense(jnp.asarray(x)),
    "an object array": lambda x: np.full(x.shape, None),
}


class Leaf:
    """One parameter and its gradients."""

    def __init__(
        self, shape: Shape, dtype: str, how: str, value: str, grads: list[tuple[str, str, str]], seed: int
    ) -> None:
        self.shape, self.dtype, self.how, self.value, self.grads, self.seed = shape, dtype, how, value, grads, seed

    def __repr__(self) -> str:
        return f"Leaf{self.shape, self.dtype, self.how, self.value, self.grads, self.seed}"

    def array(self, value: str, dtype: str, seed: int) -> Array:
        rng = np.random.default_rng(seed)
        x = np.asarray(VALUES[value](np.asarray(rng.standard_normal(self.shape)), rng))
        # XLA takes a number below the smallest normal one for 0. So does whoever compares with it.
        x = np.where(np.abs(x) < (0.0 if dtype == "float64" else SMALLEST), np.copysign(0.0, x), x)
        with np.errstate(all="ignore"):
            return x.astype(jnp.dtype(dtype))

    @property
    def parameter(self) -> Any:
        return ARRAYS[self.how](self.array(self.value, self.dtype, self.seed))

    def gradient(self, t: int) -> Any:
        """None where there is no gradient at this step."""
        value, how, dtype = self.grads[t % len(self.grads)]
        x = self.array(value, self.dtype if dtype == "own" else dtype, self.seed + t + 1)
        return None if how == "none" else {**ARRAYS, **WRONG}[how](x)


@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    usual = st.sampled_from(list(ARRAYS))
    one = st.tuples(
        st.sampled_from(list(VALUES)),
        st.one_of(usual, usual, usual, st.sampled_from([*ARRAYS, *WRONG, "none"])),
        st.sampled_from(["own", "own", "float32"]),
    )
    return Leaf(
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(dtypes.NAMES)),
        draw(usual),
        draw(st.sampled_from(["ordinary", "ordinary", *VALUES])),
        draw(st.lists(one, min_size=1, max_size=2)),
        draw(st.integers(0, 2**31)),
    )


ENTRIES = ("v_row", "v_col", "v", "v_max", "m", "compensation")


def states_of(state: Any, names: list[str]) -> list[dict[str, Any]]:
    """The entries of every parameter's state, with its step."""
    trees = {entry: optax.tree.get(state, entry) for entry in ENTRIES if optax.tree.get_all_with_path(state, entry)}
    count = np.asarray(state.count, np.float64)
    return [
        {"step": count, **{entry: tree[name] for entry, tree in trees.items() if tree[name] is not None}}
        for name in names
    ]


def there(tree: dict[str, Any], updates: dict[str, Any]) -> dict[str, Any]:
    """Those of the tree that are updated."""
    return {name: value for name, value in tree.items() if updates[name] is not None}


def wide(x: Any) -> Array:
    return np.asarray(jnp.asarray(x)).astype(np.float64)


@cases(12, 2500)
@given(
    any_recipe(),
    st.lists(leaves(), min_size=1, max_size=2),
    st.sampled_from(["nearest", "nearest", "stochastic", "kahan"]),
    st.sampled_from([0, 1, 2**32 - 1]),
    st.sampled_from([False] * 15 + [True]),
)
def test_steps_in_jax(recipe: Recipe, drawn: list[Leaf], rounding: Any, seed: int, compiled: bool) -> None:
    with jax.enable_x64(any(leaf.dtype == "float64" for leaf in drawn)):
        run(recipe, {f"{i}": leaf for i, leaf in enumerate(drawn)}, rounding, seed, compiled)


def run(recipe: Recipe, drawn: dict[str, Leaf], rounding: Any, seed: int, compiled: bool) -> None:
    tx = adafactor(recipe=recipe, rounding=rounding, seed=seed)
    update = jax.jit(tx.update) if compiled else tx.update
    params: Any = {name: leaf.parameter for name, leaf in drawn.items()}
    state, names = tx.init(params), list(params)
    judges = [
        Judge(recipe, leaf.dtype, name, i, rounding, seed, by_addition=True)
        for i, (name, leaf) in enumerate(drawn.items())
    ]
    for t in range(2):
        wrong = any(leaf.grads[t % len(leaf.grads)][1] in WRONG for leaf in drawn.values())
        grads = {name: leaf.gradient(t) for name, leaf in drawn.items()}
        if wrong:
            found, _ = refusal_of(functools.partial(tx.update, grads, state, params), ["gradient"])
            assert found is None, "taken, although a gradient is none"
            return
        before = states_of(state, names)
        updates, state = update(grads, state, params)
        old, params = params, {**params, **optax.apply_updates(*(there(tree, updates) for tree in (params, updates)))}
        for name, judge, was, now in zip(names, judges, before, states_of(state, names), strict=True):
            assert jnp.result_type(params[name]) == drawn[name].dtype
            if grads[name] is None:
                assert wide(params[name]).tobytes() == wide(old[name]).tobytes()
                continue
            stored = {key: str(jnp.result_type(x)) for key, x in now.items()}
            given = [{key: wide(x) for key, x in which.items()} for which in (was, now)]
            judge.check(wide(old[name]), wide(grads[name]), given[0], wide(params[name]), given[1], stored)
