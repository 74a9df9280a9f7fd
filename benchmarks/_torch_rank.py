"""What one process of the sharded run in torch does: it steps its shares of the parameters, in time with the others."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from . import _shared
from ._rounds import interleaved
from ._torch import drawn
from ._torch_optimizers import ENTRIES
from ._workloads import WORKLOADS, Shape

WIRE = "sums-alone"
MODEL_OF_WIRE = "ours-fused"  # whose sums are repeated


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case, the same for every process."""

    workload: str
    dtype: str
    momentum: bool
    optimizers: tuple[str, ...]
    rounds: int
    quick: bool
    seed: int


@dataclass(kw_only=True)
class Answer:
    """What one process has found. Seconds of every round, by optimizer; bytes are those of its own shares."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    collectives: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    parameter_bytes: int = 0
    summed: dict[str, list[int]] = field(default_factory=dict)  # bytes of each `all_reduce` in a step


def measure(job: Job) -> Answer:
    """Measure a case: dimension 0 of every parameter is divided among all processes, as FSDP2 does it."""
    answer, mesh = Answer(), init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = WORKLOADS[job.workload](job.quick)
    values, gradients = (_drawn(shapes, job, mesh, job.seed + i) for i in range(2))
    answer.parameter_bytes = sum(x.to_local().nbytes for x in values)
    steps: dict[str, Callable[[], object]] = {}
    for name in job.optimizers:
        try:
            steps[name] = _warm(name, job, values, gradients, answer)
        except Exception as error:  # whatever it is, the others are still measured; it is the same in all processes
            answer.errors[name] = _shared.in_short(f"{type(error).__name__}: {error}")
    if MODEL_OF_WIRE in steps:
        sums = [torch.zeros(size // 4) for size in answer.summed[MODEL_OF_WIRE]]
        steps[WIRE] = lambda: [dist.all_reduce(x) for x in sums]
    copy = torch.ones(_shared.copy_numbers(job.quick) // dist.get_world_size())
    steps[_shared.COPY] = lambda: copy.clone().copy_(copy)
    with _shared.collector_off():
        timed = {name: _timer(step) for name, step in steps.items()}
        answer.seconds = interleaved(timed, job.rounds, job.seed)
    return answer


def _drawn(shapes: list[Shape], job: Job, mesh: Any, seed: int) -> list[Any]:
    found = []
    for whole in drawn(shapes, getattr(torch, job.dtype), seed):
        part = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None).to_local().clone()
        found.append(
            DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
        )
    return found


def _warm(name: str, job: Job, values: list[Any], gradients: list[Any], answer: Answer) -> Callable[[], object]:
    """Built, and two steps done, as in the run on one process."""
    params: list[Tensor] = [torch.nn.Parameter(value.clone()) for value in values]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = ENTRIES[name].build(params, job.momentum)
        step: Callable[[], object] = optimizer.step
        answer.first[name] = _timer(step)()
        for _ in range(2):  # in which processes may ask each other for what they then know
            step()
        with CommDebugMode() as mode, _noted() as answer.summed[name]:
            step()
    answer.collectives[name] = mode.get_total_counts()
    kept = [x for state in optimizer.state.values() for x in state.values()]
    answer.state[name] = sum((x.to_local() if isinstance(x, DTensor) else x).nbytes for x in kept)
    answer.warnings[name] = tuple(dict.fromkeys(_shared.in_short(str(warning.message)) for warning in caught))
    return step


def _timer(step: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        dist.barrier()
        return _shared.seconds_of(step)

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
