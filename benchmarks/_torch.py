"""The run in torch: every case, every optimizer. Only steps are timed: parameters and fixed gradients, no model."""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch loads: its profiler prints where it starts and stops

import torch
from torch import Tensor

from adafactor_parity._progress import Progress

from . import _machine, _shared
from ._options import Options
from ._patience import patience
from ._results import Case, Measured, Results
from ._rounds import bytes_to_move, interleaved, ratio, spread
from ._torch_memory import launches_and_reads, peak_bytes, state_bytes
from ._torch_optimizers import BASELINE, ENTRIES, Entry
from ._workloads import WORKLOADS, Shape

OPTIMIZERS = tuple(ENTRIES)


@dataclass(kw_only=True)
class _Contender:
    entry: Entry
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]
    first_step_seconds: float
    warnings: tuple[str, ...]


def devices() -> tuple[str, ...]:
    """The devices that torch has here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    chosen = _shared.chosen(ENTRIES, options, BASELINE)
    free = torch.cuda.mem_get_info()[0] if options.device == "cuda" else _machine.available_bytes()
    wanted = _shared.cases(options, chosen, lambda dtype: getattr(torch, dtype).itemsize, free)
    with Progress(len(wanted) * (len(chosen) + options.rounds)) as progress:
        cases = tuple(_case(options, chosen, *case, progress) for case in wanted)
    accelerator = {"accelerator": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    return _shared.results(
        "torch",
        options,
        ENTRIES[BASELINE],
        cases,
        threads=torch.get_num_threads(),
        versions=_machine.versions(("torch",)),
        **accelerator,
    )


def _case(
    options: Options, chosen: dict[str, Entry], workload: str, dtype: str, momentum: bool, progress: Progress
) -> Case:
    gc.collect()  # what the case before this one leaves in cycles is gigabytes
    torch.compiler.reset()  # or the cases before this one count against the limit of compilations of one step
    shapes = WORKLOADS[workload](options.quick)
    device = torch.device(options.device)
    values, gradients = (
        [x.to(device) for x in drawn(shapes, getattr(torch, dtype), options.seed + i)] for i in range(2)
    )
    contenders: dict[str, _Contender] = {}
    errors: dict[str, str] = {}
    part = _shared.taking_part(chosen, momentum, len(shapes))
    for name, entry in part.items():
        progress.describe(f"{workload}, {entry.label}")
        try:
            with patience(options.patience):
                contenders[name] = _warm(entry, values, gradients, momentum, device)
        except Exception as error:  # whatever it is, the others are still measured
            errors[name] = _shared.in_short(f"{type(error).__name__}: {error}")
        progress.advance()
    progress.describe(f"{workload}, rounds")
    timed = {name: _timer(contender.step, device) for name, contender in contenders.items()}
    timed[_shared.COPY] = _timer(copy := _copy(options.quick, device), device)
    copy()
    with _shared.collector_off():
        seconds = interleaved(timed, options.rounds, options.seed, progress.advance)
    parameter_bytes = sum(p.nbytes for p in values)
    bandwidth = 2 * 4 * _shared.copy_numbers(options.quick) / spread(seconds[_shared.COPY]).median
    measured = tuple(
        _measured(name, entry, contenders[name], seconds, parameter_bytes, bandwidth, device)
        if name in contenders
        else Measured(optimizer=name, label=entry.label, ours=entry.ours, error=errors[name])
        for name, entry in part.items()
    )
    return Case(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        tensors=len(shapes),
        parameters=sum(map(prod, shapes)),
        parameter_bytes=parameter_bytes,
        copy_bytes_per_second=bandwidth,
        measured=measured,
        left_out=_shared.left_out(chosen, momentum, len(shapes)),
    )


def drawn(shapes: Sequence[Shape], dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    """Normal numbers, of standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        yield (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def _warm(
    entry: Entry, values: list[Tensor], gradients: list[Tensor], momentum: bool, device: torch.device
) -> _Contender:
    """Built, and two steps done: the first one compiles and makes the state, the second one may compile again."""
    params: list[Tensor] = [torch.nn.Parameter(value.clone()) for value in values]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    versions = [gradient._version for gradient in gradients]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = entry.build(params, momentum)
        step = torch.compile(optimizer.step) if entry.compiled_step else optimizer.step
        timed = _timer(step, device)
        first, _ = timed(), timed()
    if versions != [gradient._version for gradient in gradients]:
        raise RuntimeError("It changes the gradients, which all optimizers share here.")
    said = tuple(dict.fromkeys(_shared.in_short(str(warning.message)) for warning in caught))
    return _Contender(entry=entry, optimizer=optimizer, step=step, first_step_seconds=first, warnings=said)


def _timer(step: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A function that does one step and returns its seconds."""
    if device.type != "cuda":
        return lambda: _shared.seconds_of(step)

    def on_device() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    return on_device


def _measured(
    name: str,
    entry: Entry,
    contender: _Contender,
    seconds: dict[str, list[float]],
    parameter_bytes: int,
    bandwidth: float,
    device: torch.device,
) -> Measured:
    milliseconds = spread([1000 * time for time in seconds[name]])
    state = state_bytes(contender.optimizer)
    bound = 1000 * bytes_to_move(parameter_bytes, state) / bandwidth
    compiled = entry.compiled_step
    launches, reads = launches_and_reads(contender.step, compiled) if device.type == "cuda" else (None, None)
    return Measured(
        optimizer=name,
        label=entry.label,
        ours=entry.ours,
        warnings=contender.warnings,
        first_step_seconds=contender.first_step_seconds,
        milliseconds=milliseconds,
        ratio=ratio(seconds[name], seconds[BASELINE]) if BASELINE in seconds else None,
        bound_ratio=milliseconds.median / bound if entry.ours else None,
        state_bytes=state,
        peak_bytes=peak_bytes(contender.step, device, compiled),
        launches=launches,
        host_reads=reads,
    )


def _copy(quick: bool, device: torch.device) -> Callable[[], object]:
    source = torch.ones(_shared.copy_numbers(quick), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
