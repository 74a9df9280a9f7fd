"""Turns the change of a parameter into the update for `optax.apply_updates`, so that the new weight is rounded once."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from adafactor_spec import ROUNDINGS, check_seed
from adafactor_spec.dtypes import is_narrow
from adafactor_spec.errors import check_choice, keep

from . import _kernels as kernels
from ._leaves import Leaf
from ._recomputed import Recomputed


@dataclass(frozen=True)
class Rounding:
    """How the new value of a 16-bit parameter is rounded; what is wider is left to the addition.

    Where p + u is itself a 16-bit addition, or where it is not to round to nearest, the update is the difference to
    the parameter as it will be, q - p, which the addition turns into q again wherever it is exact, as it is for q
    within a factor 2 of p.
    """

    kind: str
    seed: Any = 0

    def __post_init__(self) -> None:
        keep(self, kind=check_choice("rounding", self.kind, ROUNDINGS), seed=check_seed(self.seed))

    def compensates(self, leaf: Leaf) -> bool:
        """Whether what is cut off is kept, in bfloat16, and added to the parameter before the next step."""
        return self.kind == "kahan" and is_narrow(leaf.dtype)

    def update(
        self, u: Recomputed, p: Recomputed, before: Recomputed, kept: Any, gradient: Any, leaf: Leaf, t: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """(What is to be added to p, what is to be kept) for the change u of `before`, which is p with what was `kept`.

        The update is never narrower than the parameter, nor than the gradient's dtype `gradient`.
        """
        dtype = jnp.promote_types(gradient, leaf.dtype)
        if not is_narrow(leaf.dtype) or (self.kind == "nearest" and jnp.finfo(dtype).bits > 16):
            return u.value.astype(dtype), kept
        if self.kind == "stochastic":
            bits = kernels.random_bits(self.seed, t, leaf.position, leaf.shape)
            q = kernels.round_stochastically(before.value + u.value, bits, leaf.dtype)
        else:
            q = kernels.round_to(before.value + u.value, leaf.dtype)
        if kept is not None:  # another reader of u, as everything that is written
            x = before.value + u.value
            kept = (x - kernels.round_to(x, leaf.dtype)).astype(kept.dtype)
        old = p.value
        return jnp.where(q == old, 0.0, q - old).astype(dtype), kept  # an infinite weight that stays is no inf - inf
