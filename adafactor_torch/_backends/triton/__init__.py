"""Triton kernels for CUDA. What imports Triton is not imported before a step needs it, as Triton may be missing."""

import functools
import warnings
from types import ModuleType

from ..._sharding.step_mask import StepMask
from ..._task.task import Amp, Task
from ..protocol import Backend, Batch, Done, Phases


class TritonBackend(Backend):
    """Steps parameters on CUDA, all of one kind by the same few launches."""

    name = "Triton"

    def available(self, shared: bool) -> bool:
        """Whether Triton is there."""
        return triton_path() is not None

    def why_not(self, task: Task) -> str | None:
        """Why it does not step a task; None where it does."""
        if task.p.is_cpu or not task.fused:
            return "it is for CUDA" if task.p.is_cpu else "it is not asked for"
        return None if task.by_address or task.shard.is_shared else "only torch's operators can read the tensors"

    def steps(self, batch: Batch, mask: StepMask | None, amp: Amp, done: Done) -> Phases:
        """The launches of a step."""
        if mask is not None:
            from . import shard_step

            return shard_step.steps(batch.tasks, mask, amp)
        from . import launch_group

        return launch_group.steps(launch_group.prepare(batch.tasks, amp), batch.tasks, amp, done)


@functools.cache
def triton_path() -> ModuleType | None:
    """The path of Triton kernels; None, after a warning, where there is no Triton, which comes with torch for CUDA."""
    try:
        from . import launch_group
    except ImportError as error:
        warnings.warn(f"Adafactor steps eagerly on CUDA: {error}. fused=False is silent.", stacklevel=2)
        return None
    return launch_group
