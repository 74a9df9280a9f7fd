"""The parts of `adafactor verify`: the text, the two models, the zoo, the budgets, the comparison."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from rich.console import Console

from adafactor_parity import (
    _budgets,
    _model,
    _model_jax,
    _model_torch,
    _options,
    _piecewise,
    _stepping,
    _tables,
    _text,
    _zoo,
)
from adafactor_parity._cli import _parser
from adafactor_parity._deviation import Comparison, Deviation
from adafactor_parity._devices import Devices, find
from adafactor_parity._errors import UsageError
from adafactor_parity._progress import Progress
from adafactor_parity._runners import OracleRunner
from adafactor_parity._train import furthest
from adafactor_parity._verification import _finite
from adafactor_spec import dtypes, oracle, recipes, replace

CONFIG = _model.Config(vocabulary=11, context=8, width=12, heads=3, layers=2)

# Text ---------------------------------------------------------------------------------------------------------------


def test_the_default_text_is_there_and_its_last_tenth_is_held_out() -> None:
    corpus = _text.load(None)
    assert corpus.is_default
    assert corpus.characters > 400_000
    assert corpus.train.size + corpus.held_out.size == corpus.characters
    assert corpus.held_out.size == corpus.characters // 10
    assert corpus.train.max() < corpus.vocabulary == len(set(_text.default_text()))


def test_codes_stand_for_characters() -> None:
    text = "hello world " * 100
    corpus = _text.split(text, "a test")
    alphabet = sorted(set(text))
    codes = np.concatenate([corpus.train, corpus.held_out])
    assert "".join(alphabet[code] for code in codes) == text


def test_rare_characters_share_a_code() -> None:
    common = "".join(chr(0x4E00 + i) for i in range(_text.LARGEST_ALPHABET - 1)) * 3
    rare = "".join(chr(0x3041 + i) for i in range(20))
    corpus = _text.split(rare + common, "a test")
    codes = np.concatenate([corpus.train, corpus.held_out])
    assert corpus.vocabulary == _text.LARGEST_ALPHABET
    assert set(codes[: len(rare)]) == {_text.LARGEST_ALPHABET - 1}
    assert _text.LARGEST_ALPHABET - 1 not in codes[len(rare) :]


def test_batches_replay_from_the_seed_and_the_step() -> None:
    codes = _text.load(None).train
    how: dict[str, Any] = {"size": 4, "context": 16}
    inputs, targets = _text.batch(codes, seed=3, step=5, **how)
    again, _ = _text.batch(codes, seed=3, step=5, **how)
    assert inputs.shape == targets.shape == (4, 16)
    assert np.array_equal(inputs, again)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    for seed, step in ((3, 6), (4, 5)):
        other, _ = _text.batch(codes, seed=seed, step=step, **how)
        assert not np.array_equal(inputs, other)


def test_windows_cover_the_held_out_part_and_do_not_leave_it() -> None:
    codes = np.arange(101, dtype=np.int32)
    inputs, targets = _text.windows(codes, count=100, context=10)
    assert inputs.shape == (10, 10)
    assert inputs[0, 0] == 0
    assert targets[-1, -1] == 100


def test_the_entropy_of_single_characters() -> None:
    assert _text.unigram_entropy(np.array([0, 1] * 8, np.int32)) == pytest.approx(np.log(2))
    assert _text.unigram_entropy(np.zeros(8, np.int32)) == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "which is empty"),
        (b"short", "which has 5"),
        (b"\xff\xfe" * 1000, "which is not UTF-8"),
        (b"text \0 " * 1000, "which is binary"),
        (None, "which does not exist"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"--text must be .*{says}.*leave --text out"):
        _text.load(path)


def test_a_file_of_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Grüße. " * 200, encoding="utf-8-sig")
    corpus = _text.load(path)
    assert (corpus.source, corpus.characters, corpus.vocabulary) == ("a.txt", 1400, 7)
    assert not corpus.is_default


# The two models -----------------------------------------------------------------------------------------------------


def _batch() -> tuple[_text.Codes, _text.Codes]:
    codes = np.random.default_rng(1).integers(0, CONFIG.vocabulary, 100).astype(np.int32)
    return _text.batch(codes, seed=0, step=1, size=3, context=CONFIG.context)


def _in_jax(weights: _model.Weights) -> tuple[float, dict[str, Any]]:
    with jax.enable_x64(True):
        params = {name: jax.numpy.asarray(value, "float64") for name, value in weights.items()}
        value, grads = jax.jit(jax.value_and_grad(_model_jax.loss), static_argnums=3)(params, *_batch(), CONFIG)
        return float(value), {name: np.asarray(grad) for name, grad in grads.items()}


def _in_torch(weights: _model.Weights) -> tuple[float, dict[str, Any]]:
    model = _model_torch.Transformer(CONFIG, weights, dtype=torch.float64, device=torch.device("cpu"))
    value = model.loss(*(torch.from_numpy(codes).long() for codes in _batch()))
    value.backward()
    return value.item(), {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.max(np.abs(one[name] - other[name])) / np.max(np.abs(other[name]))) for name in other)


def test_the_models_agree_in_loss_and_gradient() -> None:
    weights = _model.initial_weights(CONFIG, seed=7)
    jax_loss, jax_grads = _in_jax(weights)
    torch_loss, torch_grads = _in_torch(weights)
    assert torch_grads.keys() == weights.keys()
    assert jax_loss == pytest.approx(torch_loss, rel=1e-12)
    assert _apart(jax_grads, torch_grads) < 1e-12
    assert all(np.any(grad) for grad in torch_grads.values()), "a weight without a gradient proves nothing"


def test_another_gelu_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=False))
    weights = _model.initial_weights(CONFIG, seed=7)
    assert _apart(_in_jax(weights)[1], _in_torch(weights)[1]) > 1e-6


def test_no_character_sees_the_future() -> None:
    weights = _model.initial_weights(CONFIG, seed=7)
    model = _model_torch.Transformer(CONFIG, weights, dtype=torch.float64, device=torch.device("cpu"))
    codes = torch.zeros(1, CONFIG.context, dtype=torch.long)
    changed = codes.clone()
    changed[0, 5] = 1
    same = (model(codes) == model(changed)).all(dim=-1)[0]
    assert same[:5].all()
    assert not same[5:].any()


def test_the_drift_names_the_worst_element() -> None:
    theirs = {"a": np.array([[1.0, -4.0]]), "b": np.array([2.0])}
    ours = {"a": np.array([[1.0, -4.2]]), "b": np.array([2.001])}
    drift = furthest(ours, theirs)
    assert (drift.parameter, drift.shape, drift.element) == ("a", (1, 2), (0, 1))
    assert drift.relative == pytest.approx(0.05)
    for bad in (np.nan, np.inf):
        assert furthest({**ours, "b": np.array([bad])}, theirs).relative == np.inf
        assert furthest(theirs, {**theirs, "b": np.array([bad])}).relative == np.inf
    assert furthest(theirs, theirs).relative == 0


# The zoo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_values_fit_the_dtype_span_the_decades_and_replay(dtype: str) -> None:
    steps = list(_zoo.gradients(dtype, seed=2))
    again = list(_zoo.gradients(dtype, seed=2))
    sizes = []
    for t, (grads, same) in enumerate(zip(steps, again, strict=True), start=1):
        for name, grad in grads.items():
            assert grad.shape == _zoo.SHAPES[name]
            assert np.all(np.isfinite(grad))
            assert np.array_equal(grad, dtypes.round_to(grad, dtype))
            assert np.array_equal(grad, same[name])
        assert any(np.any(grad) for grad in grads.values()) != (t == _zoo.ZERO_STEP)
        sizes.append(float(np.sqrt(np.mean(grads["large"] ** 2))))
    live = [size for size in sizes if size]
    assert np.log10(max(live) / min(live)) == pytest.approx(_zoo.DECADES.get(dtype, 12), abs=0.1)


def test_the_zoo_steps_every_recipe_and_the_modes_that_no_default_reaches() -> None:
    settings = _zoo.settings(recipes.NAMES)
    assert {setting.name for setting in settings} == set(recipes.NAMES)
    assert any(setting.recipe.amsgrad for setting in settings)
    assert {setting.recipe.momentum_of for setting in settings if setting.recipe.beta1 is not None} >= {"grad", "step"}
    assert any(setting.recipe.decays for setting in settings)
    assert len(_zoo.settings(recipes.NAMES, defaults_only=True)) == len(recipes.NAMES)
    ranks = {len(shape) for shape in _zoo.SHAPES.values()}
    assert ranks == {0, 1, 2, 3, 4, 5}


# Budgets and deviations ---------------------------------------------------------------------------------------------


def test_ulp_is_the_spacing_of_the_dtype() -> None:
    for value in (1.0, 1.999, 0.75, 3e-6, 1e-7, 5e4):
        for dtype in (np.float64, np.float32, np.float16):
            rounded = np.asarray(value, dtype)
            assert _budgets.ulp(float(rounded), np.dtype(dtype).name) == np.spacing(rounded), (value, dtype)
        rounded = np.asarray(value, ml_dtypes.bfloat16)
        following = np.nextafter(rounded, np.asarray(np.inf, ml_dtypes.bfloat16))
        assert _budgets.ulp(float(rounded), "bfloat16") == float(following) - float(rounded)


def test_budgets_are_derived() -> None:
    assert _budgets.budget("float64", 0.5).relative == 1e-12
    assert _budgets.budget("float32", 1e-7).relative == pytest.approx(4e-7)
    strict = _budgets.budget("bfloat16", 0.0)
    assert strict.allows(1e-2, ulp=1.0)
    assert not strict.allows(1e-2, ulp=1.1)
    assert not _budgets.budget("float64", 0.0).allows(1.1e-12, ulp=1.0)
    assert not strict.allows(float("nan"), float("nan"))


def test_the_comparison_names_step_and_element() -> None:
    reference = {"uneven": np.zeros((37, 19)), "empty vector": np.zeros(0)}
    value = {"uneven": np.zeros((37, 19)), "empty vector": np.zeros(0)}
    comparison = Comparison("float32")
    comparison.add(1, value, reference, {"uneven": 2.0, "empty vector": 0.0})
    value["uneven"][3, 4] = 1e-6
    comparison.add(2, value, reference, {"uneven": 2.0, "empty vector": 0.0})
    value["uneven"][0, 18] = -8e-6
    comparison.add(3, value, reference, {"uneven": 2.0, "empty vector": 0.0})
    assert comparison.worst_per_step() == [0.0, 5e-7, 4e-6]
    assert comparison.worst().where() == "shape (37, 19) (uneven), step 3, element (0, 18)"
    first = comparison.first_beyond(_budgets.Budget(1e-7, yardstick=0.0))
    assert first is not None
    assert (first.step, first.element, first.ulp) == (2, (3, 4), 1e-6 / 2**-22)
    assert comparison.first_beyond(_budgets.Budget(1e-5)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_beyond_every_budget(bad: float) -> None:
    reference, value = {"row": np.ones((1, 5))}, {"row": np.ones((1, 5))}
    value["row"][0, 2] = bad
    for one, other in ((value, reference), (reference, value), (value, value)):
        comparison = Comparison("float64")
        comparison.add(1, one, other, {"row": 1.0})
        assert comparison.worst().element == (0, 2)
        assert comparison.first_beyond(_budgets.Budget(1e300)) is not None


def test_the_yardstick_adds_as_optax_does() -> None:
    small = {"row": np.ones((1, 5))}
    for lr, same in ((1e-2, True), (1.0, False)):
        recipe = replace(recipes.paper(), lr=lr, relative_step=False, multiply_by_parameter_scale=False)
        plain = OracleRunner(recipe, small, "bfloat16", np.float32)
        added = OracleRunner(recipe, small, "bfloat16", np.float32, by_addition=True)
        for grads in _zoo.gradients("bfloat16", seed=0):
            plain.step({"row": grads["row"]})
            added.step({"row": grads["row"]})
        assert np.array_equal(plain.params()["row"], added.params()["row"]) == same


# Stepping -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_tensors(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Three tensors only: most of the time goes into compilation, which grows with their number."""
    for name in set(_zoo.SHAPES) - {"scalar", "uneven", "empty matrix"}:
        monkeypatch.delitem(_zoo.SHAPES, name)
    return find("cpu", ())


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_stepping_accepts_the_optimizers(few_tensors: Devices, dtype: str) -> None:
    advanced: list[None] = []
    (setting,) = _zoo.settings(["torch"], defaults_only=True)
    stepped = _stepping.step_all(setting, dtype, few_tensors, 0, lambda: advanced.append(None))
    assert stepped.failures() == []
    assert len(advanced) == _zoo.STEPS
    assert len(stepped.per_step["JAX from oracle"]) == _zoo.STEPS


def _off_by(factor: float) -> Callable[..., Any]:
    right = oracle.parameter_scale
    return lambda p_rms, eps2, largest: right(p_rms, eps2, largest) * p_rms.dtype.type(factor)


# In 16 bits most of a small step is lost in the rounding of the weight, so that only large steps tell much.
@pytest.mark.parametrize(
    ("recipe", "dtype", "factor"),
    [
        ("paper", "float64", 1 + 1e-9),
        ("paper", "float32", 1 + 1e-4),
        ("optax", "bfloat16", 1.2),
        ("optax", "float16", 1.02),
    ],
)
def test_stepping_rejects_a_step_that_is_a_little_too_long(
    few_tensors: Devices, monkeypatch: pytest.MonkeyPatch, recipe: str, dtype: str, factor: float
) -> None:
    monkeypatch.setattr(oracle, "parameter_scale", _off_by(factor))
    (setting,) = _zoo.settings([recipe], defaults_only=True)
    stepped = _stepping.step_all(setting, dtype, few_tensors, 0, lambda: None)
    assert set(stepped.beyond) == {"JAX from oracle", "torch from oracle"}
    assert all(f"recipe {recipe}" in line and "shape (" in line for line in stepped.failures())


def test_the_learning_rate_steps_down_in_both_frameworks() -> None:
    run = _piecewise.run()
    at = {t: run.scheduled[t - 1] for t in (1, 9, 10, 19, 20, 29, 30, 40)}
    assert at == {1: 1e-2, 9: 1e-2, 10: 5e-3, 19: 5e-3, 20: 2.5e-3, 29: 2.5e-3, 30: 1.25e-3, 40: 1.25e-3}
    assert run.worst() < _budgets.SCHEDULE_RELATIVE
    late = _piecewise.PiecewiseRun(run.scheduled, run.torch_group, run.torch_measured, [1e-2, *run.jax_measured[:-1]])
    assert late.worst() > 0.5


# What surrounds it --------------------------------------------------------------------------------------------------


def test_the_command_replays_the_options() -> None:
    wanted = _options.check(
        recipe_names=["optax", "torch"],
        dtype_names=["float32"],
        steps=7,
        quick=True,
        device="cuda",
        text="a file.txt",
        out="there",
        seed=3,
    )
    assert wanted.recipes == ("torch", "optax")
    parsed = vars(_parser().parse_args(wanted.command().split(" ", 1)[1].replace("'a file.txt'", "a_file.txt").split()))
    again = _options.check(
        recipe_names=parsed["recipe"],
        dtype_names=parsed["dtype"],
        text=parsed["text"].replace("_", " "),
        **{name: parsed[name] for name in ("steps", "quick", "device", "out", "seed")},
    )
    assert again == wanted


def test_the_table_fits_100_columns_with_every_label_whole() -> None:
    assert _tables.WIDTH == 100
    worst = dict.fromkeys(_stepping.PAIRS, Deviation("uneven", 1, (0, 0), 1.2e-6, 0.001))
    settings = _zoo.settings(recipes.NAMES)
    rows = [_stepping.Stepped(s, "bfloat16", _budgets.Budget(1e-3), worst, {}, worst) for s in settings]
    stream = StringIO()
    Console(file=stream, width=_tables.WIDTH).print(_tables.stepping(rows))
    printed = stream.getvalue()
    assert "…" not in printed
    assert all(f"\n{s.label} " in printed for s in settings)
    assert "FAILED" in printed
    assert "1.2e-06 (<.01)" in printed


def test_progress_is_a_bar_on_a_terminal_and_nothing_in_a_pipe() -> None:
    written = {}
    for terminal in (True, False):
        stream = StringIO()
        with Progress(3, Console(file=stream, force_terminal=terminal, width=100)) as progress:
            progress.describe("stepping")
            progress.advance()
        written[terminal] = stream.getvalue()
    assert "stepping" in written[True]
    assert "1/3" in written[True]
    assert written[False] == ""


def test_the_report_is_strict_json() -> None:
    plain = _finite({"a": [1.5, float("inf")], "b": (float("nan"), None, True)})
    assert json.loads(json.dumps(plain, allow_nan=False)) == {"a": [1.5, "inf"], "b": ["nan", None, True]}
