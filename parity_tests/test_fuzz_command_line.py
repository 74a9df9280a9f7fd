"""Whatever the command line and its files are: the right output, a verdict, or one clear line and status 2."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafactor_parity import lint
from adafactor_parity._verify import verify
from adafactor_parity._verify.devices import find
from adafactor_parity._verify.report.write import make_folder
from adafactor_spec import dtypes, recipes, to_plain

from .hostile import cases
from .hostile_command import OUTPUTS, judged
from .peers import arguments as originals

# ---------------------------------------------------------------------------------------------------------------- lint

LITERALS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0.8, -0.8, 1e-3, 0.0, -0.0, 1e-30, 1.0, 5e-324, 1e308, -1.0]),
        st.sampled_from([0, 1, 128, -1, 2**31, 2**63, 10**400, -(10**400)]),
        st.sampled_from(["bfloat16", "float32", "pow", "adam", ".*", "(", "", "standard", "\n", "\x1b[0m", "é", "🙂"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
    max_leaves=4,
)
# In place of a literal: what has to be refused, or read as what it is.
TEXTS = (
    "args.lr", "1e-3 * 2", "lambda t: 1", "[x for x in y]", "f'{x}'", "1j", "b'x'", "...", "{1, 2}", "*a", "(yield)",
    "x := 1", "-(-1)", "not 1", "'\\d'", "0777", "1_000", "--1", "1if 1else 2", "a.b.c()", "await x",
)  # fmt: skip
MUTATIONS: tuple[Callable[[str], str], ...] = (
    lambda text: "\ufeff" + text,
    lambda text: text + "\r\n",
    lambda text: text.replace("(", "(\n", 1),
    lambda text: text + ";" + text,
    lambda text: "optimizer = " + text,
    lambda text: text + ",",
    lambda text: text + "\0",
    lambda text: text[:-1],
    lambda text: text[1:],
    lambda text: "(" * 300 + text + ")" * 300,
    lambda text: "-" * 5000 + text,
    lambda text: text.replace("=", "=1" + "0" * 5000 + "+", 1),
    lambda text: text.replace("lr", "\udcff"),
    lambda text: text + "  # a comment: é",
    lambda text: "if x:\n\t" + text,
    lambda text: text * 3000,
    lambda text: '{"nbformat": 4, "cells": []}',
    lambda text: "",
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A recipe, and literal arguments for it."""
    name = draw(st.sampled_from(recipes.ORIGINALS))
    drawn = getattr(originals, name, None)
    usual = {} if drawn is None else drawn(np.random.default_rng(draw(st.integers(0, 1000))))
    known = list(recipes.function(name).__annotations__)
    more = draw(st.dictionaries(st.sampled_from([*known, "lr", "betas"]), LITERALS, max_size=2))
    given = {key: value for key, value in {**usual, **more}.items() if key not in ("return", "weight_decay_mask")}
    return name, {key: value for key, value in given.items() if not callable(value)}


def written(name: str, arguments: dict[str, Any]) -> str:
    """The call as text. Python has no literal of an infinity."""
    given = ", ".join(f"{key}={value!r}".replace("inf", 'float("inf")') for key, value in arguments.items())
    return f"recipes.{name}({given})"


@cases(60, 2500)
@given(calls(), st.sampled_from(["", "--json"]), st.sampled_from(["usual", "usual", *OUTPUTS]), st.booleans())
def test_lint_says_what_the_recipe_does(drawn: Any, option: str, output: str, piped: bool) -> None:
    name, arguments = drawn
    text = written(name, arguments)
    argv = ["lint", "-" if piped else text, *([option] if option else [])]
    status, out = judged(argv, output, text.encode() if piped else b"")
    if output != "usual":
        return
    try:
        recipe = recipes.function(name)(**arguments)
    except (ValueError, TypeError):
        recipe = None
    if "0" * 400 in text:  # a whole number that no float can hold is not read at all
        assert status == 2, out
        return
    assert status == (1 if recipe is None else 0), out
    if recipe is None:
        return
    if option:
        found = json.loads(out)
        assert found["reproduced"] is True
        assert found["recipe"] == lint(text).as_dict()["recipe"]
        assert found["recipe"]["beta2"] == json.loads(json.dumps(to_plain(recipe.beta2)))


@cases(60, 2500)
@given(
    calls(),
    st.lists(st.sampled_from(MUTATIONS), max_size=2),
    st.sampled_from(["", *TEXTS]),
    st.sampled_from(
        [[], ["--json"], ["--from", "torch"], ["--from", "Torch "], ["--from", ""], ["--from=t5x", "--json"]]
    ),
    st.sampled_from(["argument", "standard input", "bytes"]),
)
def test_lint_takes_any_text(
    drawn: Any, changes: list[Callable[[str], str]], other: str, options: list[str], how: str
) -> None:
    name, arguments = drawn
    text = written(name, arguments)
    text = text.replace("=", f"={other} or ", 1) if other else text
    for change in changes:
        text = change(text)
    raw = text.encode("utf-16" if how == "bytes" else "utf-8", "surrogateescape" if how != "bytes" else "replace")
    judged(["lint", *options, text if how == "argument" else "-"], stdin=raw)


# ------------------------------------------------------------------------------------------------------------- recipes


@cases(30, 1000)
@given(
    st.lists(
        st.sampled_from([*recipes.NAMES, "papre", "Torch", "", "-", "\0", "t5x\n", "x" * 100_000, "\udcff"]), max_size=3
    ),
    st.lists(
        st.sampled_from(["--json", "--markdown", "--plot", "--plot=x.txt", "--jsn", "--plot=", "--help", "--"]),
        max_size=2,
    ),
    st.sampled_from(["usual", "usual", "usual", *OUTPUTS]),
)
def test_recipes(names: list[str], options: list[str], output: str) -> None:
    if len(set(names)) == 2 == len(names):
        names = names[:1]  # to compare two takes a second
    status, out = judged(["recipes", *options, *names], output)
    if status == 0 and output == "usual":
        assert out.strip()
        assert "--json" not in options or "--help" in options or json.loads(out)


# -------------------------------------------------------------------------------------------------------------- verify


class Reached(BaseException):
    """Everything was checked, and the figures would be measured now."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind that there is."""
    made = tmp_path_factory.mktemp("files")
    (made / "good.txt").write_text("All work and no play. " * 100)
    (made / "bom.txt").write_text("\ufeff" + "All work and no play. " * 100)
    (made / "empty.txt").touch()
    (made / "short.txt").write_text("short")
    (made / "binary").write_bytes(bytes(range(256)) * 20)
    (made / "nul.txt").write_text("a\0" * 2000)
    (made / "latin.txt").write_bytes("é".encode("latin-1") * 2000)
    (made / "one letter.txt").write_text("a" * 2000)
    (made / "folder").mkdir()
    (made / "full").mkdir()
    (made / "full" / "index.html").mkdir()
    (made / "dangling").symlink_to(made / "nowhere")
    (made / "loop").symlink_to(made / "loop")
    (made / "link").symlink_to(made / "folder")
    os.mkfifo(made / "pipe")
    (made / "line\nbreak.txt").write_text("All work and no play. " * 100)
    (made / os.fsdecode(b"\xff.txt")).write_text("All work and no play. " * 100)
    return made


FILES = (
    "good.txt", "bom.txt", "empty.txt", "short.txt", "binary", "nul.txt", "latin.txt", "one letter.txt", "folder",
    "full", "dangling", "loop", "link", "pipe", "line\nbreak.txt", "\udcff.txt", "none", "new/er", "good.txt/x",
    "x" * 300, "a\0b",
)  # fmt: skip
ABSOLUTE = ("", "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/proc/none", "-", "~", ".", "\0")
PATHS = st.one_of(
    st.sampled_from(FILES).map(lambda name: ("in", name)), st.sampled_from(ABSOLUTE).map(lambda p: ("", p))
)
WHOLE = (
    "0",
    "1",
    "60",
    "-1",
    "1e3",
    "0x10",
    "1_000",
    "٣",
    " 5 ",
    "+5",
    "",
    "nan",
    "9" * 5000,
    str(10**20),
    "2.0",
    "-0",
    "None",
)
DEVICES = (
    "cpu", "", "cpu:0", "cpu:1", "cpu:99", "CPU", "cpu ", "cuda", "meta", "gpu", "tpu", "abacus", "cpu:-1", "cpu:x",
    "\0", "mps", "xla", "privateuseone", "x" * 5000, "cpu:\N{ARABIC-INDIC DIGIT ZERO}",
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "--recipe": st.sampled_from([*recipes.NAMES, "papre", "", "praxis", "x" * 100_000, "Paper"]),
    "--dtype": st.sampled_from([*dtypes.NAMES, "float23", "", "float64 ", "FLOAT32", "bf16"]),
    "--steps": st.sampled_from(WHOLE),
    "--seed": st.sampled_from(WHOLE),
    "--device": st.sampled_from(DEVICES),
    "--text": PATHS,
    "--out": PATHS,
    "--quick": st.none(),
    "--json": st.none(),
    "--quik": st.none(),
    "--help": st.none(),
}


@st.composite
def arguments(draw: st.DrawFn) -> list[tuple[str, Any]]:
    names = draw(st.lists(st.sampled_from(list(OPTIONS)), min_size=1, max_size=4))
    return [(name, draw(OPTIONS[name])) for name in names]


def names_of(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.lstat().st_mtime_ns


@cases(60, 2000)
@given(drawn=arguments(), missing=st.booleans())
def test_verify(folder: Path, drawn: list[tuple[str, Any]], missing: bool) -> None:
    """It measures what it is asked to, or says in one line what is wrong and leaves the files alone."""
    asked: list[Any] = []

    def measure(options: Any, corpus: Any) -> Any:
        devices = find(options.device, options.dtypes)
        make_folder(options.out)
        asked.append((options, corpus, devices))
        raise Reached

    argv = ["verify"]
    for name, value in drawn:
        given = (str(folder / value[1]) if value[0] else value[1]) if isinstance(value, tuple) else value
        argv += [name] if value is None else [f"{name}={given}"]
    argv += ["--out"] if missing and len(drawn) > 3 else []
    if not any(name == "--out" for name, _ in drawn):
        argv += ["--out", str(folder / "folder")]
    before = list(names_of(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "measure", measure)
        patch.chdir(folder)
        try:
            status, out = judged(argv)
        except Reached:
            (options, corpus, _), *_ = asked
            assert corpus.characters >= 1000
            last = dict(drawn)
            assert (
                options.recipes == tuple(n for n in recipes.NAMES if n in [v for k, v in drawn if k == "--recipe"])
                or "--recipe" not in last
            )
            assert (
                options.dtypes == tuple(n for n in dtypes.NAMES if n in [v for k, v in drawn if k == "--dtype"])
                or "--dtype" not in last
            )
            assert "--steps" not in last or options.steps == int(last["--steps"]) >= 0
            assert "--seed" not in last or options.seed == int(last["--seed"]) >= 0
            assert options.device == last.get("--device", "cpu")
            return
    assert status == 2 or "--help" in argv, out
    assert list(names_of(folder)) == before
