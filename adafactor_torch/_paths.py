"""The ways to compute a step, and which one takes a parameter. All of them do what `_phases.update` does.

| path | where | asked for with |
|---|---|---|
| plain | everywhere | `foreach=False` |
| eager: row blocks of large tensors, stacks of small ones | everywhere; the default but on CUDA | `foreach=True` |
| compiled C++ | CPU | `fused=True` |
| Triton | CUDA, where it is the default | `fused=True` |
"""

import functools
import warnings
from types import ModuleType

from . import _eager, _phases
from ._compiled import Compiled
from ._groups import Group, is_fused
from ._phases import Amp, Work
from ._steady import Steady


@functools.cache
def triton_path() -> ModuleType | None:
    """The path of Triton kernels; None, after a warning, where there is no Triton, which comes with torch for CUDA."""
    try:
        from . import _fused
    except ImportError as error:
        warnings.warn(f"Adafactor steps eagerly on CUDA: {error}. fused=False is silent.", stacklevel=2)
        return None
    return _fused


class Paths:
    """The paths of one optimizer, and what they remember between steps."""

    def __init__(self) -> None:
        self.compiled = Compiled()

    def step(self, group: Group, works: list[Work], amp: Amp, steady: Steady | None) -> None:
        """One step of parameters of one group, in place."""
        if steady is not None:
            self._step(group, works, amp, "cpu", steady)
            return
        kinds: dict[str, list[Work]] = {}
        for work in works:
            if work.by_address:
                kinds.setdefault(work.p.device.type, []).append(work)
        _plain([work for work in works if not work.by_address], amp)
        for kind, some in kinds.items():
            self._step(group, some, amp, kind)

    def _step(self, group: Group, works: list[Work], amp: Amp, device: str, steady: Steady | None = None) -> None:
        if is_fused(group, device):
            if device == "cpu" and self.compiled.step(works, amp, steady):
                return
            if device != "cpu" and (kernels := triton_path()) is not None:
                kernels.step(works, amp)
                return
        if group["foreach"] is False:
            _plain(works, amp)
        else:
            _eager.step(works, amp)


def _plain(works: list[Work], amp: Amp) -> None:
    for work in works:
        _phases.update(work, amp)
