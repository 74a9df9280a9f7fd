"""Steps, under `jax.shard_map`, the parts of the parameters that each device holds, with one all-reduce per phase.

XLA alone makes an all-reduce for every mean, one or two for each parameter. Here the phases run under `jax.shard_map`,
and the sums of one phase, of all parameters, are put into one flat array, which is reduced along each mesh axis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adafactor_spec.errors import check_choice, refusal
from adafactor_spec.factoring import Rule

from ._leaves import Leaf, Tree, structure_of, tree_of
from ._shardings import state_shardings
from ._step import Part, Piece


@dataclass(frozen=True)
class Split:
    """A mesh and the shardings of the parameters on it.

    Attributes:
        mesh: the mesh.
        specs: a tree of PartitionSpecs, a prefix of one, or None on an Explicit mesh, where the parameters have them.
    """

    mesh: Mesh
    specs: Tree = None

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise refusal("mesh", "a jax.sharding.Mesh, or None", self.mesh, "Make one with jax.make_mesh.")

    def specs_of(self, params: Tree, leaves: list[Leaf], rule: Rule) -> list[PartitionSpec]:
        """The spec of every leaf, checked, with an entry for every axis."""
        if self.specs is None:
            specs = [self._typed(p) for p in jax.tree.leaves(params)]
        else:
            spread = jax.tree.map(lambda spec, below: jax.tree.map(lambda _: spec, below), self.specs, params)
            specs = structure_of(params).flatten_up_to(spread)
        return [self._checked(leaf, spec, rule) for leaf, spec in zip(leaves, specs, strict=True)]

    def _typed(self, p: Any) -> PartitionSpec:
        sharding = getattr(jax.typeof(p), "sharding", None)
        if not isinstance(sharding, NamedSharding) or not sharding.mesh.are_all_axes_explicit:
            remedy = (
                "Only on an Explicit mesh do traced parameters say where they lie: give a tree like them, or a prefix."
            )
            raise refusal("specs", "given", None, remedy)
        return sharding.spec

    def _checked(self, leaf: Leaf, spec: Any, rule: Rule) -> PartitionSpec:
        what = f"specs of parameter {leaf.name!r}"
        if not isinstance(spec, PartitionSpec) or len(spec) > len(leaf.shape):
            raise refusal(what, f"a PartitionSpec of at most {len(leaf.shape)} entries", spec)
        spec = PartitionSpec(*spec, *(None,) * (len(leaf.shape) - len(spec)))
        for axis, size in enumerate(leaf.shape):
            for name in _names(spec, axis):
                check_choice(what, name, self.mesh.axis_names)
            parts = math.prod(self.mesh.shape[name] for name in _names(spec, axis))
            if size % parts:
                raise refusal(what, f"such that its {parts} parts divide axis {axis} of {leaf.shape}", spec)
        if leaf.plan(rule).view is not None and any(_names(spec, axis) for axis in range(len(spec))):
            remedy = "Leave mesh out, and XLA moves what the reshape needs; or factor it with factoring.explicit."
            raise refusal(what, "P(), because its factoring rule reshapes it", spec, remedy)
        return spec

    def over(
        self,
        phases: Callable[..., Any],
        chain: Piece,
        params: Tree,
        specs: list[PartitionSpec],
        recorded_at: dict[int, PartitionSpec],
    ) -> Callable[..., Any]:
        """`phases(t, grads, inner, values, kept)` -> (changes, inner, telemetry) on the parts of every device.

        All but t and inner go by the position of a leaf. `recorded_at` has the spec of each leaf's telemetry.
        """
        typed = [
            jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p), sharding=NamedSharding(self.mesh, spec))
            for p, spec in zip(jax.tree.leaves(params), specs, strict=True)
        ]
        shardings = state_shardings(chain, tree_of(structure_of(params), typed))
        inner = jax.tree.map(lambda sharding: sharding.spec, shardings)

        def of(values: dict[int, Any]) -> dict[int, PartitionSpec]:
            return {position: specs[position] for position in values}

        def run(t: jax.Array, grads: Any, state: Any, values: Any, kept: Any) -> Any:
            def values_of(*args: Any) -> Any:
                made, inner, recorded = phases(*args)
                return {position: u.value for position, u in made.items()}, inner, recorded

            return jax.shard_map(
                values_of,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), of(grads), inner, of(values), of(kept)),
                out_specs=(of(grads), inner, {i: recorded_at[i] for i in grads if i in recorded_at}),
                check_vma=False,
            )(t, grads, state, values, kept)

        return run

    def means(self, specs: list[PartitionSpec]) -> Callable[[list[Part]], list[jax.Array]]:
        """The means of whole leaves from those of their parts, which are all of one size: one flat sum for each axis of
        the mesh."""

        def across(parts: list[Part]) -> list[jax.Array]:
            values = [part.value * part.value if part.root else part.value for part in parts]
            axes = [{name for axis in part.axes for name in _names(specs[part.leaf.position], axis)} for part in parts]
            for name in self.mesh.axis_names:
                chosen = [index for index, names in enumerate(axes) if name in names]
                if chosen:
                    for index, value in zip(chosen, _mean_over(name, [values[i] for i in chosen]), strict=True):
                        values[index] = value
            return [jnp.sqrt(x) if part.root else x for part, x in zip(parts, values, strict=True)]

        return across


def _mean_over(name: str, values: list[jax.Array]) -> list[jax.Array]:
    """Means along a mesh axis, by one all-reduce."""
    dtype = jnp.result_type(*values)
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in values])
    flat = jax.lax.psum(flat / jax.lax.axis_size(name), name)  # divided before it is added
    ends = [sum(x.size for x in values[: index + 1]) for index in range(len(values))]
    pieces = jnp.split(flat, ends[:-1])
    return [piece.reshape(x.shape).astype(x.dtype) for piece, x in zip(pieces, values, strict=True)]


def _names(spec: PartitionSpec, axis: int) -> tuple[str, ...]:
    """The mesh axes over which an axis of a parameter is split."""
    names = spec[axis]
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
