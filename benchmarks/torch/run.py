"""The run in torch on one process: every case, every optimizer."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch loads: its profiler prints where it starts and stops

import torch
from torch import Tensor

from adafactor_parity.progress import Progress

from ..measure import cases, entries, machine
from ..measure.cases import COPY, Contender, Found, Job, Timed, measure_here, run_case, seconds_of
from ..measure.options import Options
from ..measure.results import Results
from ..measure.workloads import Shape
from .memory import launches_and_reads, peak_bytes, state_bytes
from .optimizers import BASELINE, ENTRIES

OPTIMIZERS = tuple(ENTRIES)


def devices() -> tuple[str, ...]:
    """The devices that torch has here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    chosen = entries.chosen(ENTRIES, options, BASELINE)
    free = torch.cuda.mem_get_info()[0] if options.device == "cuda" else machine.available_bytes()
    wanted = entries.cases(options, chosen, lambda dtype: getattr(torch, dtype).itemsize, free)
    framework = InTorch(torch.device(options.device))
    with Progress(len(wanted) * (len(chosen) + options.rounds)) as progress:
        measured = tuple(run_case(framework, options, chosen, *case, progress) for case in wanted)
    accelerator = {"accelerator": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    return cases.results(
        "torch",
        options,
        ENTRIES[BASELINE],
        measured,
        threads=torch.get_num_threads(),
        versions=machine.versions(("torch",)),
        **accelerator,
    )


class InTorch:
    """A `Framework` and its `Workbench`, on one device."""

    baseline = BASELINE
    also_shown: Mapping[str, str] = {}

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return shapes

    def draw(self, shapes: Sequence[Shape], dtype: str, seed: int) -> list[Tensor]:
        return [x.to(self._device) for x in drawn(shapes, getattr(torch, dtype), seed)]

    def bytes_of(self, values: list[Tensor]) -> int:
        return sum(x.nbytes for x in values)

    def build(self, name: str, momentum: bool, values: list[Tensor], gradients: list[Tensor]) -> Contender:
        """Two steps are done: the first one compiles and makes the state, the second one may compile again."""
        entry, params = ENTRIES[name], parameters(values, gradients)
        versions = [gradient._version for gradient in gradients]
        optimizer = entry.build(params, momentum)
        step = torch.compile(optimizer.step) if entry.compiled_step else optimizer.step
        timed = self._timer(step)
        first, _ = timed(), timed()
        if versions != [gradient._version for gradient in gradients]:
            raise RuntimeError("It changes the gradients, which all optimizers share here.")
        return Contender(
            step=timed,
            first_step_seconds=first,
            figures=lambda: self._figures(optimizer, step, entry.compiled_step),
        )

    def beside(self, contenders: Mapping[str, Contender], quick: bool) -> dict[str, Timed]:
        source = torch.ones(entries.copy_numbers(quick), device=self._device)
        target = torch.empty_like(source)
        target.copy_(source)  # so that its memory is there
        return {COPY: self._timer(lambda: target.copy_(source))}

    def measure(self, job: Job, progress: Progress) -> Found:
        torch.compiler.reset()  # or the cases before this one count against the limit of compilations of one step
        return measure_here(self, job, progress)

    def _figures(self, optimizer: torch.optim.Optimizer, step: Callable[[], object], compiled: bool) -> dict[str, Any]:
        on_gpu = self._device.type == "cuda"
        launches, reads = launches_and_reads(step, compiled) if on_gpu else (None, None)
        return {
            "state_bytes": state_bytes(optimizer),
            "peak_bytes": peak_bytes(step, self._device, compiled),
            "launches": launches,
            "host_reads": reads,
        }

    def _timer(self, step: Callable[[], object]) -> Timed:
        """A function that does one step and returns its seconds."""
        if self._device.type != "cuda":
            return lambda: seconds_of(step)

        def on_device() -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000

        return on_device


def drawn(shapes: Sequence[Shape], dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    """Normal numbers, of standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        yield (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def parameters(values: list[Any], gradients: list[Any]) -> list[Tensor]:
    """New parameters with these values and gradients."""
    params: list[Tensor] = [torch.nn.Parameter(value.clone()) for value in values]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    return params
