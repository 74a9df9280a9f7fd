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
from .._task.task import Amp, Task
from .task_cache import TaskCache

# Takes a step of some parameters, and says of which ones it is done with.
Way = Callable[[], Iterator[list[Task]]]


class Paths:
    """The paths of one optimizer, and what they remember between steps."""

    def __init__(self) -> None:
        self.compiled = Compiled()
        self._tried: set[tuple[type, type, int]] = set()  # classes of a parameter and its gradient, and its config

    def ways(self, group: Group, tasks: list[Task], amp: Amp, cache: TaskCache | None) -> list[Way]:
        """How to take a step of parameters of one group. What can be missing for it is there then.

        Raises:
            ValueError: a parameter or its gradient is of a class that lacks an operator.
        """
        if cache is not None:
            return [self._way(group, tasks, amp, "cpu", cache)]
        kinds: dict[str, list[Task]] = {}
        unknown = [task for task in tasks if not task.by_address]
        for task in tasks:
            if task.by_address:
                kinds.setdefault(task.p.device.type, []).append(task)
        for task in unknown:
            self._try(task, amp)
        ways = [self._way(group, some, amp, kind) for kind, some in kinds.items()]
        return [functools.partial(_plain, unknown, amp), *ways] if unknown else ways

    def _way(self, group: Group, tasks: list[Task], amp: Amp, device: str, cache: TaskCache | None = None) -> Way:
        if is_fused(group, device):
            if device == "cpu" and (table := self.compiled.prepare(tasks, amp, cache)) is not None:
                return functools.partial(self.compiled.step, table, tasks)
            if device != "cpu" and (kernels := triton_path()) is not None:
                return functools.partial(kernels.steps, kernels.prepare(tasks, amp), tasks, amp)
        return functools.partial(_plain if group["foreach"] is False else _eager.step, tasks, amp)

    def _try(self, task: Task, amp: Amp) -> None:
        """Compute the first step of a kind of subclass before any is written: it may lack an operator."""
        kind = type(task.p), type(task.grad), id(task.config)
        if kind in self._tried:
            return
        try:
            _phases.computed(task, amp)
        except Exception as error:
            got = f"{type(task.p).__name__} with a gradient of {type(task.grad).__name__}"
            must = "of a class that has the operators of a step"
            raise refusal(called("", task.p), must, got, f"{type(error).__name__}: {error}") from error
        self._tried.add(kind)


def _plain(tasks: list[Task], amp: Amp) -> Iterator[list[Task]]:
    for task in tasks:
        _phases.update(task, amp)
        yield [task]
