"""Assigns tasks to backends, and runs the phases of a step with the sums over processes between them.

| what is summed up of shards | when |
|---|---|
| gradients that arrive as terms of a sum | first, where there are any |
| means of g^2 and p^2, who has a gradient, whose is not finite | after phase 1 |
| the mean of R, where it is kept in 16 bits, and both rows and columns are split | in between |
| means of u^2, where updates are clipped or recorded as telemetry | after phase 2 |

A backend pauses before each of the last three sums and yields what is to be added up. The runner adds up, in place,
what all backends have yielded, in one all-reduce per process group. After the third pause the backend writes. What is
added up, and in which order, follows from plans, placements and options alone, so that it is the same on every process.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from .._backends.cpp.backend import CppBackend
from .._backends.eager.backend import EagerBackend
from .._backends.protocol import Backend, Batch, Done, Phases
from .._backends.reference import ReferenceBackend
from .._backends.triton import TritonBackend
from .._sharding.local_tensors import LocalTensors
from .._sharding.process_groups import ProcessGroups
from .._sharding.step_mask import StepMask
from .._task.reductions import PHASES
from .._task.task import Amp, Task

Assigned = list[tuple[Backend, Batch]]
Step = Callable[[], None]


class Runner:
    """The backends of one optimizer, and what is remembered of its shared parameters."""

    def __init__(self) -> None:
        # The first that can step a task does; the last can always.
        self.backends: tuple[Backend, ...] = CppBackend(), TritonBackend(), ReferenceBackend(), EagerBackend()
        self.forget_shards()

    def forget_shards(self) -> None:
        """Remember nothing of shared parameters; on every process at once."""
        self._process_groups = ProcessGroups()
        self.local = LocalTensors(self._process_groups)
        self._shards: Assigned = []  # of the last step

    def forget(self, params: Collection[Tensor]) -> None:
        """Keep nothing of these parameters, which have left the optimizer."""
        for backend in self.backends:
            backend.forget(params)

    def warn(self) -> None:
        """Say what the last step has noticed."""
        for backend in self.backends:
            backend.warn()

    def assign(self, tasks: list[Task]) -> Assigned:
        """Which backends step whole parameters of one group, those first that only torch's operators can read."""
        kinds: dict[tuple[bool, str], list[Task]] = {}
        for task in tasks:
            kinds.setdefault((task.by_address, task.p.device.type), []).append(task)
        return [
            (self._backend_of(kinds[kind][0]), Batch(kinds[kind])) for kind in sorted(kinds, key=lambda kind: kind[0])
        ]

    def prepare(self, assigned: Assigned, amp: Amp, done: Done) -> list[Phases]:
        """The steps of whole parameters. What can be missing for one is there then.

        Raises:
            ValueError: a parameter or its gradient is of a class that lacks an operator.
        """
        return [backend.steps(batch, None, amp, done) for backend, batch in assigned]

    def prepare_shards(self, tasks: list[Task], amp: Amp) -> Step:
        """The step of shards that have arrived and have complete states, to be called when they are counted."""
        again = self.local.are_again(tasks)
        self.local.hold(tasks, again)
        if not again:
            self._shards = self._assign_shards(tasks)
        mask = StepMask(tasks, amp)
        phases = [backend.steps(batch, mask, amp, lambda _: None) for backend, batch in self._shards]
        return lambda: self._step_shards(tasks, mask, phases)

    def forget_tasks(self) -> None:
        """Hold nothing of the shards of a step that has failed, their gradients above all."""
        self._shards = []
        self.local.forget()

    def _step_shards(self, tasks: list[Task], mask: StepMask, phases: list[Phases]) -> None:
        """One step, in place, of tasks that are counted already. Where one is not to be, that is taken back."""
        for phase in range(PHASES):
            sums = [one for steps in phases for one in next(steps)]
            self._process_groups.all_reduce([*sums, *mask.partial_sums()] if phase == 0 else sums)
        torch.autograd.graph.increment_version([task.param for task in tasks])  # now: backends may note the versions
        for steps in phases:
            next(steps, None)
        self.local.put_back(tasks, mask)
        mask.settle()

    def _assign_shards(self, tasks: list[Task]) -> Assigned:
        """The backends that step all shards between them, in one order on every process, each with its own."""
        kinds: dict[int, list[Task]] = {}
        for task in tasks:
            kinds.setdefault(self.backends.index(self._backend_of(task)), []).append(task)
        return [(self.backends[which], Batch(kinds[which])) for which in sorted(kinds)]

    def _backend_of(self, task: Task) -> Backend:
        *first, last = self.backends
        return next((backend for backend in first if self._can(backend, task)), last)

    def _can(self, backend: Backend, task: Task) -> bool:
        """Whether a backend steps a task, a shard on every process alike."""
        if backend.why_not(task) is not None:
            return False
        if task.shard.is_shared:
            return self._process_groups.agree(backend.name, task.shard.mesh, lambda: backend.available(True))
        return backend.available(False)
