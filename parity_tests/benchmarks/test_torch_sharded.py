"""The benchmark of parameters that processes share: what each of them measures, and what is made of it."""

import dataclasses
from typing import Any

import pytest
import torch.distributed as dist

from benchmarks.measure.cases import Found, Job
from benchmarks.measure.options import Options
from benchmarks.report import page
from benchmarks.torch import sharded
from benchmarks.torch.rank import measure
from benchmarks.torch.ranks import in_all
from parity_tests.two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")

JOB = Job(
    workload="tiny",
    dtype="float32",
    momentum=False,
    optimizers=("adamw-fused", "torch-adafactor", "ours-fused"),
    rounds=2,
    quick=True,
    seed=0,
    patience=None,
)
# 36 matrices of 6x6 on four processes, rows 2, 2, 2 and 0: shares of 6 means over rows, one of the mean of R and one of
# p^2; 14 vectors have the last one alone, and every parameter two flags. Then one of u^2 each.
SUMMED = 4 * (36 * (6 + 1 + 1) + 14 + 2 * 50) + 4 * 50


def _fails(on: int) -> int:
    if dist.get_rank() == on:
        raise ValueError("as told")
    return dist.get_world_size()


def test_processes_measure_together(four: Ranks) -> None:
    answers: list[Found] = four(measure, JOB)
    for answer in answers:
        assert {name: len(times) for name, times in answer.seconds.items()} == dict.fromkeys(
            ("adamw-fused", "ours-fused", "sums-alone", "copy"), 2
        )
        collectives = {name: figures["collectives"] for name, figures in answer.figures.items()}
        assert collectives == {"adamw-fused": 0, "ours-fused": 2, "sums-alone": 2}
        assert answer.figures["ours-fused"]["summed_bytes"] == answer.figures["sums-alone"]["summed_bytes"] == SUMMED
        assert set(answer.errors) == {"torch-adafactor"}
    assert sum(answer.parameter_bytes for answer in answers) == 4 * (36 * 36 + 14 * 6)


def test_a_round_takes_as_long_as_its_slowest_process(four: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Found] = four(measure, JOB)
    for rank, answer in enumerate(answers):
        answer.seconds["adamw-fused"], answer.seconds["ours-fused"] = [1.0, 2.0 + rank], [2.0 + rank, 1.0]

    def given(count: int, threads: int, patience: int, function: Any, job: Job) -> list[Found]:
        assert (count, threads, function) == (4, 1, measure)
        assert dataclasses.replace(job, optimizers=()) == dataclasses.replace(JOB, optimizers=())
        return answers

    monkeypatch.setattr(sharded, "in_all", given)
    options = Options(
        framework="torch_sharded",
        workloads=("tiny",),
        dtypes=("float32",),
        momentum=(False,),
        optimizers=JOB.optimizers,
        rounds=2,
        quick=True,
    )
    results = sharded.run(options)
    (case,) = results.cases
    rows = {row.optimizer: row for row in case.measured}
    ours = rows["ours-fused"]
    assert ours.milliseconds is not None and ours.milliseconds.median == (5000.0 + 1000.0) / 2
    assert ours.ratio is not None and ours.ratio.median == (5.0 / 1.0 + 1.0 / 5.0) / 2
    assert rows["torch-adafactor"].error is not None
    assert rows["sums-alone"].summed_bytes == ours.summed_bytes == SUMMED
    assert results.command == (
        "python -m benchmarks torch_sharded --workload tiny --dtype float32 --no-momentum "
        "--optimizers adamw-fused torch-adafactor ours-fused --rounds 2 --quick --threads 1"
    )
    lines = list(page.section(results))
    assert any("1 thread, " in line and ", 4 processes; " in line for line in lines)
    assert any(line.endswith("| collectives | summed, KiB |") for line in lines)


def test_the_workloads_of_fifty_parameters_are_those_of_processes_and_no_others() -> None:
    assert Options().command() == "python -m benchmarks torch"
    several = Options(framework="torch_sharded", workloads=("fifty", "tiny"))
    assert several.command() == "python -m benchmarks torch_sharded"


def test_a_process_that_fails_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Process 0 of the benchmark failed: .*ValueError: as told"):
        in_all(1, 1, 60, _fails, 0)
