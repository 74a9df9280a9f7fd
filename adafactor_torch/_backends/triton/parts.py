"""Sharded parameters on CUDA: the Triton kernels, where all processes have them."""

import functools
import warnings
from collections.abc import Iterator
from types import ModuleType

from ..._sharding.process_groups import ProcessGroups
from ..._sharding.step_mask import StepMask
from ..._task.shard import PartialSum
from ..._task.task import Amp, Task


class TritonParts:
    """Steps parts of parameters by the Triton kernels, which are not imported before they are used."""

    def takes(self, task: Task, process_groups: ProcessGroups) -> bool:
        """Whether a part is stepped here, on every process alike."""
        if not task.fused or task.p.is_cpu:
            return False
        return process_groups.agree("Triton", task.shard.mesh, lambda: triton_path() is not None)

    def steps(self, tasks: list[Task], mask: StepMask, amp: Amp) -> Iterator[list[PartialSum]]:
        """One step, in place; see `sharded.py` for where it pauses."""
        from .backend import steps

        return steps(tasks, mask, amp)


@functools.cache
def triton_path() -> ModuleType | None:
    """The path of Triton kernels; None, after a warning, where there is no Triton, which comes with torch for CUDA."""
    try:
        from . import launch_group
    except ImportError as error:
        warnings.warn(f"Adafactor steps eagerly on CUDA: {error}. fused=False is silent.", stacklevel=2)
        return None
    return launch_group
