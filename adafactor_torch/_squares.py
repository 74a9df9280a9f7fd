"""Sums of p^2, carried from the step that wrote p to the next one, which then need not read p for RMS(p) alone.

A sum holds for as long as p's version counter says that nobody else has written p. A write through `p.data` or from
outside torch does not count there. The step notices one, because it adds the squares of what it overwrites, but after
the fact: it warns, and from then on every step reads p first.
"""

import warnings

from torch import Tensor


class Squares:
    """Whether sums may be carried, and those of an optimizer's parameters."""

    def __init__(self) -> None:
        self.trusted = True
        self._known: dict[Tensor, tuple[int, int, Tensor]] = {}

    def of(self, p: Tensor) -> Tensor | None:
        """What was put for p, or None where somebody else may have written it."""
        version, address, sums = self._known.get(p, (-1, 0, None))
        return sums if self.trusted and version == p._version and address == p.data_ptr() else None

    def put(self, p: Tensor, sums: Tensor) -> None:
        """Keep the sums of p as it is now."""
        self._known[p] = (p._version, p.data_ptr(), sums)

    def surprise(self, p: Tensor) -> None:
        """What a step wrote over was not what it had the sums of: no longer carry any, and say so once."""
        if self.trusted:
            self.trusted = False
            warnings.warn(
                f"A parameter of shape {tuple(p.shape)} was written through .data or from outside torch, which its "
                "version counter does not show, so this step used RMS(p) from before that. From now on every step "
                "reads the parameters anew; write them under torch.no_grad() to keep the faster way.",
                stacklevel=2,
            )
