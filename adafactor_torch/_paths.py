"""The ways to compute a step, and which one takes a parameter. All of them do what `_phases.update` does.

| path | where | asked for with |
|---|---|---|
| plain | everywhere | `foreach=False` |
| eager: row blocks of large tensors, stacks of small ones | everywhere; the default but on CUDA | `foreach=True` |
| compiled C++ | CPU | `fused=True` |
| Triton | CUDA, where it is the default | `fused=True` |
"""

from torch import Tensor

from . import _eager, _phases
from ._compiled import Compiled
from ._groups import Group
from ._phases import Amp, Work
from ._squares import Squares


class Paths:
    """The paths of one optimizer, and what they remember between steps."""

    def __init__(self) -> None:
        self._squares = Squares()
        self._compiled = Compiled(self._squares)

    def step(self, group: Group, works: list[Work], amp: Amp) -> None:
        """One step of parameters of one group, in place."""
        for on_cuda in (False, True):
            some = [work for work in works if work.p.is_cuda == on_cuda]
            if some:
                self._step(group, some, amp, fused=group["fused"] or (on_cuda and group["fused"] is None))

    def _step(self, group: Group, works: list[Work], amp: Amp, *, fused: bool) -> None:
        if fused and not group["foreach"]:
            if works[0].p.is_cuda:
                from . import _fused  # brings Triton, which only a machine with a GPU need have

                _fused.step(works, amp)
                return
            if self._compiled.step(works, amp):
                return
        if group["foreach"] is False:
            for work in works:
                _phases.update(work, amp)
        else:
            _eager.step(works, amp, self._squares)

    def forget(self, p: Tensor) -> None:
        """Forget what is remembered of a parameter."""
        self._compiled.forget(p)
