"""DTensors by the Triton kernels, on four processes in Triton's interpreter: the same run as of one in plain torch.

How the kernels step parts of parameters is in `triton_parts.py`, without processes; here are real ones around them.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adafactor_spec import factoring
from adafactor_torch._backends import triton as _triton
from adafactor_torch._step.run import Runner
from adafactor_torch._task.shard import Shard

from . import sharded_behaviour as behaviour
from . import sharded_kernels as kernels
from . import sharded_runs as runs
from .test_torch_sharded import ALL_REDUCE, FLOAT32, FLOAT64, assert_alike
from .test_torch_triton import needs_triton
from .two_processes import Ranks, processes

pytestmark = [needs_triton, pytest.mark.xdist_group("four_interpreters")]

PLAN = factoring.plan(factoring.last_two, (2,))
STEPS = 2
SHAPES: tuple[runs.Shape, ...] = ((13, 27), (3, 6), (27,), (6, 5, 9))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Processes of their own, as the interpreter stays for as long as a process does."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            ranks = stack.enter_context(processes(tmp_path_factory.mktemp("interpreters"), 4))
        yield ranks


@pytest.mark.parametrize("everywhere", [True, False])
def test_kernels_take_what_they_take_on_all_processes(everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "triton_path", lambda: "the kernels")
    asked = []

    def agree(what: str, mesh: str, has: Any) -> bool:
        asked.append((what, mesh, has()))
        return everywhere

    def backend_of(device: str, fused: bool) -> str:
        shard = Shard(PLAN, PLAN, mesh="one")
        task: Any = SimpleNamespace(p=torch.empty(2, device=device), fused=fused, shard=shard, by_address=True)
        return runner._backend_of(task).name

    runner = Runner()
    monkeypatch.setattr(runner, "_process_groups", SimpleNamespace(agree=agree))
    assert backend_of("cpu", False) == backend_of("meta", False) == "eager torch" and not asked
    assert backend_of("meta", True) == ("Triton" if everywhere else "eager torch")
    assert asked == [("Triton", "one", True)]


def by_kernels(ranks: Ranks, *call: Any) -> list[Any]:
    answers = ranks(kernels.by_kernels, STEPS, *call)
    return [answer for answer in answers if answer is not None]


@pytest.mark.parametrize(
    ("name", "dtype", "budget", "case"),
    [
        ("rows", torch.float64, FLOAT64, "momentum of the step"),
        ("row", torch.float64, FLOAT64, "telemetry"),
        ("column", torch.float64, FLOAT64, "batch"),
        ("row", torch.float32, FLOAT32, "paper"),
    ],
)
def test_equals_one_process_with_two_sums_per_process_group(
    four: Ranks, name: str, dtype: torch.dtype, budget: float, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "STEPS", STEPS)
    runs.single.cache_clear()  # it knows other runs with more steps
    expected = {case: runs.single(dtype, (case,), SHAPES)[0]}
    runs.single.cache_clear()
    answers = by_kernels(four, runs.compared, name, dtype, expected, SHAPES)
    assert_alike(answers, budget)
    for answer in answers:
        assert answer.counts == {ALL_REDUCE: 2 * runs.LAYOUTS[name]}


@pytest.mark.parametrize("on_device", [False, True], ids=["counted on the host", "counted on a device"])
def test_all_processes_skip_what_is_not_finite_on_one(four: Ranks, on_device: bool) -> None:
    counted = (kernels.counted_on_device,) if on_device else ()
    for error, skips, steps, _ in by_kernels(four, *counted, behaviour.skipped, "row", False):
        assert error <= FLOAT64
        assert skips == [1, 0, 2] and steps == [4, 5, 3]


def test_a_gradient_that_is_missing_on_a_process_is_zero_there(four: Ranks) -> None:
    assert max(by_kernels(four, behaviour.missing_here, "rows", False)) <= FLOAT64


def test_a_gradient_that_is_missing_everywhere_leaves_the_parameter_alone(four: Ranks) -> None:
    assert all(by_kernels(four, behaviour.missing_everywhere, False))


def test_found_inf_of_one_process_leaves_out_the_step_of_all(four: Ranks) -> None:
    assert all(by_kernels(four, behaviour.found_inf, "hybrid", False))


@pytest.mark.parametrize("name", ["rows", "column"])
def test_stochastic_rounding_takes_the_bits_of_one_process(four: Ranks, name: str) -> None:
    for _, differing in by_kernels(four, behaviour.rounded, name, False):
        assert differing < 0.005
