"""The run in torch on several processes, which share every parameter; see `_torch_rank.py` for what each of them does.

A round's time is that of the slowest process. All of them have the machine's cores between them.
"""

import dataclasses
from math import prod

import torch

from adafactor_parity._progress import Progress

from . import _machine, _shared
from ._options import Options
from ._results import Case, Measured, Results
from ._rounds import bytes_to_move, ratio, spread
from ._torch_optimizers import BASELINE, ENTRIES, Entry
from ._torch_rank import MODEL_OF_WIRE, WIRE, Answer, Job, measure
from ._torch_ranks import in_all
from ._workloads import WORKLOADS

PROCESSES = 4
OPTIMIZERS = (BASELINE, "adamw-foreach", "torch-adafactor", "ours-eager", "ours-fused")


def devices() -> tuple[str, ...]:
    """Processes are joined by gloo, on a CPU."""
    return ("cpu",)


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    chosen = _shared.chosen({name: ENTRIES[name] for name in OPTIMIZERS}, options, BASELINE)
    free = _machine.available_bytes()
    wanted = _shared.cases(options, chosen, lambda dtype: getattr(torch, dtype).itemsize, free)
    options = dataclasses.replace(options, threads=options.threads or 1)
    with Progress(len(wanted)) as progress:
        cases = tuple(_case(options, chosen, *case, progress) for case in wanted)
    return _shared.results(
        "torch_sharded",
        options,
        ENTRIES[BASELINE],
        cases,
        threads=options.threads,
        versions=_machine.versions(("torch",), ()),
        processes=PROCESSES,
    )


def _case(
    options: Options, chosen: dict[str, Entry], workload: str, dtype: str, momentum: bool, progress: Progress
) -> Case:
    shapes = WORKLOADS[workload](options.quick)
    part = _shared.taking_part(chosen, momentum, len(shapes))
    progress.describe(f"{workload}, {PROCESSES} processes")
    job = Job(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        optimizers=tuple(part),
        rounds=options.rounds,
        quick=options.quick,
        seed=options.seed,
    )
    answers = in_all(PROCESSES, options.threads or 1, options.patience, measure, job)
    progress.advance()
    seconds = {name: _slowest(answers, name) for name in answers[0].seconds}
    copied = 2 * 4 * _shared.copy_numbers(options.quick)
    bandwidth = copied / spread(seconds[_shared.COPY]).median
    rows = [_measured(name, entry, answers, seconds, bandwidth) for name, entry in part.items()]
    if WIRE in seconds:
        rows.append(_wire(answers[0], seconds))
    return Case(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        tensors=len(shapes),
        parameters=sum(map(prod, shapes)),
        parameter_bytes=sum(answer.parameter_bytes for answer in answers),
        copy_bytes_per_second=bandwidth,
        measured=tuple(rows),
        left_out=_shared.left_out(chosen, momentum, len(shapes)),
    )


def _slowest(answers: list[Answer], name: str) -> list[float]:
    return [max(of_round) for of_round in zip(*(answer.seconds[name] for answer in answers), strict=True)]


def _measured(
    name: str, entry: Entry, answers: list[Answer], seconds: dict[str, list[float]], bandwidth: float
) -> Measured:
    first = answers[0]
    if name in first.errors:
        return Measured(optimizer=name, label=entry.label, ours=entry.ours, error=first.errors[name])
    milliseconds = spread([1000 * time for time in seconds[name]])
    state = sum(answer.state[name] for answer in answers)
    bound = 1000 * bytes_to_move(sum(answer.parameter_bytes for answer in answers), state) / bandwidth
    return Measured(
        optimizer=name,
        label=entry.label,
        ours=entry.ours,
        warnings=first.warnings[name],
        first_step_seconds=max(answer.first[name] for answer in answers),
        milliseconds=milliseconds,
        ratio=ratio(seconds[name], seconds[BASELINE]),
        bound_ratio=milliseconds.median / bound if entry.ours else None,
        state_bytes=state,
        collectives=first.collectives[name],
        summed_bytes=sum(first.summed[name]) if entry.ours else None,
    )


def _wire(first: Answer, seconds: dict[str, list[float]]) -> Measured:
    """What the sums of a step of ours take without it."""
    return Measured(
        optimizer=WIRE,
        label="the all-reduces of ours alone",
        ours=False,
        milliseconds=spread([1000 * time for time in seconds[WIRE]]),
        ratio=ratio(seconds[WIRE], seconds[BASELINE]),
        collectives=len(first.summed[MODEL_OF_WIRE]),
        summed_bytes=sum(first.summed[MODEL_OF_WIRE]),
    )
