"""The interface of a backend, which is a way to compute a step."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .._sharding.step_mask import StepMask
from .._task.shard import PartialSum
from .._task.task import Amp, Task

Phases = Iterator[list[PartialSum]]
Done = Callable[[Sequence[Task]], object]  # is told which tasks have been written wholly


@dataclass(eq=False)
class Batch:
    """Tasks that a backend steps together: either whole parameters, or shards. The next step may bring it again."""

    tasks: list[Task]
    table: Any = None  # what the backend has made of the tasks and can use again


class Backend(Protocol):
    """A way to compute a step. All of them do what `reference.update` does."""

    name: str

    def available(self, shared: bool) -> bool:
        """Whether this machine has what it needs, for whole parameters or for shards."""
        return True

    def why_not(self, task: Task) -> str | None:
        """Why it does not step a task; None where it does."""

    def steps(self, batch: Batch, mask: StepMask | None, amp: Amp, done: Done) -> Phases:
        """Prepare a step: what can fail does so now, or at the latest before anything is written.

        Args:
            batch: the tasks.
            mask: which shards take the step; None for whole parameters, of which that is decided here.
            amp: what a GradScaler says.
            done: is told which whole parameters have been written.

        Returns:
            The step. Of whole parameters it takes each through all phases, and its pauses ask for nothing. Of shards it
            pauses `PHASES` times with what is to be added up over processes, in place, and writes after the last one.
        """

    def forget(self, params: Collection[Tensor]) -> None:
        """Keep nothing of these parameters of the optimizer."""
        return

    def warn(self) -> None:
        """Say what the last step has noticed: after it, as a warning may be an error."""
        return
