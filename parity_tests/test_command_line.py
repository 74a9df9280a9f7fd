"""The command line and `adafactor verify`, by running them."""

import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import adafactor_torch
from adafactor_parity import Verification
from adafactor_parity._cli import COMMANDS, main
from adafactor_parity._output import replace_files
from adafactor_parity._verify import verify
from adafactor_parity._verify.options import Options, check
from adafactor_parity._verify.training.corpus import load

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
        (
            ["--steps", "-1"],
            "--steps must be a whole number, at least 0 and .*, got -1. 0 leaves the training",
        ),
        (["--seed", "-1"], "--seed must be a whole number, at least 0 and .*, got -1."),
        (["--text", "no such file"], "--text must be a file .*, got 'no such file', which does not exist. Name a"),
        (["--text", ""], "--text must be a file, got ''. Leave it out"),
        (["--text", str(ROOT)], "--text must be a file .*, which is not a regular file"),
        (["--text", "/dev/zero"], "--text must be a file .*, which is not a regular file"),
        (["--text", "fifo"], "--text must be a file .*, which is not a regular file"),
        (["--text", "a" * 300], "--text must be a file .*, which cannot be read: File name too long"),
        (["--text", "latin1"], "--text must be a file .*, which is not UTF-8 .invalid continuation byte at byte 3"),
        (
            ["--device", "abacus"],
            "--device must be one that JAX or torch has here \\(.*cpu.*\\), got 'abacus'. Leave it",
        ),
        *(
            (["--device", name], "--device must be one that JAX or torch has here")
            for name in ("cpu:99", "", "cpu:", "cpu:-1", "cpu:0:0", "CPU", "meta", "hpu", "cpu:" + "9" * 5000)
        ),
        (["--out", __file__], "--out must be a folder to write to, got .*: name one that exists or can be made."),
        (["--out", ""], "--out must be a folder to write to, got ''. Write . for the current one."),
        (["--out", "/dev/null/a"], "--out must be a folder to write to, got '/dev/null/a'. Not a directory"),
        (["--out", "/proc/a"], "--out must be a folder to write to, got '/proc/a'. No such file or directory"),
        (
            ["--out", "."],
            "--out must be a folder whose index.html can be replaced, got '.'. It is a folder:",
        ),
        (["--steps", "9" * 30], "--steps must be a whole number, at least 0 and at most 1,000,000, got 9"),
        (
            ["--seed", str(2**64)],
            "--seed must be a whole number, at least 0 and at most 18,446,744,073,709,551,615",
        ),
    ],
)
def test_wrong_usage(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("index.html").mkdir()
    Path("latin1").write_bytes(b"caf\xe9 " * 1000)
    os.mkfifo("fifo")
    there = sorted(tmp_path.iterdir())
    small = ["--recipe", "paper", "--dtype", "float32", "--steps", "0"]  # if it ran after all, it would not take long
    assert main(["verify", *small, *arguments]) == 2
    printed = capsys.readouterr()
    assert re.search(says, printed.err), printed.err
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == there, "nothing is changed"


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
    assert listed == list(COMMANDS)
    rooms = {folder.parent.name for folder in (ROOT / "adafactor_parity").glob("_*/command.py")}
    assert rooms == {f"_{name}" for name in COMMANDS}


def test_help_needs_no_framework() -> None:
    code = "import sys; sys.modules.update(jax=None, torch=None); from adafactor_parity._cli import main; main()"
    helped = subprocess.run([sys.executable, "-c", code, "verify", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert "--quick" in helped.stdout
    stopped = subprocess.run([sys.executable, "-c", code, "verify"], cwd=ROOT, capture_output=True, text=True)
    assert "which is not installed. pip install 'adafactor[all]'" in stopped.stderr
    assert stopped.stderr.startswith("adafactor verify: it needs ") and "Traceback" not in stopped.stderr


# ------------------------------------------------------------------------------ output that cannot be written

LINT = ["lint", "optax.adafactor(1e-3)"]


def command_line(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of those that load no framework, in a process of its own."""
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, "-W", "error", "-m", "adafactor_parity", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, cwd=ROOT, text=True, check=False, env=environment, **streams)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["recipes"], LINT], ids=" ".join)
def test_a_full_disk_is_said(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = command_line(*arguments, stdout=full, environment={"PYTHONUNBUFFERED": unbuffered})
    assert result.returncode == 2
    says = "standard output must be writable, got 'No space left on device'. Send it elsewhere."
    assert re.fullmatch(f"adafactor( recipes| lint)?: {says}\n", result.stderr)


def with_closed(stream: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same, started with its standard output (1) or its standard error (2) closed."""
    start = "import os, sys; os.close(int(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    command = [sys.executable, "-c", start, str(stream), "-m", "adafactor_parity", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["verify"], ["recipes", "paper"], LINT], ids=" ".join)
def test_a_closed_standard_output_is_said_at_once(arguments: list[str]) -> None:
    result = with_closed(1, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("adafactor: standard output must be open, got 'a closed one'. Send it to a file")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["recipes", "paper"], LINT], ids=" ".join)
def test_a_reader_who_has_seen_enough_ends_it_as_a_shell_expects(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = command_line(*arguments, stdout=writing)
    os.close(writing)
    assert result.returncode == 141
    assert result.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_error_does_not_change_the_status(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = command_line("recipes", "papre", stderr=full, environment={"PYTHONUNBUFFERED": unbuffered})
    assert result.returncode == 2
    assert result.stdout == ""


def test_a_closed_standard_error_does_not_send_the_message_to_standard_output() -> None:
    result = with_closed(2, "recipes", "papre")
    assert result.returncode == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("encoding", "key", "character"),
    [("ascii", "\u00e9", r"\xe9"), ("iso8859-1", "\u03b2", r"\u03b2"), ("utf-8", r"\ud800", None)],
)
def test_a_character_that_the_encoding_does_not_have_is_said(encoding: str, key: str, character: str | None) -> None:
    text = f"t5x.adafactor.Adafactor(1e-3, factor_map={{'{key}': 'HEURISTIC_RULE', '.*': 'HEURISTIC_RULE'}})"
    result = command_line("lint", text, environment={"PYTHONIOENCODING": encoding})
    if character is None:  # half a pair, which is shown as it is written
        assert result.returncode == 0 and result.stderr == ""
        return
    assert result.returncode == 2
    says = f"adafactor lint: standard output must be in an encoding that has '{character}', got '{encoding}'. "
    assert result.stderr.startswith(says)
    assert command_line("lint", text, "--json", environment={"PYTHONIOENCODING": encoding}).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["recipes"], ["recipes", "t5x"]], ids=" ".join)
def test_what_is_printed_needs_no_more_than_ascii(arguments: list[str]) -> None:
    for options in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        result = command_line(*arguments, environment=options)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("columns", ["0", "1", "39"])
def test_a_terminal_that_says_it_has_no_columns_shows_the_same_as_a_narrow_one(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["recipes"]) == 0
    narrow = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == narrow and "tensor2tensor" in narrow


# ------------------------------------------------------------------------------------ reports that cannot be written


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    options = check(
        recipe_names=["paper"],
        dtype_names=["float64"],
        steps=0,
        quick=True,
        device="cpu",
        text=None,
        out=tmp_path_factory.mktemp("report"),
        seed=0,
    )
    return verify.measure(options, load(None))


def test_a_report_that_cannot_be_written_does_not_cost_the_figures(
    found: Verification, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*of: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adafactor_parity._verify.report.write.replace_files", full)
    monkeypatch.setattr(verify, "measure", lambda *_: found)
    assert main(["verify", "--out", str(found.options.out)]) == 2
    printed = capsys.readouterr()
    assert "Everything is within its budget." in printed.out and "Report" not in printed.out
    assert re.fullmatch("adafactor verify: --out must be a folder .* No space left on device: name .*\n", printed.err)
    assert main(["verify", "--json", "--out", str(found.options.out)]) == 2
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_names_of_files_may_hold_any_bytes(
    found: Verification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "\udcff"
    odd = Verification(**{**vars(found), "options": Options(out=folder)})
    monkeypatch.setattr(verify, "measure", lambda options, _: options.out.mkdir() or odd)
    assert main(["verify", "--out", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("Report: " + str(tmp_path / "\\udcff" / "index.html") + "\n")
    assert "\\udcff" in (folder / "index.html").read_text(encoding="utf-8")


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No such file"):
        replace_files(tmp_path, {"a": b"new", "missing/b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
    replace_files(tmp_path, {"a": b"new", "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


# ------------------------------------------------------------------------------------------------- every other end


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("one\ntwo"), 2, "it stopped at an error that it did not expect, RuntimeError: one. ADAF"),
        (MemoryError(), 2, "it stopped at an error that it did not expect, MemoryError. ADAFACTOR_TRACEBACK=1 shows"),
        (
            OSError(errno.EMFILE, "Too many"),
            2,
            "it stopped at an error that it did not expect, OSError: [Errno 24] Too",
        ),
        (ImportError("libcuda.so"), 2, "it stopped at an error that it did not expect, ImportError: libcuda.so. "),
    ],
    ids=repr,
)
def test_no_error_looks_like_a_verdict(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*of: object) -> None:
        raise error

    monkeypatch.setattr("adafactor_parity._recipes.command.difference", fail)
    assert main(["recipes", "paper", "torch"]) == status
    assert re.fullmatch(f"adafactor recipes: {re.escape(line)}.*\n", capsys.readouterr().err)
    monkeypatch.setenv("ADAFACTOR_TRACEBACK", "1")
    assert main(["recipes", "paper", "torch"]) == status
    assert ("Traceback" in capsys.readouterr().err) == (status == 2)


def test_a_module_of_ours_that_is_missing_is_not_said_to_need_an_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "adafactor_parity._recipes.tables", None)
    monkeypatch.delattr("adafactor_parity._recipes.tables", raising=False)
    assert main(["recipes"]) == 2
    assert "did not expect, ModuleNotFoundError: import of adafactor_parity._recipes.tables" in capsys.readouterr().err
