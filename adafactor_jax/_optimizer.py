"""Makes one optimizer of a chain of pieces: it counts steps, rounds the new weights, and records telemetry."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adafactor_spec.errors import refusal
from adafactor_spec.factoring import Rule

from ._leaves import (
    GradientTransformation,
    Leaf,
    Tree,
    columns,
    leaves_of,
    need_params,
    own_promotion,
    tree_of,
    updates_of,
)
from ._recomputed import Recomputed, recomputed
from ._rounding import Rounding
from ._shardings import zeros_like
from ._split import Split
from ._standalone import next_count
from ._states import NOTHING, States
from ._step import Piece, Step, Telemetry, local

ByLeaf = dict[int, Any]  # values of those leaves that have one, by the position of the leaf


class AdafactorState(NamedTuple):
    """The count of finished steps, the states of the pieces, and, where asked for, compensations and telemetry."""

    count: jax.Array  # type: ignore[assignment]  # int32, shape (); the name that optax's tree utilities look for
    inner: Any
    compensation: Tree  # what the last rounding of each 16-bit parameter cut off, in bfloat16 (rounding="kahan")
    telemetry: Telemetry | None


def optimizer(
    chain: Piece, rule: Rule, rounding: Rounding, telemetry: bool, scales: bool, split: Split | None
) -> GradientTransformation:
    """The transformation of a chain.

    Args:
        chain: the pieces, from the gradient to the change of the parameter.
        rule: how parameters are factored.
        rounding: how a 16-bit parameter is rounded.
        telemetry: whether the state has `Telemetry`.
        scales: whether a piece of the chain uses RMS(p).
        split: the shardings of the parameters, for one all-reduce per phase; None leaves the sums to XLA.
    """

    def zeros_for_telemetry(leaf: Leaf, p: Any) -> jax.Array:
        batch = leaf.plan(rule).batch
        shape = tuple(n if axis in batch else 1 for axis, n in enumerate(leaf.shape))
        zeros = jnp.asarray(zeros_like(p, shape, "float32"))
        return jnp.reshape(zeros, tuple(leaf.shape[axis] for axis in batch))

    def init(params: Tree) -> AdafactorState:
        leaves, values, structure = leaves_of(params)
        rows = list(zip(leaves, values, strict=True))
        kept = [zeros_like(p, leaf.shape if rounding.compensates(leaf) else None, "bfloat16") for leaf, p in rows]
        names = Telemetry._fields if telemetry else ()
        begun = {name: tree_of(structure, [zeros_for_telemetry(leaf, p) for leaf, p in rows]) for name in names}
        return AdafactorState(
            count=jnp.zeros([], jnp.int32),
            inner=chain.init(params),
            compensation=tree_of(structure, kept),
            telemetry=Telemetry(**begun) if telemetry else None,
        )

    def update(updates: Tree, state: AdafactorState, params: Tree | None = None, **extra: Any) -> Any:
        leaves, values, structure = leaves_of(need_params(params))
        grads = updates_of(updates, leaves, structure)
        _check_state(states, state, params, rounding, telemetry)
        kept = structure.flatten_up_to(state.compensation)
        count, t = next_count(state.count)
        specs = None if split is None else split.specs_of(params, leaves, rule)

        def phases(t: jax.Array, grads: ByLeaf, inner: Any, values: ByLeaf, kept: ByLeaf) -> tuple[ByLeaf, Any, Any]:
            means = split.means(specs) if split is not None and specs else local
            before = [_parameter(leaf, values[leaf.position], kept.get(leaf.position)) for leaf in leaves]
            step = Step(t, leaves, before, means, [rule] if scales or telemetry else [])
            given = [Recomputed.of(grads[i], leaf.compute) if i in grads else None for i, leaf in enumerate(leaves)]
            made, inner = chain.update(given, inner, params, step=step)
            recorded = {i: _telemetry_of(step, rule, i) for i in grads} if telemetry else {}
            return {i: u for i, u in enumerate(made) if u is not None}, inner, recorded

        if split is not None and specs:
            recorded_at = {leaf.position: _batch_of(specs[leaf.position], leaf, rule) for leaf in leaves if telemetry}
            phases = split.over(phases, chain, params, specs, recorded_at)
        made, inner, recorded = phases(t, _present(grads), state.inner, _present(values), _present(kept))

        def one(leaf: Leaf, g: Any, p: Any, c: Any) -> tuple[Any, Any]:
            if g is None:
                return None, c
            before, raw = _parameter(leaf, p, c), _parameter(leaf, p, None)
            return rounding.update(recomputed(made[leaf.position]), raw, before, c, jnp.result_type(g), leaf, t)

        out, kept = columns(2, one, leaves, grads, values, kept)
        new_telemetry = None if state.telemetry is None else _as_trees(recorded, state.telemetry, structure)
        return tree_of(structure, out), AdafactorState(count, inner, tree_of(structure, kept), new_telemetry)

    states = States(init)
    return GradientTransformation(init, own_promotion(update))


def _check_state(states: States, state: Any, params: Tree, rounding: Rounding, telemetry: bool) -> None:
    """Refuse a state of other options or parameters, which a step would silently broadcast or leave out."""
    found = states.difference(state, params)
    if found is None:
        return
    if isinstance(state, AdafactorState) and (state.telemetry is not None) != telemetry:
        raise refusal(
            "telemetry", "as it was when the state was made", telemetry, "Or make a new state: tx.init(params)."
        )
    if found.where.startswith(".compensation") and NOTHING in (found.expected, found.found):
        remedy = "Or put zeros like the 16-bit parameters, in bfloat16, or None, in place of state.compensation."
        raise refusal("rounding", "the one that the state was made with", rounding.kind, remedy)
    raise found.refusal()


def _present(values: list[Any]) -> ByLeaf:
    """The values that are not None, by position."""
    return {position: jnp.asarray(value) for position, value in enumerate(values) if value is not None}


def _parameter(leaf: Leaf, p: jax.Array, kept: jax.Array | None) -> Recomputed:
    """A parameter in the computing dtype, with what its last rounding cut off."""
    value = Recomputed.of(jnp.asarray(p), leaf.compute)
    if kept is None:
        return value
    cut = Recomputed.of(kept, leaf.compute)
    return Recomputed(lambda factor: value.read(factor) + cut.read(factor), value.shape)


def _batch_of(spec: PartitionSpec, leaf: Leaf, rule: Rule) -> PartitionSpec:
    """The sharding of a parameter's telemetry: that of the parameter's batch axes."""
    return PartitionSpec(*(spec[axis] for axis in leaf.plan(rule).batch))


def _telemetry_of(step: Step, rule: Rule, position: int) -> Telemetry:
    """The telemetry of one parameter in this step, with its batch axes and no others."""
    p_rms = step.parameter_rms(rule)[position]
    shape = tuple(p_rms.shape[axis] for axis in step.leaves[position].plan(rule).batch)

    def one(name: str) -> jax.Array:
        value = p_rms if name == "parameter_rms" else step.telemetry[name][position]
        return jnp.broadcast_to(value, p_rms.shape).reshape(shape).astype(jnp.float32)

    return Telemetry(*map(one, Telemetry._fields))


def _as_trees(recorded: dict[int, Telemetry], before: Telemetry, structure: Any) -> Telemetry:
    """The telemetry as trees; that of the step before where a leaf had no gradient."""

    def tree(name: str) -> Tree:
        old = structure.flatten_up_to(getattr(before, name))
        return tree_of(structure, [getattr(recorded[i], name) if i in recorded else x for i, x in enumerate(old)])

    return Telemetry(*map(tree, Telemetry._fields))
