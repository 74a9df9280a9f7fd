"""The Triton kernels on parts of parameters: every way in which one may be split, against the whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe, factoring, oracle
from adafactor_spec.factoring import explicit
from adafactor_torch._backends.triton import launch_group as _launch_group
from adafactor_torch._backends.triton.launch_group import step
from adafactor_torch._sharding.step_mask import StepMask as SharedFlags
from adafactor_torch._task.matrix_view import reduced_axes
from adafactor_torch._task.task import NO_AMP, Amp, Task
from parity_tests.sharded_parts import SPLITS, Part, Parts, Splits, StepMask, steps_of
from parity_tests.test_torch_sharded_flags import NoLists, Operators
from parity_tests.torch_runs import FLOAT64, GAPS, Shape, bits
from parity_tests.triton_runs import (
    DEVICE,
    RECIPES,
    array,
    assert_near,
    columns_on_device,
    oracle_run,
    set_step,
    works_of,
)

SHAPES: tuple[Shape, ...] = ((5, 6), (5,), (3, 2, 3, 3))


def assert_replicas_alike(parts: Parts) -> None:
    """What several processes hold of the same is the same bits."""
    seen: dict[Any, Any] = {}
    for place, shard, name, x, reduced in parts.each():
        where = tuple(shard.rank[dim] for dim, axis in shard.split.items() if axis not in reduced)
        assert bits(x.cpu()) == seen.setdefault((place, name, where), bits(x.cpu())), (place, name)


def run_against_oracle(tasks: Sequence[Task], splits: Splits, steps: int = 2) -> Parts:
    """Float64 parameters and their states against the oracle's."""
    parts = Parts(tasks, splits)
    recipes = [task.config.recipe for task in tasks]
    answers = [(array(w.p), oracle.init(r, array(w.p))) for w, r in zip(tasks, recipes, strict=True)]
    for t in range(1, steps + 1):
        set_step(tasks, t)
        parts.step()
        signs = [-1.0 if task.maximize else 1.0 for task in tasks]
        answers = [
            oracle.step(recipe, p, sign * array(task.grad), state)
            for task, recipe, sign, (p, state) in zip(tasks, recipes, signs, answers, strict=True)
        ]
    for place, shard, name, x, reduced in parts.each():
        p, state = answers[place]
        expected = torch.tensor(p if name == "p" else getattr(state, name))
        budget = FLOAT64 * float(expected.abs().max()) if expected.numel() else 0.0
        assert_near(x, array(shard.cut(expected, reduced)), max(budget, FLOAT64), (name, tuple(x.shape)))
    assert_replicas_alike(parts)
    return parts


def made(name: str, dtype: torch.dtype = torch.float64, shapes: Sequence[Shape] = SHAPES, **how: Any) -> list[Task]:
    return works_of(Recipe(lr=0.1, **RECIPES[name]), shapes, dtype, **how)


CASES = [
    ("paper", "rows twice"),
    ("floor", "both"),
    ("gradients and amsgrad", "rows"),
    ("decay before scale", "columns"),
    ("no clipping", "rows"),
    ("not factored", "both"),
]


@pytest.mark.parametrize(("name", "splits"), CASES)
def test_parts_are_stepped_like_the_whole(name: str, splits: str) -> None:
    run_against_oracle(made(name, shapes=[(5, 6), (5,), (1, 3), (0, 3)]), SPLITS[splits])


AXES: dict[str, tuple[factoring.Rule, Shape, Splits]] = {
    "lead": (explicit(2, 3), (3, 2, 3, 5), {0: 0, 1: 2}),
    "batch": (explicit(1, 2, 0), (3, 4, 5), {0: 0, 1: 1}),
    "batch of vectors": (explicit((), (), 0), (3, 7), {0: 0, 1: 1}),
    "batch that one has": (explicit(1, 2, 0), (1, 4, 5), {0: 0, 1: 2}),
    "one of two": (explicit((0, 3), (1, 2)), (3, 2, 4, 5), {0: 3}),
    "rows behind columns": (explicit(2, 0), (3, 4, 5), {0: 0}),
    "folded": (factoring.no_factoring, (4096,), {0: 0}),
    "tiles": (factoring.last_two, (70, 300), {0: 0, 1: 1}),
    "reshaped, and whole": (factoring.as_matrix, (3, 2, 3, 5), {}),
}


@pytest.mark.parametrize("name", AXES)
def test_any_axis_may_be_split(name: str) -> None:
    rule, shape, splits = AXES[name]
    recipe = Recipe(lr=0.1, factoring=rule, **RECIPES["average of updates"])
    run_against_oracle(works_of(recipe, [shape], torch.float64, maximize=True), splits)


def test_float32() -> None:
    recipe = Recipe(lr=0.1)
    tasks = works_of(recipe, SHAPES, torch.float32)
    parts, before = Parts(tasks, SPLITS["both"]), [array(task.p) for task in tasks]
    grads = []
    for t in (1, 2):
        set_step(tasks, t)
        grads.append([array(task.grad) for task in tasks])
        parts.step()
    for place, shard, name, x, _ in parts.each():
        if name == "p":
            own = [of_step[place] for of_step in grads]
            exact, single = (oracle_run(recipe, before[place], own, compute) for compute in (np.float64, np.float32))
            budget = GAPS * float(np.max(np.abs(exact - single)))
            assert_near(x, array(shard.cut(torch.tensor(exact))), budget, tuple(x.shape))
    assert_replicas_alike(parts)


def test_the_mean_of_an_r_of_16_bits_is_of_what_is_stored() -> None:
    """Both ways to find it, against whole parameters."""
    recipe = Recipe(lr=0.1, state_dtype="param", clipping_threshold=None)
    for splits, between in ((SPLITS["rows"], 0), (SPLITS["both"], 1)):
        tasks = works_of(recipe, [(13, 27)], torch.bfloat16, telemetry=True)
        parts = Parts(tasks, splits)
        set_step(tasks, 1)
        assert parts.step()[1] == [between] * len(parts.of_rank)
        step(tasks)
        for (one,) in parts.of_rank:
            assert one.telemetry is not None and tasks[0].telemetry is not None
            assert_near(one.telemetry / tasks[0].telemetry, np.ones((1, 4)), 1e-6, splits)


@pytest.mark.parametrize(("splits", "contiguous"), [("both", True), ("rows", False)], ids=["block", "scattered"])
def test_an_element_takes_the_random_bits_that_it_takes_in_the_whole(splits: str, contiguous: bool) -> None:
    """With a step that comes out the same: without clipping and scale, u of a vector depends on its element alone."""
    fields = {**RECIPES["not factored"], "clipping_threshold": None, "multiply_by_parameter_scale": False}
    tasks = works_of(Recipe(lr=0.1, **fields), [(5, 7), (9,), (3, 2, 3, 3)], torch.bfloat16, rounding="stochastic")
    parts = Parts(tasks, SPLITS[splits], contiguous=contiguous)
    for t in (1, 2):
        set_step(tasks, t)
        parts.step()
        step(tasks)
    for place, shard, name, x, _ in parts.each():
        if name == "p":
            assert torch.equal(x, shard.cut(tasks[place].p))


def test_autograd_sees_that_parts_are_written() -> None:
    parts = Parts(made("paper", torch.float32, [(4, 6)]), SPLITS["rows"])
    held = [one.p for own in parts.of_rank for one in own]
    versions = [p._version for p in held]
    set_step(parts.tasks, 1)
    parts.step()
    assert all(p._version > before for p, before in zip(held, versions, strict=True))


def test_a_step_that_is_left_out_changes_nothing() -> None:
    first, second = (made("average of updates", torch.float32, SHAPES[:2], telemetry=True) for _ in "12")
    parts, others = Parts(first, SPLITS["rows"]), Parts(second, SPLITS["rows"])
    for t in (1, 2):
        before = values_of(parts, 1)
        for each in (parts, others):
            set_step(each.tasks, t)
        parts.step(NO_AMP, *([1] if t == 2 else []))
        others.step()
    assert values_of(parts, 1) == before != values_of(others, 1)
    assert values_of(parts, 0) == values_of(others, 0)


def values_of(parts: Parts, place: int) -> list[Any]:
    told = [x for own in parts.of_rank if (x := own[place].telemetry) is not None]
    return [bits(x.cpu()) for x in (*told, *(x for which, _, _, x, _ in parts.each() if which == place))]


def test_the_statistics_say_whose_gradient_is_bad() -> None:
    parts = Parts(made("paper", torch.float32, [(5, 6), (6, 5)]), SPLITS["rows"])
    set_step(parts.tasks, 1)
    parts.tasks[1].grad[0, 2] = torch.nan
    parts.step()
    for held, expected in zip(parts.of_rank, ([False, True], [False, False]), strict=True):
        for task in held:
            task.skipped = torch.zeros((), dtype=torch.int64, device=DEVICE)
        flags = StepMask(held)
        phases = steps_of(held, flags)
        next(phases)
        assert flags.bad == dict(enumerate(expected))


def test_a_device_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the kernels' host nor by the flags: meta tensors have no values."""
    monkeypatch.setattr(_launch_group, "launch", lambda *_: None)
    tasks = made("average of updates", torch.bfloat16, rounding="stochastic")
    now, key = columns_on_device([task.now for task in tasks]), torch.zeros((), dtype=torch.int32, device="meta")
    parts = []
    for task, own in zip(tasks, now, strict=True):
        shard = Part(task.config.plan, SPLITS["rows"], (0,))
        state = {n: shard.cut(x, reduced_axes(n, shard.plan)).to("meta") for n, x in task.state.items() if x.ndim}
        state["step"] = task.state["step"].to("meta")
        numbers = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in vars(own).items()}
        p = shard.cut(task.p).to("meta")
        part = Task(p, p.clone(), state, task.config, Numbers(**numbers), key)
        part.telemetry, part.skipped = torch.zeros((1, 4), device="meta"), torch.zeros((), device="meta").long()
        part.shard = shard
        parts.append(part)
    for _ in (1, 2):
        with NoLists(), Operators():
            flags = SharedFlags(parts, NO_AMP)
            phases = steps_of(parts, flags)
            next(phases)
            flags.partial_sums()
            assert len(list(phases)) == 2
            flags.settle()


def test_gradients_are_unscaled() -> None:
    scaled, plain = (Parts(made("paper", shapes=SHAPES[:1]), SPLITS["rows"]) for _ in "12")
    for each in (scaled, plain):
        set_step(each.tasks, 1)
    scaled.tasks[0].grad *= 1024.0
    scaled.step(Amp(torch.full((), 1024.0, device=DEVICE), torch.ones((), device=DEVICE)))  # of which the flags decide
    plain.step()
    assert values_of(scaled, 0) == values_of(plain, 0)


@pytest.mark.parametrize("splits", ["rows", "both"])
def test_sums_and_launches_do_not_depend_on_how_many_parameters_there_are(
    splits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[Any] = []
    monkeypatch.setattr(_launch_group, "launch", lambda kernel, *rest: launches.append(kernel))
    counts = []
    for number in (2, 20):
        parts = Parts(made("paper", shapes=[(4, 6), (5,)] * number), SPLITS[splits])
        set_step(parts.tasks, 1)
        launches.clear()
        asked = parts.step()
        counts.append((len(launches), asked))
    assert counts[0] == counts[1]
    assert [of_rank[0] for of_rank in counts[0][1]] == ([1, 0, 1] if splits == "rows" else [3, 0, 2])
