"""`adafactor recipes`, by running it, and the page that it writes."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafactor_parity._about import about
from adafactor_parity._cli import main
from adafactor_parity._recipes import tables as printed_tables
from adafactor_parity._recipes.difference import difference
from adafactor_spec import Recipe, literal, recipes, summary

ROOT = Path(__file__).resolve().parents[1]
ONE_PER_LINE = 10_000  # columns: no line is folded


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, columns: int | None = None) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["recipes", *arguments]) == 0
        return capsys.readouterr().out

    return run


def tables(text: str) -> list[list[str]]:
    """The lines of each table, without those under its head."""
    found: list[list[str]] = []
    for line in text.partition("t = 1 at the first update")[0].splitlines():
        if line.startswith("recipe "):
            found.append([])
        if found and not line.startswith("─"):
            found[-1].append(line)
    return found


# --- All of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, None, 100, 120, 160, 200])
def test_the_table_is_readable_at_every_width(printed: Any, columns: int | None) -> None:
    text = printed(columns=columns)
    assert max(map(len, text.splitlines())) <= (columns or 100)
    parts = tables(text)
    columns_shown = [column for part in parts for column in re.split(r" {2,}", part[0].strip())[1:]]
    assert columns_shown == list(summary(Recipe()))
    for part in parts:
        firsts = [line.split(" ")[0] for line in part]
        assert [word for word in firsts if word] == [
            "recipe", "originals", *recipes.ORIGINALS, "settings", *recipes.VARIANTS
        ]  # fmt: skip
    for whole in ("min(0.01, t^-1/2)", "max(0.001, RMS(p))", "(1 - 0.999^t)", ">= 128"):
        assert whole in text, "a line is broken where it should not be"
    assert printed_tables.TOGETHER not in text
    assert len(parts) <= {80: 5, None: 4, 100: 4, 120: 3, 160: 2, 200: 2}[columns]


def test_a_row_has_the_phrases_of_its_recipe(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_tables, "WIDEST", ONE_PER_LINE)
    monkeypatch.setattr(printed_tables, "READABLE", ONE_PER_LINE)
    (rows,) = tables(printed(columns=ONE_PER_LINE))
    by_name = {line.split(" ")[0]: re.split(r" {2,}|(?<=\S) $", line.rstrip()) for line in rows}
    for name in recipes.NAMES:
        assert by_name[name] == [name, *summary(recipes.shown(name)).values()]


def test_json_of_all(printed: Any) -> None:
    found = json.loads(printed("--json"))
    assert list(found["originals"]) == list(recipes.ORIGINALS)
    assert list(found["variants"]) == list(recipes.VARIANTS)
    assert found["originals"]["paper"] == summary(Recipe())


# --- One in full -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.NAMES)
def test_one_in_full(printed: Any, name: str) -> None:
    of, recipe = about(name), recipes.shown(name)
    text = " ".join(printed(name, columns=90).split())
    assert text.startswith(f"{name}: {of.what}")
    assert text.endswith(f"Source: {of.source}")
    for told in (*of.notes, recipe.describe()):
        assert " ".join(told.split()) in text
    documentation = inspect.getdoc(recipes.function(name)) or ""
    assert " ".join(documentation.partition("Source: ")[2].split()) == of.source != ""
    # Every argument, and what the docstring says of it.
    parameters = inspect.signature(recipes.function(name)).parameters
    assert [argument.name for argument in of.arguments] == list(parameters)
    assert [a.default for a in of.arguments] == [
        None if p.default is inspect.Parameter.empty else literal(p.default) for p in parameters.values()
    ]
    listed = documentation.partition("Args:\n")[2].partition("\n\n")[0]
    for entry in re.findall(r"^    (\w[^:]*): ", listed, re.M):
        for argument in re.split(r",\s+", entry):
            meaning = next(a.meaning for a in of.arguments if a.name == argument)
            assert meaning and meaning in " ".join(listed.split())
    for argument in of.arguments:
        assert f" {argument.name} " in text


@pytest.mark.parametrize("name", recipes.NAMES)
@pytest.mark.parametrize("columns", [80, 160])
def test_one_in_full_fits(printed: Any, name: str, columns: int) -> None:
    assert max(map(len, printed(name, columns=columns).splitlines())) <= columns


def test_json_of_one(printed: Any) -> None:
    for name in recipes.NAMES:
        found = json.loads(printed(name, "--json"))
        assert found["name"] == name
        assert found["describe"] == recipes.shown(name).describe()
        assert found["fields"].keys() == vars(Recipe()).keys()
        assert found["summary"] == summary(recipes.shown(name))
        assert [argument["name"] for argument in found["arguments"]] == [a.name for a in about(name).arguments]


def test_json_has_no_infinity(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "shown", lambda name: Recipe(clipping_threshold=float("inf"), weight_decay=abs))
    fields = json.loads(printed("paper", "--json"))["fields"]
    assert fields["clipping_threshold"] == "inf" and fields["weight_decay"] == {"function": "abs"}


def test_defaults_that_are_refused_are_said_to_be(printed: Any) -> None:
    told = [name for name in recipes.NAMES if "The defaults alone are refused" in printed(name)]
    refused = []
    for name in recipes.NAMES:
        try:
            recipes.resolve(name)
        except (TypeError, ValueError):
            refused.append(name)
    assert told == refused and "praxis" in refused


# --- Two side by side ------------------------------------------------------------------------------------------------


def test_two_side_by_side(printed: Any) -> None:
    text = printed("torch", "keras")
    found = difference("torch", "keras")
    differing = recipes.torch().diff(recipes.keras())
    assert list(found.fields) == list(differing)
    fields = text.partition("What that does")[0]
    for field in vars(Recipe()):
        assert (re.search(rf"^{field} ", fields, re.M) is not None) == (field in differing), field
    assert re.search(r"^lr +0\.01 +0\.001", fields, re.M)
    rows = {int(row[0]): row[1:] for line in text.splitlines() if (row := line.split()) and row[0].isdecimal()}
    assert list(rows) == [1, 2, 5, 10, 20, 50, 100]
    for step, row in rows.items():
        values = (found.rms[0][step - 1], found.rms[1][step - 1], found.apart[step - 1])
        assert [float(cell) for cell in row] == pytest.approx(values, rel=1e-2)
    # lr is smaller by 10 and nothing else makes a difference here: the way that is missing is 9/10.
    assert float(rows[1][0]) == pytest.approx(10 * float(rows[1][1]), rel=1e-2)
    assert float(rows[100][2]) == pytest.approx(0.9, rel=0.05)


def test_fields_without_effect_are_said_to_be(printed: Any) -> None:
    found = difference("paper", "keras")
    assert found.without_effect == ("weight_decay_by", "decay_before_scale")
    assert "Without effect, because what they belong to is off: weight_decay_by, decay_before_scale." in printed(
        "paper", "keras"
    )
    assert json.loads(printed("paper", "keras", "--json"))["without_effect"] == list(found.without_effect)
    assert difference("t5x", "flax").without_effect == ()
    assert "Without effect" not in printed("t5x", "flax")


def test_a_recipe_without_a_learning_rate_gets_one_and_it_is_said(printed: Any) -> None:
    text = printed("paper", "t5x")
    assert "t5x has no learning rate of its own: below it is 0.01." in text
    assert "paper has no learning rate" not in text
    assert json.loads(printed("paper", "t5x", "--json"))["given_lr"] == {"t5x": 0.01}


def test_no_difference_is_said(printed: Any) -> None:
    assert printed("paper", "paper") == "With their defaults paper and paper are the same recipe.\n"
    text = printed("paper", "torch")
    assert "eps1_mode" in text
    assert "both compute the same" in text and "RMS of the update" not in text
    assert "names, or later: eps1, eps1_mode, state_dtype." in " ".join(text.split())
    assert "Such a sample" not in printed("paper", "transformers")
    assert "both compute the same" not in printed("paper", "keras")


def test_who_does_not_move_is_not_divided_by(monkeypatch: pytest.MonkeyPatch, printed: Any) -> None:
    still = {"paper": Recipe(), "torch": Recipe(lr=lambda t: 0.0 if t < 3 else 0.1)}
    monkeypatch.setattr(recipes, "shown", still.__getitem__)
    assert np.isnan(difference("torch", "paper").apart[:2]).all()
    assert difference("torch", "paper").same is False
    rows = [line.split() for line in printed("torch", "paper").splitlines()]
    assert next(row for row in rows if row[:1] == ["2"])[1::2] == ["0", "-"]
    assert json.loads(printed("torch", "paper", "--json"))["apart_relative_to_way_of_first"][:2] == [None, None]


def test_json_of_two(printed: Any) -> None:
    found = json.loads(printed("torch", "keras", "--json"))
    assert found["recipes"] == ["torch", "keras"]
    assert found["fields"]["lr"] == ["0.01", "0.001"]
    assert [len(rms) for rms in found["rms_of_update"]] == [100, 100]
    assert len(found["apart_relative_to_way_of_first"]) == 100
    assert found["same"] is False


def test_the_plot(printed: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert printed("paper", "keras", "--plot", str(file)).endswith(f"Plot: {file}\n")
    differing = file.read_bytes()
    link = tmp_path / "\udcff.png"
    link.symlink_to(file)
    assert printed("paper", "paper", "--plot", str(link)).endswith("\\udcff.png\n")
    assert differing[:4] == file.read_bytes()[:4] == b"\x89PNG" and differing != file.read_bytes()
    assert link.is_symlink(), "what the link leads to is replaced, and not the link"


# --- Wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["papre"], "NAME must be one of those that `adafactor recipes` lists, got 'papre'. Did you mean 'paper'?"),
        (["paper", "T5X"], "got 'T5X'. Did you mean 't5x'?"),
        (["xyzzy"], "got 'xyzzy'. Without a name all of them are listed."),
        (["paper", "torch", "keras"], "NAME must be given at most twice, got 'paper torch keras'. Compare two"),
        (["paper", "--plot", "a.png"], "--plot must be given with two names, got '1 of them'. Name the two"),
        (["--plot", "a.png"], "--plot must be given with two names, got '0 of them'."),
        (["paper", "torch", "--plot", "a.svg"], "--plot must be a file name that ends in .png, got 'a.svg'."),
        (["paper", "torch", "--plot", ""], "--plot must be a file name that ends in .png, got ''. Name one."),
        (["paper", "torch", "--plot", "/dev/null/a.png"], "must be a file to write to, got '/dev/null/a.png'. Not"),
        (["paper", "torch", "--plot", "a" * 300 + ".png"], "--plot must be a file to write to, got 'aaa"),
        (["paper", "torch", "--plot", "fifo.png"], "got 'fifo.png'. It is there and no plain file: name another."),
        (["paper", "keras", "--plot", "no/folder/a.png"], "--plot must be a file to write to, got 'no/folder/a.png'"),
        (["paper", "--markdown"], "--markdown must be given alone, got '--markdown paper'. Leave the others out."),
        (["--markdown", "--json"], "--markdown must be given alone, got '--markdown --json'."),
    ],
)  # fmt: skip
def test_wrong_usage(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.png")
    assert main(["recipes", *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("adafactor recipes: ") and says in told.err, told.err
    assert told.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.png"]


def test_what_a_recipe_refuses_of_the_sample_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(first: str, second: str) -> None:
        raise ValueError(f"{first} refuses it")

    monkeypatch.setattr("adafactor_parity._recipes.command.difference", refuse)
    assert main(["recipes", "paper", "torch"]) == 2
    assert capsys.readouterr().err == "adafactor recipes: paper refuses it\n"


@pytest.mark.parametrize(
    "arguments", [[], ["t5x"], ["t5x", "torch"], ["t5x", "torch", "--plot", "a.png"], ["--markdown"]]
)
def test_no_framework_is_needed(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys; sys.modules.update(jax=None, torch=None, optax=None); from adafactor_parity._cli import main; "
    arguments = [str(tmp_path / word) if word.endswith(".png") else word for word in arguments]
    command = [sys.executable, "-W", "error", "-c", code + "sys.exit(main())", "recipes", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == "" and result.stdout, result.stderr


# --- The page --------------------------------------------------------------------------------------------------------


def test_the_page_is_current(printed: Any) -> None:
    written = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == printed("--markdown"), "docs/recipes.md is not what the recipes say now. Run `make docs`."


def test_the_page_has_a_row_and_a_section_for_every_recipe(printed: Any) -> None:
    page = printed("--markdown")
    sections = re.split(r"^## ", page, flags=re.M)[1:]
    assert [section.split("\n")[0] for section in sections] == ["All of them", *recipes.NAMES]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in sections[0].splitlines() if line.startswith("| [")]
    assert [row[0] for row in rows] == [f"[{name}](#{name})" for name in recipes.NAMES]
    assert {len(row) for row in rows} == {1 + len(summary(Recipe()))}
    for name, section in zip(recipes.NAMES, sections[1:], strict=True):
        flat = " ".join(section.split())
        of = about(name)
        for told in (of.what, *of.notes, f"Source: {of.source}"):
            assert told in flat
        changed = recipes.shown(name).diff(Recipe())
        listed = re.findall(r"^\| `(\w+)` \| `(.*)` \| `(.*)` \|$", section, re.M)
        assert [row[0] for row in listed] == list(changed)
        for row, pair in zip(listed, changed.values(), strict=True):
            assert [cell.replace(r"\|", "|") for cell in row[1:]] == [literal(value) for value in pair]
