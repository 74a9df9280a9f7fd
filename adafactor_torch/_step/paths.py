"""The ways to compute a step, and which one takes a parameter. All of them do what `reference.update` does.

| path | where | asked for with |
|---|---|---|
| plain | everywhere; the only one for tensors of which only torch's operators know what they are | `foreach=False` |
| eager: row blocks of large tensors, stacks of small ones | everywhere; the default but on CUDA | `foreach=True` |
| compiled C++ | CPU | `fused=True` |
| Triton | CUDA, where it is the default | `fused=True` |
"""

import functools
from collections.abc import Callable, Iterator

from adafactor_spec.errors import refusal

from .._backends import reference as _phases
from .._backends.cpp.compiled import Compiled
from .._backends.eager import backend as _eager
from .._backends.triton.parts import triton_path
from .._param_groups import Group, is_fused
from .._task.memory import called
from .._task.task import Amp, Work
from .task_cache import Steady

# Takes a step of some parameters, and says of which ones it is done with.
Way = Callable[[], Iterator[list[Work]]]


class Paths:
    """The paths of one optimizer, and what they remember between steps."""

    def __init__(self) -> None:
        self.compiled = Compiled()
        self._tried: set[tuple[type, type, int]] = set()  # classes of a parameter and its gradient, and its setting

    def ways(self, group: Group, works: list[Work], amp: Amp, steady: Steady | None) -> list[Way]:
        """How to take a step of parameters of one group. What can be missing for it is there then.

        Raises:
            ValueError: a parameter or its gradient is of a class that lacks an operator.
        """
        if steady is not None:
            return [self._way(group, works, amp, "cpu", steady)]
        kinds: dict[str, list[Work]] = {}
        unknown = [work for work in works if not work.by_address]
        for work in works:
            if work.by_address:
                kinds.setdefault(work.p.device.type, []).append(work)
        for work in unknown:
            self._try(work, amp)
        ways = [self._way(group, some, amp, kind) for kind, some in kinds.items()]
        return [functools.partial(_plain, unknown, amp), *ways] if unknown else ways

    def _way(self, group: Group, works: list[Work], amp: Amp, device: str, steady: Steady | None = None) -> Way:
        if is_fused(group, device):
            if device == "cpu" and (table := self.compiled.ready(works, amp, steady)) is not None:
                return functools.partial(self.compiled.step, table, works)
            if device != "cpu" and (kernels := triton_path()) is not None:
                return functools.partial(kernels.steps, kernels.ready(works, amp), works, amp)
        return functools.partial(_plain if group["foreach"] is False else _eager.step, works, amp)

    def _try(self, work: Work, amp: Amp) -> None:
        """Compute the first step of a kind of subclass before any is written: it may lack an operator."""
        kind = type(work.p), type(work.grad), id(work.setting)
        if kind in self._tried:
            return
        try:
            _phases.computed(work, amp)
        except Exception as error:
            got = f"{type(work.p).__name__} with a gradient of {type(work.grad).__name__}"
            must = "of a class that has the operators of a step"
            raise refusal(called("", work.p), must, got, f"{type(error).__name__}: {error}") from error
        self._tried.add(kind)


def _plain(works: list[Work], amp: Amp) -> Iterator[list[Work]]:
    for work in works:
        _phases.update(work, amp)
        yield [work]
