"""A chain of pieces as one optimizer: it counts, rounds the weights, and tells what it did."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adafactor_spec.factoring import Rule

from ._leaves import GradientTransformation, Leaf, Tree, columns, leaves_of, need_params, tree_of, updates_of
from ._recomputed import Recomputed
from ._rounding import Rounding
from ._shardings import zeros_like
from ._standalone import next_count
from ._step import Piece, Step, Telemetry


class AdafactorState(NamedTuple):
    """Finished steps, the states of the pieces, and what was asked for beside them."""

    count: jax.Array  # type: ignore[assignment]  # int32, shape (); the name that optax's tree utilities look for
    inner: Any
    compensation: Tree  # what the last rounding of each 16-bit parameter cut off, in bfloat16 (rounding="kahan")
    telemetry: Telemetry | None


def optimizer(chain: Piece, rule: Rule, rounding: Rounding, telemetry: bool, scales: bool) -> GradientTransformation:
    """The transformation of a chain.

    Args:
        chain: of pieces, from the gradient to what `optax.apply_updates` is to add.
        rule: how parameters are factored.
        rounding: how a 16-bit parameter is rounded.
        telemetry: whether the state has `Telemetry`.
        scales: whether a piece of the chain asks for RMS(p).
    """

    def untold(leaf: Leaf, p: Any) -> jax.Array:
        batch = leaf.plan(rule).batch
        kept = tuple(n if axis in batch else 1 for axis, n in enumerate(leaf.shape))
        zeros = jnp.asarray(zeros_like(p, kept, "float32"))
        return jnp.full_like(jnp.reshape(zeros, tuple(leaf.shape[axis] for axis in batch)), jnp.nan)

    def init(params: Tree) -> AdafactorState:
        leaves, values, structure = leaves_of(params)
        rows = list(zip(leaves, values, strict=True))
        kept = [zeros_like(p, leaf.shape if rounding.compensates(leaf) else None, "bfloat16") for leaf, p in rows]
        names = Telemetry._fields if telemetry else ()
        told = {name: tree_of(structure, [untold(leaf, p) for leaf, p in rows]) for name in names}
        return AdafactorState(
            count=jnp.zeros([], jnp.int32),
            inner=chain.init(params),
            compensation=tree_of(structure, kept),
            telemetry=Telemetry(**told) if telemetry else None,
        )

    def update(updates: Tree, state: AdafactorState, params: Tree | None = None, **extra: Any) -> Any:
        leaves, values, structure = leaves_of(need_params(params))
        grads = updates_of(updates, leaves, structure)
        kept = structure.flatten_up_to(state.compensation)
        count, t = next_count(state.count)
        given = [
            None if g is None else Recomputed.of(jnp.asarray(g), leaf.compute)
            for leaf, g in zip(leaves, grads, strict=True)
        ]
        before = [_parameter(*row) for row in zip(leaves, values, kept, strict=True)]
        step = Step(t, leaves, before, params, scaled=[rule] if scales or telemetry else [])
        made, inner = chain.update(given, state.inner, params, step=step)

        def one(leaf: Leaf, u: Recomputed | None, g: Any, p: Any, c: Any) -> tuple[Any, Any]:
            if u is None:
                return None, c
            return rounding.update(u.value, p, c, jnp.result_type(g), leaf, t)

        out, kept = columns(2, one, leaves, made, grads, values, kept)
        told = None if state.telemetry is None else _told(step, rule, state.telemetry, structure)
        return tree_of(structure, out), AdafactorState(count, inner, tree_of(structure, kept), told)

    return GradientTransformation(init, update)


def _parameter(leaf: Leaf, p: Any, kept: jax.Array | None) -> Recomputed:
    """A parameter in the computing dtype, with what its last rounding cut off."""
    value = Recomputed.of(jnp.asarray(p), leaf.compute)
    if kept is None:
        return value
    cut = Recomputed.of(kept, leaf.compute)
    return Recomputed(lambda scale: value.read(scale) + cut.read(scale), value.shape)


def _told(step: Step, rule: Rule, before: Telemetry, structure: Any) -> Telemetry:
    """The telemetry of this step; that of the one before where a leaf had no gradient."""
    step.telemetry["parameter_rms"] = step.parameter_rms(rule)

    def tree(name: str) -> Tree:
        def one(old: jax.Array, new: jax.Array, there: Any) -> jax.Array:
            return (
                old
                if there is None
                else jnp.broadcast_to(jnp.ravel(new), old.size).reshape(old.shape).astype(old.dtype)
            )

        rows = zip(
            structure.flatten_up_to(getattr(before, name)),
            step.telemetry[name],
            step.telemetry["update_rms"],
            strict=True,
        )
        return tree_of(structure, [one(*row) for row in rows])

    return Telemetry(**{name: tree(name) for name in Telemetry._fields})
