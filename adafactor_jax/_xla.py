"""Operations that XLA computes differently from NumPy, and what stands in for them."""

import jax
import jax.numpy as jnp

Array = jax.Array


def larger(x: Array, y: jax.typing.ArrayLike) -> Array:
    """max(x, y), NaN where one of them is, as NumPy's.

    XLA's own maximum is not: on a CPU, where it is computed together with a sum, it loses the NaN.
    """
    return jnp.where((x < y) | (y != y), y, x)
