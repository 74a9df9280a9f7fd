"""The run in torch on several processes, which share every parameter; see `rank.py` for what each of them does.

A round's time is that of the slowest process. All of them have the machine's cores between them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adafactor_parity.progress import Progress

from ..measure import cases, entries, machine
from ..measure.cases import Found, Job, run_case
from ..measure.options import Options
from ..measure.results import Results
from ..measure.workloads import Shape
from .optimizers import BASELINE, ENTRIES
from .rank import SUMS_ALONE, measure
from .ranks import in_all

PROCESSES = 4
OPTIMIZERS = (BASELINE, "adamw-foreach", "torch-adafactor", "ours-eager", "ours-fused")


def devices() -> tuple[str, ...]:
    """Processes are joined by gloo, on a CPU."""
    return ("cpu",)


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    chosen = entries.chosen({name: ENTRIES[name] for name in OPTIMIZERS}, options, BASELINE)
    free = machine.available_bytes()
    wanted = entries.cases(options, chosen, lambda dtype: getattr(torch, dtype).itemsize, free)
    options = dataclasses.replace(options, threads=options.threads or 1)
    with Progress(len(wanted)) as progress:
        measured = tuple(run_case(InProcesses(options), options, chosen, *case, progress) for case in wanted)
    return cases.results(
        "torch_sharded",
        options,
        ENTRIES[BASELINE],
        measured,
        threads=options.threads,
        versions=machine.versions(("torch",), ()),
        processes=PROCESSES,
    )


class InProcesses:
    """A `Framework`: each process measures the case, and what they find is put together."""

    baseline = BASELINE
    also_shown: Mapping[str, str] = {SUMS_ALONE: "the all-reduces of ours alone"}

    def __init__(self, options: Options) -> None:
        self._threads, self._patience = options.threads or 1, options.patience

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        return shapes

    def measure(self, job: Job, progress: Progress) -> Found:
        progress.describe(f"{job.workload}, {PROCESSES} processes")
        # No limit in a single process, which the others would wait for: sums between them have it.
        each = in_all(PROCESSES, self._threads, self._patience, measure, dataclasses.replace(job, patience=None))
        progress.advance()
        return together(each)


def together(each: Sequence[Found]) -> Found:
    """What the processes have found as one: times of the slowest, bytes of all, and errors, which all have alike."""
    first = each[0]
    return Found(
        seconds={name: _slowest([found.seconds[name] for found in each]) for name in first.seconds},
        figures={name: _of_all([found.figures[name] for found in each]) for name in first.figures},
        errors=first.errors,
        parameter_bytes=sum(found.parameter_bytes for found in each),
    )


def _slowest(seconds: Sequence[list[float]]) -> list[float]:
    return [max(of_round) for of_round in zip(*seconds, strict=True)]


def _of_all(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = dict(figures[0])
    if "state_bytes" in found:  # sums alone have no state
        found["state_bytes"] = sum(one["state_bytes"] for one in figures)
        found["first_step_seconds"] = max(one["first_step_seconds"] for one in figures)
    return found
