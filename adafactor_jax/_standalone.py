"""Transformations that count their own steps, made of pieces that are told the step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax

from . import _kernels as kernels
from ._leaves import GradientTransformation, Tree, leaves_of, need_params, tree_of, updates_of

Arguments = ParamSpec("Arguments")


class CountedState(NamedTuple):
    """Finished steps, and the state of what is inside."""

    count: jax.Array  # type: ignore[assignment]  # int32, shape (); the name that optax's tree utilities look for
    inner: Any


def counted(
    piece: GradientTransformation, emit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> GradientTransformation:
    """`piece`, told t = count + 1 and given updates in the computing dtype; `emit(update, gradient, parameter)` is
    what comes out."""

    def init(params: Tree) -> CountedState:
        return CountedState(jnp.zeros([], jnp.int32), piece.init(params))

    def update(updates: Tree, state: CountedState, params: Tree | None = None, **extra: Any) -> Any:
        leaves, values, structure = leaves_of(need_params(params))
        grads = updates_of(updates, leaves, structure)
        wide = [None if g is None else jnp.asarray(g, leaf.compute) for leaf, g in zip(leaves, grads, strict=True)]
        count = optax.safe_increment(state.count)
        # A whole number, as in torch; int64 where that is enabled, because 1 / t of an int32 is a float32.
        t = count.astype(jnp.result_type(int))
        made, inner = piece.update(tree_of(structure, wide), state.inner, params, **{**extra, "t": t})
        made = updates_of(made, leaves, structure)
        out = [
            None if g is None else emit(u, jnp.asarray(g), jnp.asarray(p))
            for u, g, p in zip(made, grads, values, strict=True)
        ]
        return tree_of(structure, out), CountedState(count, inner)

    return GradientTransformation(init, update)


def as_gradient(u: jax.Array, g: jax.Array, p: jax.Array) -> jax.Array:
    """The update in the gradient's dtype."""
    return u.astype(g.dtype)


def rounded_once(u: jax.Array, g: jax.Array, p: jax.Array) -> jax.Array:
    """The update whose application by `optax.apply_updates` rounds once, never narrower than the parameter.

    Where p + u is itself a 16-bit addition, rounding u first would round twice. Then the update is the difference to
    the parameter rounded once, q - p, which the addition turns into q again wherever it is exact, as it is for q
    within a factor 2 of p.
    """
    dtype = jnp.promote_types(g.dtype, p.dtype)
    if jnp.finfo(dtype).bits == 16:
        wide = p.astype(u.dtype)
        u = kernels.round_to(wide + u, p.dtype.name) - wide
    return u.astype(dtype)


def standalone(build: Callable[Arguments, GradientTransformation]) -> Callable[Arguments, GradientTransformation]:
    """The public form of a piece: it keeps a `count` of its own and its updates have the gradient's dtype."""

    @functools.wraps(build)
    def public(*args: Arguments.args, **kwargs: Arguments.kwargs) -> GradientTransformation:
        return counted(build(*args, **kwargs), as_gradient)

    return public
