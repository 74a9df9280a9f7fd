"""What the pieces of one step share: its number, the parameters, means over all devices, and the telemetry."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adafactor_spec.errors import refusal
from adafactor_spec.factoring import Rule

from . import _kernels as kernels
from ._leaves import Leaf, Tree, tree_of, updates_of
from ._recomputed import Recomputed


class Telemetry(NamedTuple):
    """What the last step did: trees like the parameters, float32, 0 before the first step.

    A leaf has one value per index of its parameter's batch axes; without any it has no axes.
    """

    step_size: Tree  # alpha, what the clipped direction is multiplied by
    update_rms: Tree  # RMS(u) before clipping
    clip_factor: Tree  # max(1, RMS(u) / d), what u is divided by
    parameter_rms: Tree  # RMS(p) before the step


class Part(NamedTuple):
    """A mean over `axes` of a leaf, or `root` of one; of the part that a device holds, where it is not the whole."""

    leaf: Leaf
    axes: tuple[int, ...]
    value: jax.Array
    root: bool = False


Means = Callable[[list[Part]], list[jax.Array]]
Updates = Sequence[Recomputed | None]  # one for each leaf, in the computing dtype; None where the gradient is missing


def local(parts: list[Part]) -> list[jax.Array]:
    """The means of leaves that are whole, or that XLA splits over devices by itself."""
    return [part.value for part in parts]


class Step:
    """One step while it is traced.

    Attributes:
        t: its number, 1 at the first update: a whole number.
        leaves: what is static about each parameter.
        params: the parameters in the computing dtype, in the order of the leaves.
        telemetry: what pieces tell: a name of `Telemetry` to a value for each leaf.
    """

    def __init__(
        self,
        t: jax.Array,
        leaves: list[Leaf],
        params: list[Recomputed],
        means: Means = local,
        scaled: Sequence[Rule] = (),
    ) -> None:
        self.t, self.leaves, self.params = t, leaves, params
        self.telemetry: dict[str, list[Any]] = {}
        self.split = means is not local
        self._means, self._scaled = means, scaled
        self._parameter_rms: dict[Rule, list[jax.Array]] = {}

    def means(self, parts: list[list[Part]]) -> list[list[jax.Array]]:
        """The means of whole leaves, some for each leaf. All of one call cross devices together, and the first call
        takes along RMS(p) for the rules that `scaled` announced."""
        early = [rule for rule in self._scaled if rule not in self._parameter_rms]
        rows = [*parts, *(row for rule in early for row in self._rms_parts(self.params, rule))]
        found = iter(self._means([part for row in rows for part in row]))
        turned = [[next(found) for _ in row] for row in rows]
        for index, rule in enumerate(early, 1):
            own = turned[index * len(self.leaves) :][: len(self.leaves)]
            self._parameter_rms[rule] = [x for (x,) in own]
        return turned[: len(self.leaves)]

    def rms(self, values: Updates, rule: Rule) -> list[Any]:
        """RMS of each leaf's value, one per index of the batch axes of its plan; None of None."""
        return [row[0] if row else None for row in self.means(self._rms_parts(values, rule))]

    def parameter_rms(self, rule: Rule) -> list[jax.Array]:
        """RMS(p) of each leaf, read once for all pieces."""
        if rule not in self._parameter_rms:
            self._parameter_rms[rule] = self.rms(self.params, rule)
        return self._parameter_rms[rule]

    def _rms_parts(self, values: Updates, rule: Rule) -> list[list[Part]]:
        rows = [(leaf, x, leaf.plan(rule).rms_axes) for leaf, x in zip(self.leaves, values, strict=True)]
        return [[] if x is None else [Part(leaf, axes, kernels.rms(x, axes), root=True)] for leaf, x, axes in rows]


class Piece(optax.GradientTransformationExtraArgs):
    """A piece of a chain: `update(updates, state, params, *, step)`, where updates are `Updates`."""


def as_piece(tx: optax.GradientTransformation) -> Piece:
    """Any transformation as a piece, which sees and gives arrays."""
    if isinstance(tx, Piece):
        return tx
    if not hasattr(type(tx), "init") or not hasattr(type(tx), "update"):
        raise refusal("numerator", "an optax.GradientTransformation", tx)
    outer = optax.with_extra_args_support(tx)

    def update(updates: Updates, state: Any, params: Tree, *, step: Step) -> Any:
        structure = jax.tree.structure(params)
        given = tree_of(structure, [None if u is None else u.value for u in updates])
        made, state = outer.update(given, state, params)
        values = updates_of(made, step.leaves, structure)
        return [
            None if x is None else Recomputed.of(jnp.asarray(x, leaf.compute))
            for leaf, x in zip(step.leaves, values, strict=True)
        ], state

    return Piece(outer.init, update)
