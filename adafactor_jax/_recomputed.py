"""Arrays that are computed anew for every reader, so that none of them is ever written to memory.

A step reads g four times: for its rows, its columns, RMS(u) and the new parameter. Where two readers share a value of
g's size, g^2 or u say, or only what broadcasts a factor to that size, XLA computes it once and writes it out, which
costs more than both readings and a gradient's worth of memory. Here every reader gets an expression of its own, which
begins at barriers of its own: what begins at different barriers is not merged, and is fused into its one reader.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Factor = Array | float  # a number, or an array with one for each index of some axes and size 1 along the others
Read = Callable[[Factor], Array]


class Recomputed:
    """An array as what makes it, for one trace of one step.

    Attributes:
        shape: the array's.
        read: gives one reader the array times a factor, which meets the smallest of what makes it, where it can.
        source: the array itself and the dtype it is read in, where it is one that is in memory anyway.
        quotient: where the array is x / d, and d has size 1 along some of its axes.
        floored: where it is x / max(d, a floor), and its squares are in range.
    """

    def __init__(
        self,
        read: Read,
        shape: tuple[int, ...],
        source: tuple[Array, str] | None = None,
        quotient: "Quotient | None" = None,
        floored: "Floored | None" = None,
    ) -> None:
        self.read, self.shape, self.source, self.quotient, self.floored = read, shape, source, quotient, floored

    @classmethod
    def of(cls, array: Array, dtype: str | None = None) -> "Recomputed":
        """The elements of a parameter, a gradient or a part of the state, as `dtype`."""
        rest, wide = array, dtype or array.dtype.name

        def read(factor: Factor) -> Array:
            # A barrier's argument is the result of the one before: XLA merges barriers that have equal arguments. It
            # would also broadcast a constant once for all readers, so that the factor comes out of the barrier, too.
            nonlocal rest
            value, rest, times = jax.lax.optimization_barrier((rest, rest, jnp.asarray(factor, wide)))
            return value.astype(wide) if isinstance(factor, float) and factor == 1 else value.astype(wide) * times

        return cls(read, array.shape, (array, wide))

    @property
    def value(self) -> Array:
        """The array, for one reader."""
        return self.read(1.0)

    def times(self, by: Array) -> "Recomputed":
        """The array times what has one number for all of it, or one for each index of its batch axes."""
        return Recomputed(lambda factor: self.read(factor * by), self.shape)

    def reshape(self, shape: tuple[int, ...]) -> "Recomputed":
        """The same elements in another shape, for factors that are one number for all of them."""
        if self.source is not None:
            array, dtype = self.source
            return Recomputed.of(array.reshape(shape), dtype)
        return Recomputed(lambda factor: self.read(jnp.reshape(factor, ())).reshape(shape), shape)


class Quotient(NamedTuple):
    """x / d, and a number that x can be multiplied by so that a sum of its squares is still in range."""

    x: Recomputed
    d: Recomputed
    lift: Array


class Floored(NamedTuple):
    """What a sum reads of x / max(d, a floor): there XLA's own maximum costs no memory, but may lose a NaN of d.

    `read` is for numbers alone, and `lost` has NaN for each matrix in which there is one, else 1.
    """

    read: Callable[[float], Array]
    lost: Array


def recomputed(x: Array | Recomputed) -> Recomputed:
    """x, an array as one that is in memory."""
    return x if isinstance(x, Recomputed) else Recomputed.of(x)
