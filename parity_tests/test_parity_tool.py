"""The parts of `adafactor verify` but for training: the zoo, the budgets, the comparison, the options, the table."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from io import StringIO
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
import torch
from rich.console import Console

from adafactor_parity import OracleRunner
from adafactor_parity._cli import _parser
from adafactor_parity._verify.devices import find
from adafactor_parity._verify.options import check
from adafactor_parity._verify.piecewise import PiecewiseRun, run_piecewise
from adafactor_parity._verify.report import tables
from adafactor_parity._verify.stepping import budgets, zoo
from adafactor_parity._verify.stepping.deviation import Comparison, Deviation
from adafactor_parity._verify.stepping.step_all import PAIRS, Stepped, step_all
from adafactor_parity._verify.tasks import MOST_THREADS, Stopped, Tasks
from adafactor_parity._verify.training.model import Config, initial_weights
from adafactor_parity._verify.verification import _finite
from adafactor_parity.progress import Progress
from adafactor_spec import dtypes, factoring, oracle, recipes, replace

# The zoo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_values_fit_the_dtype_span_the_decades_and_replay(dtype: str) -> None:
    steps = list(zoo.gradients(tuple(zoo.SHAPES), dtype, seed=2))
    again = list(zoo.gradients(tuple(zoo.SHAPES), dtype, seed=2))
    sizes = []
    for t, (grads, same) in enumerate(zip(steps, again, strict=True), start=1):
        for name, grad in grads.items():
            assert grad.shape == zoo.SHAPES[name]
            assert np.all(np.isfinite(grad))
            assert np.array_equal(grad, dtypes.round_to(grad, dtype))
            assert np.array_equal(grad, same[name])
        assert any(np.any(grad) for grad in grads.values()) != (t == zoo.ZERO_STEP)
        sizes.append(float(np.sqrt(np.mean(grads["large"] ** 2))))
    live = [size for size in sizes if size]
    assert np.log10(max(live) / min(live)) == pytest.approx(zoo.DECADES.get(dtype, 12), abs=0.1)


def test_the_zoo_steps_every_recipe_and_the_modes_that_no_default_reaches() -> None:
    settings = zoo.settings(recipes.NAMES)
    assert {setting.name for setting in settings} == set(recipes.NAMES)
    assert any(setting.recipe.needs_names for setting in settings)
    assert any(setting.recipe.amsgrad for setting in settings)
    assert {setting.recipe.momentum_of for setting in settings if setting.recipe.beta1 is not None} >= {"grad", "step"}
    assert any(setting.recipe.decays for setting in settings)
    assert len(zoo.settings(recipes.NAMES, defaults_only=True)) == len(recipes.NAMES)
    for setting in settings:
        for name, shape in zoo.SHAPES.items():
            factoring.plan(setting.recipe.factoring, shape, name)
    for name, weight in initial_weights(Config(vocabulary=50), seed=0).items():
        for recipe in recipes.NAMES:
            factoring.plan(zoo.trained([recipe]).recipe.factoring, weight.shape, name)
    for names in (zoo.QUICK, zoo.SHAPES):
        shapes = [zoo.SHAPES[name] for name in names]
        assert {len(shape) for shape in shapes} == {0, 1, 2, 3, 4, 5}
        assert any(1 in shape for shape in shapes)
        assert any(0 in shape for shape in shapes)
        assert any(len(shape) == 2 and min(shape) >= 128 for shape in shapes), "where optax begins to factor"


def test_every_pair_of_tensor_recipe_and_dtype_is_stepped() -> None:
    settings = zoo.settings(recipes.ORIGINALS)
    stepped = {(s, d): set(zoo.tensors(s, d, dtypes.NAMES)) for s in settings for d in dtypes.NAMES}
    for setting in settings:
        assert set.union(*(stepped[setting, dtype] for dtype in dtypes.NAMES)) == set(zoo.SHAPES)
    for dtype in dtypes.NAMES:
        assert set.union(*(stepped[setting, dtype] for setting in settings)) == set(zoo.SHAPES)
    assert all(tensors >= set(zoo.CORE) for tensors in stepped.values())
    for setting in settings:  # one dtype alone, as when a failure is looked at, has all tensors
        assert zoo.tensors(setting, "float32", ["float32"]) == tuple(zoo.SHAPES)
        assert zoo.tensors(setting, "float32", dtypes.NAMES, quick=True) == zoo.QUICK


# Budgets and deviations ---------------------------------------------------------------------------------------------


def test_ulp_is_the_spacing_of_the_dtype() -> None:
    for value in (1.0, 1.999, 0.75, 3e-6, 1e-7, 5e4):
        for dtype in (np.float64, np.float32, np.float16):
            rounded = np.asarray(value, dtype)
            assert budgets.ulp(float(rounded), np.dtype(dtype).name) == np.spacing(rounded), (value, dtype)
        rounded = np.asarray(value, ml_dtypes.bfloat16)
        following = np.nextafter(rounded, np.asarray(np.inf, ml_dtypes.bfloat16))
        assert budgets.ulp(float(rounded), "bfloat16") == float(following) - float(rounded)


def test_budgets_are_derived() -> None:
    assert budgets.budget("float64", 0.5).relative == 1e-12
    assert budgets.budget("float32", 1e-7).relative == pytest.approx(4e-7)
    strict = budgets.budget("bfloat16", 0.0)
    assert strict.allows(1e-2, ulp=1.0)
    assert not strict.allows(1e-2, ulp=1.1)
    assert not budgets.budget("float64", 0.0).allows(1.1e-12, ulp=1.0)
    assert not strict.allows(float("nan"), float("nan"))
    shown = [str(budgets.budget(dtype, 1e-4)) for dtype in ("float64", "float32", "bfloat16")]
    assert shown == ["1.0e-12", "4.0e-04", "1 ulp"]


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
    first = comparison.first_beyond(budgets.Budget(1e-7, yardstick=0.0))
    assert first is not None
    assert (first.step, first.element, first.ulp) == (2, (3, 4), 1e-6 / 2**-22)
    assert comparison.first_beyond(budgets.Budget(1e-5)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_beyond_every_budget(bad: float) -> None:
    reference, value = {"row": np.ones((1, 5))}, {"row": np.ones((1, 5))}
    value["row"][0, 2] = bad
    for one, other in ((value, reference), (reference, value), (value, value)):
        comparison = Comparison("float64")
        comparison.add(1, one, other, {"row": 1.0})
        assert comparison.worst().element == (0, 2)
        assert comparison.first_beyond(budgets.Budget(1e300)) is not None


def test_the_yardstick_adds_as_optax_does() -> None:
    small = {"row": np.ones((1, 5))}
    for lr, same in ((1e-2, True), (1.0, False)):
        recipe = replace(recipes.paper(), lr=lr, relative_step=False, multiply_by_parameter_scale=False)
        plain = OracleRunner(recipe, small, "bfloat16", np.float32)
        added = OracleRunner(recipe, small, "bfloat16", np.float32, by_addition=True)
        for grads in zoo.gradients(["row"], "bfloat16", seed=0):
            plain.step(grads)
            added.step(grads)
        assert np.array_equal(plain.params()["row"], added.params()["row"]) == same


# Stepping -----------------------------------------------------------------------------------------------------------


FEW = ("scalar", "uneven", "empty matrix")  # most of the time goes into compilation, which grows with their number


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_stepping_accepts_the_optimizers(dtype: str) -> None:
    advanced: list[None] = []
    (setting,) = zoo.settings(["torch"], defaults_only=True)
    stepped = step_all(setting, dtype, FEW, find("cpu", ()), 0, lambda: advanced.append(None))
    assert stepped.failures() == []
    assert len(advanced) == zoo.STEPS
    assert len(stepped.per_step["JAX from oracle"]) == zoo.STEPS


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
    monkeypatch: pytest.MonkeyPatch, recipe: str, dtype: str, factor: float
) -> None:
    monkeypatch.setattr(oracle, "parameter_scale", _off_by(factor))
    (setting,) = zoo.settings([recipe], defaults_only=True)
    stepped = step_all(setting, dtype, FEW, find("cpu", ()), 0, lambda: None)
    assert set(stepped.beyond) == {"JAX from oracle", "torch from oracle"}
    assert all(f"recipe {recipe}" in line and "shape (" in line for line in stepped.failures())


def test_the_learning_rate_steps_down_in_both_frameworks() -> None:
    run = run_piecewise()
    at = {t: run.scheduled[t - 1] for t in (1, 9, 10, 19, 20, 29, 30, 40)}
    assert at == {1: 1e-2, 9: 1e-2, 10: 5e-3, 19: 5e-3, 20: 2.5e-3, 29: 2.5e-3, 30: 1.25e-3, 40: 1.25e-3}
    assert run.worst() < budgets.SCHEDULE_RELATIVE
    late = PiecewiseRun(run.scheduled, run.torch_group, run.torch_measured, [1e-2, *run.jax_measured[:-1]])
    assert late.worst() > 0.5


class _Nobody:
    def advance(self) -> None: ...


def test_tasks_run_side_by_side_and_torch_has_one_thread_meanwhile() -> None:
    before = torch.get_num_threads()
    with Tasks(cast(Progress, _Nobody())) as tasks:
        threads = tasks.start(torch.get_num_threads)
        assert tasks.start(divmod, 7, 2).result() == (3, 1)
    assert threads.result() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_tasks_that_run_and_those_that_wait(error: type[BaseException]) -> None:
    began, tasks = threading.Event(), Tasks(cast(Progress, _Nobody()))
    started: list[Future[None]] = []

    def endless() -> None:
        began.set()
        while True:
            tasks.advance()

    def fail() -> None:
        with tasks:
            started.extend(tasks.start(endless) for _ in range(MOST_THREADS + 1))
            began.wait()
            raise error

    with pytest.raises(error):
        fail()
    first, *_, last = started
    assert isinstance(first.exception(), Stopped)
    assert last.cancelled()


def test_a_task_that_fails_ends_the_others_and_its_error_is_raised() -> None:
    def endless(tasks: Tasks) -> None:
        while True:
            tasks.advance()

    def fail() -> None:
        raise ValueError("the reason")

    def run() -> None:
        with Tasks(cast(Progress, _Nobody())) as tasks:
            running = tasks.start(endless, tasks)
            tasks.start(fail)
            tasks.result(running)

    with pytest.raises(ValueError, match="the reason"):
        run()


# What surrounds it --------------------------------------------------------------------------------------------------


def test_the_command_replays_the_options() -> None:
    wanted = check(
        recipe_names=["optax", "torch"],
        dtype_names=["float32"],
        steps=7,
        quick=True,
        device="cuda",
        text="a file.txt",
        out="there",
        seed=3,
    )
    assert wanted.recipes == ("optax", "torch")
    parsed = vars(_parser().parse_args(wanted.command().split(" ", 1)[1].replace("'a file.txt'", "a_file.txt").split()))
    again = check(
        recipe_names=parsed["recipe"],
        dtype_names=parsed["dtype"],
        text=parsed["text"].replace("_", " "),
        **{name: parsed[name] for name in ("steps", "quick", "device", "out", "seed")},
    )
    assert again == wanted


def test_the_table_fits_100_columns_with_every_label_whole() -> None:
    assert tables.WIDTH == 100
    worst = dict.fromkeys(PAIRS, Deviation("uneven", 1, (0, 0), 1.2e-6, 0.001))
    settings = zoo.settings(recipes.NAMES)
    rows = [Stepped(s, "bfloat16", zoo.CORE, budgets.Budget(1e-3), worst, {}, worst) for s in settings]
    stream = StringIO()
    Console(file=stream, width=tables.WIDTH).print(tables.stepping(rows))
    printed = stream.getvalue()
    assert "…" not in printed
    assert all(f"\n{s.label} " in printed for s in settings)
    assert "FAILED" in printed
    assert "1.2e-06 (<.01)" in printed
    for ulp, text in ((0.25, "0.2"), (1.5, "1.5"), (420.0, "420"), (5.8e4, ">999")):
        assert tables.deviation(Deviation("uneven", 1, (0, 0), 1e-3, ulp)) == f"1.0e-03 ({text})"


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
