"""What one process of the sharded run in torch does: it steps its shares of the parameters, in time with the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from ..measure import entries
from ..measure.cases import COPY, Contender, Found, Job, Timed, measure_here, seconds_of
from ..measure.workloads import Shape
from .optimizers import ENTRIES
from .run import drawn, parameters

SUMS_ALONE = "sums-alone"
REPEATED = "ours-fused"  # whose sums are repeated without a step


def measure(job: Job) -> Found:
    """Measure a case; bytes are those of this process's own shares, but for those that are summed up."""
    bench = InRank()
    found = measure_here(bench, job)
    if SUMS_ALONE in found.seconds:
        sums = bench.summed[REPEATED]
        found.figures[SUMS_ALONE] = {"collectives": len(sums), "summed_bytes": sum(sums)}
    return found


class InRank:
    """A `Workbench`: dimension 0 of every parameter is divided among all processes, as FSDP2 does it."""

    def __init__(self) -> None:
        self._mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.summed: dict[str, list[int]] = {}  # bytes of each `all_reduce` in a step

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return shapes

    def draw(self, shapes: Sequence[Shape], dtype: str, seed: int) -> list[Any]:
        found = []
        for whole in drawn(shapes, getattr(torch, dtype), seed):
            part = distribute_tensor(whole, self._mesh, [Shard(0)], src_data_rank=None).to_local().clone()
            how: dict[str, Any] = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
            found.append(DTensor.from_local(part, self._mesh, [Shard(0)], **how))
        return found

    def bytes_of(self, values: list[Any]) -> int:
        return sum(x.to_local().nbytes for x in values)

    def build(self, name: str, momentum: bool, values: list[Any], gradients: list[Any]) -> Contender:
        """Four steps are done. An error is the same in all processes."""
        optimizer = ENTRIES[name].build(parameters(values, gradients), momentum)
        step: Callable[[], object] = optimizer.step
        first = _timer(step)()
        for _ in range(2):  # in which processes may ask each other for what they then know
            step()
        with CommDebugMode() as mode, _noted() as summed:
            step()
        self.summed[name] = summed
        figures = {"collectives": mode.get_total_counts(), "summed_bytes": sum(summed) if ENTRIES[name].ours else None}
        return Contender(
            step=_timer(step), first_step_seconds=first, figures=lambda: figures | {"state_bytes": _state(optimizer)}
        )

    def beside(self, contenders: Mapping[str, Contender], quick: bool) -> dict[str, Timed]:
        copy = torch.ones(entries.copy_numbers(quick) // dist.get_world_size())
        found: dict[str, Callable[[], object]] = {COPY: lambda: copy.clone().copy_(copy)}
        if REPEATED in contenders:
            sums = [torch.zeros(size // 4) for size in self.summed[REPEATED]]
            found[SUMS_ALONE] = lambda: [dist.all_reduce(x) for x in sums]
        return {name: _timer(step) for name, step in found.items()}


def _state(optimizer: torch.optim.Optimizer) -> int:
    kept = [x for state in optimizer.state.values() for x in state.values()]
    return sum((x.to_local() if isinstance(x, DTensor) else x).nbytes for x in kept)


def _timer(step: Callable[[], object]) -> Timed:
    def timed() -> float:
        dist.barrier()
        return seconds_of(step)

    return timed


@contextmanager
def _noted() -> Iterator[list[int]]:
    """The bytes of the tensors that are summed up over processes meanwhile."""
    found, own = list[int](), dist.all_reduce

    def noting(x: Tensor, *arguments: Any, **more: Any) -> Any:
        found.append(x.nbytes)
        return own(x, *arguments, **more)

    with mock.patch.object(dist, "all_reduce", noting):
        yield found
