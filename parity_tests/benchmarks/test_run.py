"""The benchmarks measure what they say. How fast anything is, no test asks."""

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import _cli
from benchmarks.measure.patience import patience
from benchmarks.measure.results import Case, Measured, Results
from benchmarks.measure.rounds import Spread, bytes_to_move, interleaved, ratio, spread
from benchmarks.measure.workloads import WORKLOADS
from benchmarks.report import page as pages
from benchmarks.report.figures import rounded
from benchmarks.torch.memory import peak_bytes, state_bytes
from benchmarks.torch.optimizers import BASELINE, ENTRIES

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------------- figures


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratio_is_the_median_within_rounds_and_not_of_medians() -> None:
    # The machine slows down from round to round. Ratios are 3, 1/2 and 1; that of the medians is 4/8.
    assert ratio([3.0, 4.0, 10.0], [1.0, 8.0, 10.0]) == Spread(0.75, 1.0, 2.0)


def test_every_round_calls_each_once_in_an_order_that_replays() -> None:
    def order(seed: int) -> list[str]:
        called: list[str] = []

        def step(name: str) -> float:
            called.append(name)
            return float(len(called))

        found = interleaved({name: lambda name=name: step(name) for name in "abcd"}, 6, seed)  # type: ignore[misc]
        assert all(found[name] == [i + 1 for i, other in enumerate(called) if other == name] for name in "abcd")
        return called

    called = order(3)
    rounds = [called[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert order(3) == called != order(4)


def test_bytes_to_move_are_six_numbers_per_parameter_and_the_state_twice() -> None:
    assert bytes_to_move(parameter_bytes=400, state_bytes=0) == 6 * 400
    assert bytes_to_move(parameter_bytes=400, state_bytes=404) == 6 * 400 + 2 * 404


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.052, "0.052"), (7.314, "7.31"), (9.996, "10.0"), (12.34, "12.3"), (99.97, "100"), (123.4, "123"), (None, "-")],
)
def test_figures_have_two_or_three_digits(value: float | None, text: str) -> None:
    assert rounded(value) == text


@pytest.mark.parametrize(
    ("workload", "tensors", "parameters"),
    # By hand, where it is short: 32000*1024 + 6*(4*1024^2 + 2*4*1024^2 + 13*1024) + 2*1024; half the blocks and one
    # vector less; 36*64^2 + 14*64. ResNet-50 has 25,557,032.
    [
        *(("transformer", 99, 108_347_392), ("convnet", 161, 25_557_032), ("small", 2000, 8_192_000)),
        *(("fifty", 50, 70_557_696), ("tiny", 50, 148_352)),
    ],
)
def test_workloads_have_the_size_that_they_claim(workload: str, tensors: int, parameters: int) -> None:
    shapes = WORKLOADS[workload](False)
    assert (len(shapes), sum(map(math.prod, shapes))) == (tensors, parameters)
    quick = WORKLOADS[workload](True)
    assert sum(map(math.prod, quick)) < parameters / 90
    assert {len(shape) for shape in quick} == {len(shape) for shape in shapes}


# ------------------------------------------------------------------------------------------------- memory


def test_peak_is_that_of_the_temporaries_alive_at_once() -> None:
    x = torch.zeros(1000)

    def step() -> None:
        first = torch.empty(3000)
        second = torch.empty(1000)  # 16,000 bytes are alive here
        del first
        third = torch.empty(2000)  # and 12,000 here
        del second, third
        x.fill_(1.0)

    assert peak_bytes(step, CPU) == 16_000


def test_peak_of_a_step_in_place_is_zero() -> None:
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.fill_(1.0), CPU) == 0


def test_peak_counts_from_the_start_of_the_step() -> None:
    kept: list[Tensor] = []
    assert peak_bytes(lambda: kept.append(torch.empty(500)), CPU) == 2000


def test_a_storage_in_the_state_counts_once() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p])
    shared = torch.zeros(10)
    optimizer.state[p] = {"a": shared, "b": shared[2:4], "c": [torch.zeros(3)], "d": {"e": torch.zeros(1)}, "f": 7}
    assert state_bytes(optimizer) == 40 + 12 + 4


# ------------------------------------------------------------------------------------------------- command


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The JSON of a run over the smallest workload, in which two optimizers are made to fail."""

    def refuse(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
        raise TypeError(f"{ROOT}/folder/file.py: no such\nkeyword")

    def change_gradients(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params)
        optimizer.register_step_post_hook(
            lambda *_: torch._foreach_mul_([p.grad for p in params if p.grad is not None], 2)
        )
        return optimizer

    monkeypatch.setitem(ENTRIES, "ours-plain", replace(ENTRIES["ours-plain"], build=refuse))
    monkeypatch.setitem(ENTRIES, "sgd-foreach", replace(ENTRIES["sgd-foreach"], build=change_gradients))
    names = ["sgd-foreach", "torch-adafactor", "ours-plain", "ours-eager"]
    file = tmp_path / "speed.json"
    words = ["torch", "--quick", "--workload", "small", "--dtype", "float32", "--rounds", "2"]
    assert _cli.main([*words, "--optimizers", *names, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_quick_run_end_to_end(quick: dict[str, Any]) -> None:
    assert quick["schema"] == 1 and quick["framework"] == "torch" and quick["rounds"] == 2
    assert quick["machine"]["cores"] >= 1 and quick["versions"]["torch"] == torch.__version__
    assert [case["momentum"] for case in quick["cases"]] == [False, True]
    without, with_momentum = ({row["optimizer"]: row for row in case["measured"]} for case in quick["cases"])

    assert list(without) == ["sgd-foreach", BASELINE, "torch-adafactor", "ours-plain", "ours-eager"]
    assert (
        quick["cases"][1]["left_out"] == {"torch Adafactor": "has no momentum"}
        and "torch-adafactor" not in with_momentum
    )
    assert without[BASELINE]["ratio"] == {"lower": 1.0, "median": 1.0, "upper": 1.0}
    # 20 matrices of 64x64 in float32: two moments and a step each; and factors of 64 + 64 and a step, then a momentum.
    assert without[BASELINE]["state_bytes"] == 20 * (2 * 64 * 64 + 1) * 4
    assert without["ours-eager"]["state_bytes"] == 20 * (2 * 64 * 4 + 8)  # the count has 8 bytes
    assert with_momentum["ours-eager"]["state_bytes"] == 20 * ((64 * 64 + 2 * 64) * 4 + 8)
    for row in (without[BASELINE], without["torch-adafactor"], without["ours-eager"]):
        assert row["error"] is None and row["milliseconds"]["median"] > 0 and row["peak_bytes"] >= 0
    assert without["ours-eager"]["bound_ratio"] > 0 and without[BASELINE]["bound_ratio"] is None


def test_what_fails_is_reported_and_the_others_are_measured(quick: dict[str, Any]) -> None:
    rows = {row["optimizer"]: row for row in quick["cases"][0]["measured"]}
    assert rows["ours-plain"]["error"] == "TypeError: file.py: no such keyword"
    assert rows["ours-plain"]["ratio"] is None
    assert rows["sgd-foreach"]["error"].startswith("RuntimeError: It changes the gradients")
    assert rows["ours-eager"]["ratio"] is not None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tensorflow"], "FRAMEWORK must be one of torch, jax, torch_sharded, got 'tensorflow'"),
        (["torch", "--workload", "transfomer"], "--workload must be one of transformer, .*Did you mean 'transformer'"),
        (["torch", "--optimizers", "ours"], "--optimizers must be one of sgd-foreach, "),
        (["torch", "--dtype", "float16"], "--dtype must be one of float32, bfloat16, got 'float16'"),
        (["torch", "--rounds", "0"], "--rounds must be a whole number, at least 1, got '0'"),
        (["torch", "--threads", "two"], "--threads must be a whole number, at least 1, got 'two'"),
        (["torch", "--device", "tpu"], "--device must be one of cpu"),
        (["torch", "--json", "no/such/folder/speed.json"], "--json must be a file to write to"),
    ],
)
def test_wrong_usage_is_answered(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks: ") and re.search(says, message), message


def test_patience_ends() -> None:
    with pytest.raises(TimeoutError, match="--patience"), patience(0.05):
        time.sleep(10)
    with patience(0.05):
        pass
    time.sleep(0.1)  # no alarm is left behind


# ------------------------------------------------------------------------------------------------- page and plot


def results(device: str = "cpu") -> Results:
    row = Measured(
        optimizer="ours-eager",
        label="ours, eager",
        ours=True,
        milliseconds=Spread(1.0, 2.0, 3.0),
        ratio=Spread(0.5, 0.75, 12.0),
        bound_ratio=1.25,
        first_step_seconds=0.5,
        state_bytes=3,
        peak_bytes=20,
    )
    failed = Measured(optimizer="other", label="other", ours=False, error="ValueError: a|b")
    case = Case(
        workload="small",
        dtype="float32",
        momentum=False,
        tensors=2,
        parameters=250,
        parameter_bytes=1000,
        copy_bytes_per_second=1e10,
        measured=(row, failed),
    )
    machine: dict[str, str | int] = {"system": "S", "processor": "P", "cores": 2, "memory": "4 GiB"}
    return Results(
        framework="torch",
        device=device,
        date="2000-01-01",
        command="python -m benchmarks torch",
        quick=False,
        rounds=3,
        threads=2,
        seed=0,
        baseline="base",
        machine=machine,
        versions={"torch": "1", "transformers": "not installed"},
        cases=(case, replace(case, momentum=True)),
    )


def test_the_page_has_one_part_for_each_device() -> None:
    page = pages.replaced("# Performance\n\nBy hand.\n", results())
    assert page.startswith("# Performance\n\nBy hand.\n\n<!-- generated: torch cpu -->\n")
    both = pages.replaced(page, results("cuda"))
    assert both.startswith(page) and "performance-torch-cuda.png" in both
    again = pages.replaced(both, replace(results(), date="2001-01-01"))
    assert again == both.replace("2000-01-01", "2001-01-01", 1)
    with pytest.raises(ValueError, match="must have a line"):
        pages.replaced(page.replace("<!-- end: torch cpu -->", ""), results())


def test_the_page_shows_the_figures() -> None:
    lines = list(pages.section(results()))
    assert "| **ours, eager** | **0.75** | **0.75** | 0.3 | 2.00 |" in lines
    assert "| **ours, eager** | 2.00 | 1.00 to 3.00 | 0.75 | 1.25 | 0.3 | 2.00 | 0.5 |" in lines
    assert r"* other fails: ValueError: a\|b" in lines
    assert any("P, 2 cores, 2 threads, 4 GiB of memory; S; torch 1." in line for line in lines)


def test_the_page_and_its_plot_are_written(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "performance.md").write_text("By hand.")
    page, plot = pages.write(results(), tmp_path)
    assert f"images/{plot.name}" in page.read_text(encoding="utf-8")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_is_not_torch_needs_no_framework() -> None:
    modules = "_cli, measure.cases, report.page, report.plot, report.table"
    imports = "; ".join(f"import benchmarks.{name}" for name in modules.split(", "))
    code = f"import sys; {imports}; print({{'torch', 'jax'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
