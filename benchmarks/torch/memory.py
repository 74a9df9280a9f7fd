"""What one step of a torch optimizer keeps, allocates and launches."""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, each storage once."""
    tensors = _tensors(optimizer.state.values())
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def peak_bytes(step: Step, device: torch.device, compiled: bool = False) -> int:
    """How far above its start torch's allocated memory rises in one step, which may be a `compiled` one.

    On a CPU this sees what goes through torch's allocator, and nothing else.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    allocated = peak = 0
    for event in _trace(step, [ProfilerActivity.CPU], compiled, profile_memory=True):
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0:
            allocated += event["args"]["Bytes"]
            peak = max(peak, allocated)
    return peak


def launches_and_reads(step: Step, compiled: bool = False) -> tuple[int, int]:
    """Kernels that one step on a CUDA device launches, and copies that it makes from the device to the host."""
    events = _trace(step, [ProfilerActivity.CPU, ProfilerActivity.CUDA], compiled)
    kernels = sum(event.get("cat") == "kernel" for event in events)
    reads = sum("DtoH" in event.get("name", "") for event in events if event.get("cat") == "gpu_memcpy")
    return kernels, reads


def _trace(
    step: Step, activities: list[ProfilerActivity], compiled: bool, profile_memory: bool = False
) -> list[dict[str, Any]]:
    """The events of one step, in order."""
    for _ in range(1 + compiled):  # a profiler makes a compiled step compile anew
        with profile(activities=activities, profile_memory=profile_memory) as profiler:
            step()
            if ProfilerActivity.CUDA in activities:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))  # the public way to single allocations
        events: list[dict[str, Any]] = json.loads(file.read_bytes())["traceEvents"]
    return sorted(events, key=lambda event: event.get("ts", 0))


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
