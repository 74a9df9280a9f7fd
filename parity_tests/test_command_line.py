"""The command line and `adafactor verify`, by running them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import adafactor_torch
from adafactor_parity._cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def adafactor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "adafactor_parity", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("report") / "made" / "by verify"
    options = ["--steps", "5", "--recipe", "paper", "--dtype", "float32", "--quick"]
    return adafactor("verify", *options, "--json", "--out", str(folder)), folder


def test_a_run_within_the_budget_says_so(small_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    result, folder = small_run
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "in a pipe there is no progress to see"
    printed = json.loads(result.stdout)
    assert printed == json.loads((folder / "report.json").read_text())
    assert printed["passed"] is True
    assert printed["failures"] == []
    assert printed["seed"] == 0
    assert printed["command"].startswith("adafactor verify --quick --steps 5 --recipe paper --dtype float32 --out ")
    assert {"python", "jax", "torch", "optax", "numpy"} <= printed["versions"].keys()
    assert printed["devices"]["torch"].startswith("cpu")


def test_the_report_has_the_figures(small_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    figures = json.loads(small_run[0].stdout)
    (stepped,) = figures["stepping"]
    for pair in ("JAX from oracle", "torch from oracle", "JAX from torch"):
        assert 0 < stepped["worst"][pair]["relative"] <= stepped["budget"]["relative"]
        assert len(stepped["worst_per_step"][pair]) == figures["zoo"]["steps"]
    (run,) = figures["training"]
    for framework in ("jax", "torch"):
        assert len(run[framework]["losses"]) == run["steps"] == 5
        assert run[framework]["losses"][-1] < run[framework]["losses"][0]
        assert 0 < run[framework]["state_bytes"] < 0.05 * run[framework]["adam_bytes"]
    assert 0 < max(drift["relative"] for drift in run["weight_drift"]) < 1e-4
    assert figures["text"]["source"] == "pydoc_data.topics"


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert tag not in ("link", "script", "iframe"), "the page must not need anything beside it"
        if tag == "img":
            assert named["alt"]
            self.sources.append(named["src"] or "")


def test_the_page_is_self_contained(small_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = small_run
    plots = sorted(path.name for path in folder.glob("*.png"))
    assert plots == ["deviation.png", "drift.png", "learning_rate.png", "loss.png", "state_bytes.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    page = (folder / "index.html").read_text()
    parser = _Images()
    parser.feed(page)
    assert len(parser.sources) == len(plots)
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "Every deviation is within its budget" in page


class _TooLong(adafactor_torch.Adafactor):
    """A learning rate that is a thousandth too large."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, lr=1.001e-2, **options)


def test_a_wrong_optimizer_is_named_with_shape_step_and_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adafactor_torch, "Adafactor", _TooLong)
    (tmp_path / "loss.png").touch()
    status = main(
        ["verify", "--recipe", "paper", "--quick", "--dtype", "float64", "--steps", "0", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr()
    assert status == 1
    failures = [line for line in printed.err.splitlines() if line.startswith("FAILED")]
    assert len(failures) == 3
    assert failures[0].startswith("FAILED torch from oracle: recipe paper, float64, shape (")
    assert "step 1, element (" in failures[0]
    assert "budget 1.0e-12" in failures[0]
    assert failures[1].startswith("FAILED JAX from torch: ")
    assert failures[2].startswith("FAILED piecewise-constant learning rate")
    assert "FAILED" in printed.out
    assert "3 beyond the budget" in printed.out
    *table, report = printed.out.splitlines()
    assert max(map(len, table)) <= 100
    assert report == f"Report: {tmp_path / 'index.html'}"
    assert "3 beyond the budget" in (tmp_path / "index.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    assert not (tmp_path / "loss.png").exists(), "a plot of an earlier run has no place beside this page"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "papre"], "--recipe must be one of paper, .*, got 'papre'. Did you mean 'paper'?"),
        (["--dtype", "float23"], "--dtype must be one of float64, .*, got 'float23'. Did you mean 'float"),
        (["--steps", "-1"], "--steps must be a whole number, at least 0, got -1. 0 leaves the training runs out."),
        (["--seed", "-1"], "--seed must be a whole number, at least 0, got -1."),
        (["--text", "no such file"], "--text must be a file .*, got 'no such file', which does not exist. Name a"),
        (["--text", str(ROOT)], "--text must be a file .*, which cannot be read: Is a directory"),
        (
            ["--device", "abacus"],
            "--device must be one that JAX or torch has here \\(.*cpu.*\\), got 'abacus'. Leave it",
        ),
        (["--device", "cpu:99"], "--device must be one that JAX or torch has here"),
        (["--out", __file__], "--out must be a folder to write to, got .*: name one that exists or can be made."),
    ],
)
def test_wrong_usage(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--recipe", "paper", "--dtype", "float32", "--steps", "0"]  # if it ran after all, it would not take long
    assert main(["verify", *small, *arguments]) == 2
    printed = capsys.readouterr()
    assert re.search(says, printed.err), printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir()), "nothing is changed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["verfy"], "invalid choice: 'verfy'"),
        (["verify", "--steps", "many"], "must be a whole number, got 'many'. Write it in digits."),
        (["verify", "--betas", "0.9"], "unrecognized arguments"),
    ],
)
def test_what_the_parser_refuses(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_the_exit_status_reaches_the_shell() -> None:
    result = adafactor("verify", "--recipe", "papre")
    assert result.returncode == 2
    assert "Did you mean 'paper'?" in result.stderr
    assert result.stdout == ""


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.M)
    assert listed == [command.__name__.rpartition("._")[2].removesuffix("_command") for command in COMMANDS]
    assert {f"_{name}_command.py" for name in listed} == {
        file.name for file in (ROOT / "adafactor_parity").glob("_*_command.py")
    }


def test_a_module_of_ours_that_is_missing_is_no_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adafactor_parity._recipes_tables", None)
    monkeypatch.delattr("adafactor_parity._recipes_tables", raising=False)
    with pytest.raises(ModuleNotFoundError):
        main(["recipes"])


def test_help_needs_no_framework() -> None:
    code = (
        "import sys; sys.modules.update(jax=None, torch=None); from adafactor_parity._cli import COMMANDS, main; main()"
    )
    helped = subprocess.run([sys.executable, "-c", code, "verify", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert "--quick" in helped.stdout
    stopped = subprocess.run([sys.executable, "-c", code, "verify"], cwd=ROOT, capture_output=True, text=True)
    assert "which is not installed. pip install 'adafactor[all]'" in stopped.stderr
    assert stopped.stderr.startswith("adafactor verify: it needs ") and "Traceback" not in stopped.stderr
