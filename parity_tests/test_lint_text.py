"""`adafactor lint`: how the text of a call is read, what of it is refused, and the command itself."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adafactor_parity import Lint, lint
from adafactor_parity._cli import main
from adafactor_spec import recipes

ROOT = Path(__file__).resolve().parents[1]
# Texts that a parser has to nest: some it refuses itself, some it gives up on, and the rest would end in a
# RecursionError later.
DEEP = [
    "-" * 3000 + "1",
    "-" * 90_000 + "1",
    "[" * 60 + "]" * 60,
    "not " * 500 + "x",
    "1 + " * 500 + "1",
    "a[" * 90 + "0" + "]" * 90,
    "lambda: " * 500 + "1",
    "x" + "[0]" * 500,
]


def _stdin(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="ascii", errors="surrogateescape")  # as in the C locale


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transformers.Adafactor(lr=args.lr)", "lr must be a literal, got args.lr. Put its value in its place."),
        ("transformers.Adafactor(p, args.lr)", "lr must be a literal, got args.lr. Put its value in its place."),
        ("transformers.Adafactor(p, eps=(a, 1))", "eps must be a literal, got a. Put its value in its place."),
        ("torch.optim.Adafactor(p, lr=10 * 1e-3)", "lr must be a literal, got 10 * 1e-3. Put"),
        ("torch.optim.Adafactor(p, lr=-x)", "lr must be a literal, got x."),
        ("torch.optim.Adafactor(p, lr=float(x))", "lr must be a literal, got x."),
        ("torch.optim.Adafactor(p, lr=float('x'))", "lr must be a literal, got float('x')."),
        ("torch.optim.Adafactor(p, lr=1j)", "lr must be a literal, got 1j."),
        ("torch.optim.Adafactor(p, lr=f'{x}')", "lr must be a literal, got f'{x}'."),
        ("torch.optim.Adafactor(p, lr={**x})", "lr must be a literal, got {**x}."),
        ("torch.optim.Adafactor(p, lr={1, 2})", "lr must be a literal, got {1, 2}."),
        (
            "optax.adafactor(optax.cosine_decay_schedule(1e-3, 100))",
            "Put a number in its place here, and where it is a schedule",
        ),
        ("flax.optim.Adafactor(lambda t: 1 / t)", "recipes.<name>(learning_rate=schedule, ...)"),
        (
            "optax.adafactor(weight_decay_mask=mask)",
            "weight_decay_mask must be a literal, got mask. Leave it out here and",
        ),
        ("torch.optim.Adafactor(1e-3)", "params must be the model's parameters, got 1e-3. Give 1e-3 by its name."),
        ("torch.optim.Adafactor(p, **kwargs)", "**kwargs must be written out"),
        ("torch.optim.Adafactor(*args)", "*args must be written out"),
        ("torch.optim.Adafactor(p, lr=1, lr=2)", "lr must be given once"),
        ("Adafactor(p)", "  torch.optim.Adafactor  (--from torch)"),
        ("AdafactorOptimizer()", "  mesh_tensorflow.optimize.AdafactorOptimizer  (--from mesh_tensorflow)"),
        ("AdaFactor(p)", "  pytorch_optimizer.AdaFactor  (--from pytorch_optimizer)"),
        ("my.Adafactor(p)", "my.Adafactor is not a constructor known here. Write the module"),
        ("transfomers.Adafacter(p)", "Did you mean 'transformers.Adafactor'?"),
        ("torch.optim.AdamW(p)", "torch.optim.AdamW is not a constructor known here."),
        ("f(x)", "f is not a constructor known here."),
        ("get()(p)", "The call must be of a dotted name, got get()."),
        ("adafactor_jax.adafactor(1e-3)", "this project's own"),
        ("praxis.optimizers.Adafactor()", "lint that call"),
        ("optax.chain(optax.clip(1.0), optax.adafactor(1e-3))", "Give it alone: optax.adafactor(1e-3)"),
        ("torch.optim.Adafactor", "The text must be a call, got 'torch.optim.Adafactor'."),
        ("a, b = optax.adafactor(), 1", "The text must be a call"),
        ("import torch", "The text must be a call, got 'import torch'."),
        ("import torch; torch.optim.Adafactor(p)", "The text must be one call, got 2 statements."),
        ("optax.adafactor(", "The text is not Python: '(' was never closed."),
        ("optax.adafactor(\n1,\n2 3)", "The text is not Python: line 3: "),
        ("", "The text is empty."),
        ("  \n", "The text is empty."),
        ("# nothing", "The text must be one call, got 0 statements."),
        ("optax.adafactor(\0)", "The text is not Python: "),
        ("optax.adafactor(\udcff)", "The text is not Python: "),
        ("optax.adafactor(" + "-" * 100_000 + "1)", "The text must be one call of at most 100,000 characters, got 100"),
        *((f"optax.adafactor({deep})", "The text must be nested at most 50 deep, got more.") for deep in DEEP),
        ("f" + "()" * 900 + "(p)", "The text must be nested at most 50 deep"),
        ("optax.adafactor(" + "-" * 40 + "x)", "learning_rate must be a literal, got "),
        ("optax.adafactor(0x" + "f" * 5000 + ")", "The text must have whole numbers below 2e+308, got a larger one."),
        ("f(" + ", ".join(f"a{i}=1" for i in range(999)) + ")(p)", "a dotted name, got f(a0=1, a1=1"),
        (
            '{"cells": [], "nbformat": 4}',
            'The text must be a call, got \'{"cells": [], "nbformat": 4}\'. It is a notebook:',
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        lint(text)
    assert len(str(caught.value)) < 2000


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text must be a string, got <class 'bytes'>"):
        lint(b"optax.adafactor(1e-3)")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffoptax.adafactor(1e-3)",
        "\ufeff    optax.adafactor(\r\n        1e-3,\r\n    )\r\n",
        "optax.adafactor(\r    1e-3\r)\r",
        "\n\n\toptax.adafactor(1e-3)\n\n",
    ],
)
def test_what_a_file_has_around_its_lines_does_not_matter(text: str) -> None:
    assert lint(text).arguments == {"learning_rate": 1e-3}


def test_warnings_about_the_text_are_not_shown() -> None:
    rules = r"{'.*\d': 'HEURISTIC_RULE', '.*': 'HEURISTIC_RULE'}"  # an escape that Python warns of
    assert lint(f"t5x.adafactor.Adafactor(1e-3, factor_map={rules})").reproduced


def test_every_argument_that_is_not_a_literal_is_named() -> None:
    with pytest.raises(ValueError, match="lr must be a literal") as caught:
        lint("transformers.Adafactor(p, lr=a, weight_decay=b, beta1=0.9)")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["lr", "weight_decay"]


@pytest.mark.parametrize(
    "value", ["float('inf')", 'float("inf")', "math.inf", "np.inf", "+float('inf')", "torch.inf", "1e999"]
)
def test_infinities(value: str) -> None:
    assert lint(f"transformers.Adafactor(p, clip_threshold={value})").arguments == {"clip_threshold": math.inf}


@pytest.mark.parametrize(
    "dtype", ["torch.bfloat16", "jnp.bfloat16", "'bfloat16'", "ml_dtypes.bfloat16", "jax.numpy.bfloat16"]
)
def test_dtypes(dtype: str) -> None:
    assert (
        lint(f"optax.adafactor(1e-3, momentum=0.9, dtype_momentum={dtype})").arguments["dtype_momentum"] == "bfloat16"
    )


@pytest.mark.parametrize(
    ("called", "original"),
    [
        ("optim.Adafactor", "torch"),
        ("transformers.optimization.Adafactor", "transformers"),
        ("tf.keras.optimizers.Adafactor", "keras"),
        ("optimizers.Adafactor", "keras"),
        ("t5x.adafactor.Adafactor", "t5x"),
        ("adafactor.Adafactor", "t5x"),
        ("adafactor.AdaFactor", "adafactor_pytorch"),
        ("mesh_tensorflow.optimize.AdafactorOptimizer", "mesh_tensorflow"),
        ("optimize.AdafactorOptimizer", "mesh_tensorflow"),
        ("big_vision.optax.scale_by_adafactor", "big_vision"),
        ("AdafactorBigVision", "timm_big_vision"),
        ("adafactor", "optax"),
    ],
)
def test_names_that_people_use(called: str, original: str) -> None:
    assert lint(f"{called}()").recipe_name == original


def test_a_short_name_that_others_share_is_said_to_be_so() -> None:
    assert "--from pytorch_optimizer" in " ".join(lint("adafactor.AdaFactor(p)").remarks)
    assert "--from adafactor_pytorch_parent" in " ".join(lint("adafactor.AdaFactor(p)").remarks)
    assert not lint("transformers.Adafactor(p)").remarks


def test_the_user_decides_which_original_it_is() -> None:
    assert lint("Adafactor(p, 1e-3)", original="timm").recipe == recipes.timm(1e-3)
    assert lint("make()(p, 1e-3)", original="timm").recipe == recipes.timm(1e-3)
    assert lint("recipes.timm(1e-3)", original="timm").recipe == recipes.timm(1e-3)
    with pytest.raises(ValueError, match="Did you mean 'transformers'"):
        lint("Adafactor(p)", original="transformer")


# ------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("where", ["torch.optim.Adafactor({})", "torch.optim.Adafactor(p, lr={})", "{}", "({})(p)"])
def test_nothing_is_executed(where: str, tmp_path: Path) -> None:
    target = tmp_path / "made"
    text = where.format(f"__import__('os').system('touch {target}')")
    if where == "torch.optim.Adafactor({})":  # the parameters are not looked at
        assert str(target) not in json.dumps(lint(text).as_dict()["code"])
    else:
        with pytest.raises(ValueError, match=r"literal|dotted name|known here"):
            lint(text)
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["torch.optim.Adafactor(p, foreach=True)"], 0, "No effect, whatever the value\n  foreach = True\n", ""),
        (
            ["transformers.Adafactor(p, lr=1e-4)"],
            1,
            "transformers.Adafactor: THE ORIGINAL REFUSES IT\n\nlr must be None",
            "",
        ),
        (["torch.optim.Adafactor(p, lr=lr)"], 2, "", "adafactor lint: lr must be a literal, got lr."),
        (["Adafactor(p)"], 2, "", "adafactor lint: Adafactor is called in several libraries."),
        (["Adafactor(p)", "--from", "torch"], 0, "Adafactor, read as torch.optim.Adafactor: reproduced\n", ""),
    ],
)
def test_the_command(arguments: list[str], status: int, out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *arguments]) == status
    printed = capsys.readouterr()
    assert out in printed.out and printed.err.startswith(err)
    assert bool(printed.out) == (status != 2) and bool(printed.err) == (status == 2)
    assert max((len(line) for line in printed.out.splitlines()), default=0) <= 120


def test_the_command_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", _stdin(b"    opt = optax.adafactor(\n        1e-3,  # the peak\n    )\n"))
    assert main(["lint", "-", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["arguments"] == {"learning_rate": 1e-3}
    assert printed["reproduced"] is True
    assert printed["code"]["jax"].keys() == {"by_recipe", "by_fields"}
    assert printed["recipe"]["factoring"]["kind"] == "largest_two"
    assert printed.keys() > set(vars(Lint("", "", "")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbfoptax.adafactor(1e-3)\r\n", None),
        ("t5x.adafactor.Adafactor(1e-3, factor_map={'\u03b2': 'HEURISTIC_RULE'})".encode(), None),
        (
            "optax.adafactor(1e-3)".encode("utf-16"),
            "standard input must be text in UTF-8, got 'invalid start byte at byte 0'.",
        ),
        (b"\0" * 3_000_000, "The text must be one call of at most 100,000 characters"),
        (b"\0" * 30, "The text is not Python: source code"),
        (b"", "The text is empty."),
    ],
)
def test_standard_input_is_utf_8_whatever_the_locale(
    content: bytes, says: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", _stdin(content))
    assert main(["lint", "-"]) == (0 if says is None else 2)
    assert capsys.readouterr().err.startswith("" if says is None else f"adafactor lint: {says}")


def test_a_standard_input_that_is_closed_or_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["lint", "-"]) == 2
    assert capsys.readouterr().err.startswith("adafactor lint: standard input must be open, got 'a closed one'.")
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["lint", "-"]) == 2
    assert capsys.readouterr().err.startswith("adafactor lint: standard input must be readable, got 'not readable'.")


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "transformers.Adafactor(p, clip_threshold=math.inf)", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == {"clip_threshold": "inf"}


def test_no_framework_is_loaded() -> None:
    code = (
        "import sys; from adafactor_parity._cli import main; status = main(['lint', 'optax.adafactor(1e-3)']); "
        "assert not {'jax', 'torch', 'optax', 'rich'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_groups_written_out_are_said_not_to_be_looked_at() -> None:
    groups = "[{'params': a, 'lr': 1e-3}, {'params': b}]"
    for text in (f"timm.optim.Adafactor({groups}, lr=1e-2)", f"timm.optim.Adafactor(lr=1e-2, params={groups})"):
        assert any("parameter groups are not looked at" in remark for remark in lint(text).remarks)
    refused = lint("transformers.Adafactor([dict(params=a, lr=1e-3)], relative_step=False)")
    assert refused.remarks and refused.verdict == "not taken here"
    for text in ("timm.optim.Adafactor([a, b], lr=1e-2)", "timm.optim.Adafactor([{'params': a}], lr=1e-2)"):
        assert not lint(text).remarks


def test_t5x_s_own_words_are_literals() -> None:
    pairs = "[('a', adafactor.HEURISTIC_RULE), ('.*', HeuristicRule.token)]"
    for text in (f"HParamMap({pairs})", f"adafactor.HParamMap(rules={pairs})"):
        found = lint(f"t5x.adafactor.Adafactor(learning_rate=1e-3, factor_map={text})")
        assert found.recipe == recipes.t5x(1e-3, factor_map={"a": "HEURISTIC_RULE", ".*": "HEURISTIC_RULE"})


def test_the_verdict_says_who_refuses() -> None:
    calls = {
        "transformers.Adafactor(p, relative_step=False)": "the original refuses it",
        "pytorch_optimizer.AdaFactor(p, ams_bound=True)": "not reproduced here",
        "transformers.Adafactor(p, eps=(0.0, 1e-3))": "not reproduced here",
        "transformers.Adafactor(p, eps=1e-30)": "not taken here",
        "transformers.Adafactor(p)": "reproduced",
    }
    assert {text: lint(text).verdict for text in calls} == calls
