"""The optimizers of JAX that are compared: a table. One that cannot be built or stepped is reported, not fatal."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from adafactor_jax import adafactor

Build = Callable[[bool], optax.GradientTransformation]

BETA1 = 0.9
BASELINE = "optax-adamw"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer. `build` makes it, with momentum or without.

    `full_states` is how many numbers its state has per parameter beside a momentum: what the memory is asked for.
    """

    label: str
    build: Build
    momentum: tuple[bool, ...] = (False, True)
    full_states: int = 0
    ours: bool = False

    def why_not(self, momentum: bool, tensors: int) -> str | None:
        """The reason for which this one has no part in a case."""
        return None if momentum in self.momentum else "has no momentum"


def _relative_step(count: jax.typing.ArrayLike) -> jax.Array:
    """The paper's min(1e-2, t^-1/2), which optax has no name for; `count` is t - 1."""
    return jnp.minimum(1e-2, (jnp.asarray(count, jnp.float32) + 1) ** -0.5)


def _beta1(momentum: bool) -> float | None:
    return BETA1 if momentum else None


ENTRIES: dict[str, Entry] = {
    "optax-sgd": Entry(label="optax SGD", build=lambda momentum: optax.sgd(1e-3, momentum=_beta1(momentum))),
    # Adam has no form without a first moment, so it is the same optimizer in both cases.
    BASELINE: Entry(label="optax AdamW", build=lambda _: optax.adamw(1e-3, b1=BETA1), full_states=2),
    "optax-adafactor": Entry(
        label="optax Adafactor",
        build=lambda momentum: optax.adafactor(_relative_step, momentum=_beta1(momentum)),
        full_states=1,  # of parameters that it does not factor: those with a side of less than 128
    ),
    "ours": Entry(label="ours", build=lambda momentum: adafactor(beta1=_beta1(momentum)), ours=True),
}
