"""Arrays that are computed anew for every reader, so that none of them is ever written to memory.

A step reads g four times: for its rows, its columns, RMS(u) and the new parameter. Where two readers share a value of
g's size, g^2 or u say, or only what broadcasts a factor to that size, XLA computes it once and writes it out, which
costs more than both readings and a gradient's worth of memory. Here every reader gets an expression of its own, which
begins at barriers of its own: what begins at different barriers is not merged, and is fused into its one reader.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Read = Callable[[float], Array]


class Recomputed:
    """An array as what makes it, for one trace of one step.

    Attributes:
        shape: the array's.
        read: gives one reader the array times a power of two, which is multiplied into the smallest of its factors.
        source: the array itself and the dtype it is read in, where it is one that is in memory anyway.
    """

    def __init__(self, read: Read, shape: tuple[int, ...], source: tuple[Array, str] | None = None) -> None:
        self.read, self.shape, self.source = read, shape, source

    @classmethod
    def of(cls, array: Array, dtype: str | None = None) -> "Recomputed":
        """The elements of a parameter, a gradient or a part of the state, as `dtype`."""
        rest, wide = array, dtype or array.dtype.name

        def read(scale: float) -> Array:
            # A barrier's argument is the result of the one before: XLA merges barriers that have equal arguments. It
            # would also broadcast a constant once for all readers, so that the scale comes out of the barrier, too.
            nonlocal rest
            value, rest, times = jax.lax.optimization_barrier((rest, rest, jnp.asarray(scale, wide)))
            return value.astype(wide) if scale == 1 else value.astype(wide) * times

        return cls(read, array.shape, (array, wide))

    @property
    def value(self) -> Array:
        """The array, for one reader."""
        return self.read(1.0)

    def through(self, linear: Callable[[Array], Array]) -> "Recomputed":
        """`linear` of the array: a function of each element that commutes with a factor; called for every reader."""
        return Recomputed(lambda scale: linear(self.read(scale)), self.shape)

    def reshape(self, shape: tuple[int, ...]) -> "Recomputed":
        """The same elements in another shape."""
        if self.source is None:
            return Recomputed(lambda scale: self.read(scale).reshape(shape), shape)
        array, dtype = self.source
        return Recomputed.of(array.reshape(shape), dtype)


def recomputed(x: Array | Recomputed) -> Recomputed:
    """x, an array as one that is in memory."""
    return x if isinstance(x, Recomputed) else Recomputed.of(x)
