"""Sums of p^2, carried from the step that wrote p to the next one, which then need not read p for RMS(p) alone.

A sum holds for as long as p's version counter says that nobody else has written p. A write through `p.data` or from
outside torch does not count there. The step notices one, because it adds the squares of what it overwrites, but after
the fact: it warns, and from then on every step reads p first.
"""

import warnings
from typing import Any

from torch import Tensor


class Squares:
    """The sums of the parameters of one optimizer, in whatever form a path has them."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[int, int, Any]] = {}
        self._trusts = True

    def of(self, p: Tensor) -> Any:
        """What was put for p, or None where somebody else may have written it."""
        version, address, sums = self._known.get(p, (-1, 0, None))
        return sums if self._trusts and version == p._version and address == p.data_ptr() else None

    def put(self, p: Tensor, sums: Any) -> None:
        """Keep the sums of p as it is now."""
        self._known[p] = (p._version, p.data_ptr(), sums)

    def check(self, p: Tensor, sums: Any, found: Any) -> None:
        """Compare the sums that a step has used with those of what it overwrote."""
        if self._trusts and sums != found:
            self._trusts = False
            warnings.warn(
                f"A parameter of shape {tuple(p.shape)} was written through .data or from outside torch, which its "
                "version counter does not show, so this step used RMS(p) from before that. From now on every step "
                "reads the parameters anew; write them under torch.no_grad() to keep the faster way.",
                stacklevel=2,
            )
