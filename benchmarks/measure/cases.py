"""One case of a run, in any framework: every optimizer is built and takes its first steps, then all are timed in
rounds, then each says what else there is to know of it.

Only steps are timed: parameters and fixed gradients, no model. `run_case` is the same everywhere; a `Framework` and its
`Workbench` are what differs.
"""

import contextlib
import datetime
import gc
import re
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from adafactor_parity.progress import Progress

from . import machine as machines
from .entries import TakesPart, copy_numbers, left_out, taking_part
from .options import Options
from .patience import patience
from .results import Case, Measured, Results
from .rounds import bytes_to_move, interleaved, ratio, spread
from .workloads import WORKLOADS, Shape

COPY = "copy"  # the machine's own speed, measured in the same rounds
FOLDERS = re.compile(r"(?<![\w./:])/(?:[\w.@+-]+/)+")  # what stands before a file in an absolute path
LONGEST_MESSAGE = 300  # characters of an error or a warning

Timed = Callable[[], float]  # does something once and returns its seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case, for whoever measures it; it can be sent to another process. `patience` None: no limit."""

    workload: str
    dtype: str
    momentum: bool
    optimizers: tuple[str, ...]
    rounds: int
    quick: bool
    seed: int
    patience: int | None


@dataclass(kw_only=True)
class Contender:
    """An optimizer that has been built and has taken its first steps.

    `figures` says the fields of `Measured` that only the framework knows, `state_bytes` among them. It is asked when
    all rounds are over.
    """

    step: Timed
    first_step_seconds: float
    figures: Callable[[], dict[str, Any]]


@dataclass(kw_only=True)
class Found:
    """What has been measured of a case, by name; what is timed beside the optimizers has seconds, too."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of every round
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # fields of `Measured`
    errors: dict[str, str] = field(default_factory=dict)
    parameter_bytes: int = 0


class Framework(Protocol):
    """What a run on one process or on several has of its own."""

    @property
    def baseline(self) -> str: ...

    @property
    def also_shown(self) -> Mapping[str, str]:
        """Name to label of what is timed beside the optimizers and has a row of its own."""
        ...

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The shapes of a workload as models of this framework have them."""
        ...

    def measure(self, job: Job, progress: Progress) -> Found:
        """What `measure_here` finds, or what processes find together that all call it."""
        ...


class Workbench(Protocol):
    """What a framework does in its own way within one process."""

    def shapes(self, shapes: list[Shape]) -> list[Shape]: ...

    def draw(self, shapes: Sequence[Shape], dtype: str, seed: int) -> list[Any]:
        """Arrays of normal numbers, of standard deviation 0.02."""
        ...

    def bytes_of(self, values: list[Any]) -> int:
        """The bytes of these arrays."""
        ...

    def build(self, name: str, momentum: bool, values: list[Any], gradients: list[Any]) -> Contender:
        """An optimizer of these first values, which stay what they are, and its first steps, which may compile it."""
        ...

    def beside(self, contenders: Mapping[str, Contender], quick: bool) -> dict[str, Timed]:
        """What is timed in the same rounds: the copy, under the name `COPY`, and whatever has a row of its own."""
        ...


def run_case(
    framework: Framework,
    options: Options,
    entries: Mapping[str, TakesPart],
    workload: str,
    dtype: str,
    momentum: bool,
    progress: Progress,
) -> Case:
    """Measure one case: these optimizers, as far as they take part in it."""
    shapes = framework.shapes(WORKLOADS[workload](options.quick))
    part = taking_part(entries, momentum, len(shapes))
    job = Job(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        optimizers=tuple(part),
        rounds=options.rounds,
        quick=options.quick,
        seed=options.seed,
        patience=options.patience,
    )
    found = framework.measure(job, progress)
    bandwidth = 2 * 4 * copy_numbers(options.quick) / spread(found.seconds[COPY]).median
    shown = [(name, entry.label, entry.ours) for name, entry in part.items()]
    shown += [(name, label, False) for name, label in framework.also_shown.items() if name in found.seconds]
    return Case(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        tensors=len(shapes),
        parameters=sum(map(prod, shapes)),
        parameter_bytes=found.parameter_bytes,
        copy_bytes_per_second=bandwidth,
        measured=tuple(_measured(*row, framework.baseline, found, bandwidth) for row in shown),
        left_out=left_out(entries, momentum, len(shapes)),
    )


def measure_here(bench: Workbench, job: Job, progress: Progress | None = None) -> Found:
    """Measure a case in this process."""
    gc.collect()  # what the case before this one leaves in cycles is gigabytes
    shapes = bench.shapes(WORKLOADS[job.workload](job.quick))
    values, gradients = (bench.draw(shapes, job.dtype, job.seed + i) for i in range(2))
    found, contenders = Found(parameter_bytes=bench.bytes_of(values)), dict[str, Contender]()
    said: dict[str, tuple[str, ...]] = {}
    for name in job.optimizers:
        if progress is not None:
            progress.describe(f"{job.workload}, {name}")
        try:
            with patience(job.patience), _caught() as caught:
                contenders[name] = bench.build(name, job.momentum, values, gradients)
            said[name] = tuple(dict.fromkeys(in_short(str(warning.message)) for warning in caught))
        except Exception as error:  # whatever it is, the others are still measured
            found.errors[name] = in_short(f"{type(error).__name__}: {error}")
        if progress is not None:
            progress.advance()
    timed = {name: contender.step for name, contender in contenders.items()}
    timed |= bench.beside(contenders, job.quick)
    if progress is not None:
        progress.describe(f"{job.workload}, rounds")
    with _collector_off():
        found.seconds = interleaved(timed, job.rounds, job.seed, progress.advance if progress else lambda: None)
    for name, contender in contenders.items():
        own = {"warnings": said[name], "first_step_seconds": contender.first_step_seconds}
        found.figures[name] = own | contender.figures()
    return found


def results(
    framework: str,
    options: Options,
    baseline: TakesPart,
    measured: tuple[Case, ...],
    *,
    threads: int | None,
    versions: dict[str, str],
    **machine: str | int,
) -> Results:
    """What has been measured, with where, how and when. `machine` says more of it than is known here."""
    return Results(
        framework=framework,
        device=options.device,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=options.command(),
        quick=options.quick,
        rounds=options.rounds,
        threads=threads,
        seed=options.seed,
        baseline=baseline.label,
        machine={**machines.machine(), **machine},
        versions=versions,
        cases=measured,
    )


def seconds_of(step: Callable[[], object]) -> float:
    """How long it takes, on the host."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_short(text: str) -> str:
    """One line that names no folder of the machine that the page was made on."""
    return textwrap.shorten(FOLDERS.sub("", text), LONGEST_MESSAGE, placeholder=" ...")


def _measured(name: str, label: str, ours: bool, baseline: str, found: Found, bandwidth: float) -> Measured:
    if name in found.errors:
        return Measured(optimizer=name, label=label, ours=ours, error=found.errors[name])
    figures, seconds = found.figures.get(name, {}), found.seconds[name]
    milliseconds = spread([1000 * time for time in seconds])
    bound = None
    if ours:
        bound = 1000 * bytes_to_move(found.parameter_bytes, figures["state_bytes"]) / bandwidth
    return Measured(
        optimizer=name,
        label=label,
        ours=ours,
        milliseconds=milliseconds,
        ratio=ratio(seconds, found.seconds[baseline]) if baseline in found.seconds else None,
        bound_ratio=None if bound is None else milliseconds.median / bound,
        **figures,
    )


@contextlib.contextmanager
def _caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection inside, which would meet one of the optimizers."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
