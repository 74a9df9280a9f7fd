"""Makes an optax transformation of a piece: it counts its own steps and passes the step on to the piece."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax

from ._leaves import GradientTransformation, Tree, leaves_of, need_params, own_promotion, tree_of, updates_of
from ._recomputed import Recomputed
from ._states import States
from ._step import Piece, Step

Arguments = ParamSpec("Arguments")


class CountedState(NamedTuple):
    """Finished steps, and the state of what is inside."""

    count: jax.Array  # type: ignore[assignment]  # int32, shape (); the name that optax's tree utilities look for
    inner: Any


def standalone(build: Callable[Arguments, Piece]) -> Callable[Arguments, GradientTransformation]:
    """The public form of a piece: it keeps a `count` of its own and its updates have the gradient's dtype."""

    @functools.wraps(build)
    def public(*args: Arguments.args, **kwargs: Arguments.kwargs) -> GradientTransformation:
        return _counted(build(*args, **kwargs))

    # What `wraps` copies is what `build` says of itself: a private module, and that it returns a Piece.
    public.__module__ = __package__
    public.__annotations__ = {**build.__annotations__, "return": GradientTransformation}
    public.__signature__ = inspect.signature(build).replace(return_annotation=GradientTransformation)  # type: ignore[attr-defined]
    return public


def next_count(count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(The number of finished steps after this one, t): t is a whole number, as in torch, but int64 where that is
    enabled, because 1 / t of an int32 is a float32."""
    count = optax.safe_increment(count)
    return count, count.astype(jnp.result_type(int))


def _counted(piece: Piece) -> GradientTransformation:
    def init(params: Tree) -> CountedState:
        return CountedState(jnp.zeros([], jnp.int32), piece.init(params))

    def update(updates: Tree, state: CountedState, params: Tree | None = None, **extra: Any) -> Any:
        leaves, values, structure = leaves_of(need_params(params))
        grads = updates_of(updates, leaves, structure)
        states.check(state, params)
        count, t = next_count(state.count)
        read = [Recomputed.of(jnp.asarray(p), leaf.compute) for leaf, p in zip(leaves, values, strict=True)]
        given = [
            None if g is None else Recomputed.of(jnp.asarray(g), leaf.compute)
            for leaf, g in zip(leaves, grads, strict=True)
        ]
        made, inner = piece.update(given, state.inner, params, step=Step(t, leaves, read))
        out = [None if u is None else u.value.astype(jnp.result_type(g)) for u, g in zip(made, grads, strict=True)]
        return tree_of(structure, out), CountedState(count, inner)

    states = States(init)
    return GradientTransformation(init, own_promotion(update))
