"""What the Triton kernels compute: every option, shape and dtype against the oracle."""

import dataclasses

import numpy as np
import pytest
import torch

from adafactor_spec import Recipe, dtypes, factoring, oracle
from adafactor_spec.factoring import explicit
from adafactor_torch._backends.triton.launch_group import step
from parity_tests.torch_runs import GAPS, Array, Shape, values
from parity_tests.triton_runs import (
    FEW,
    RECIPES,
    SEED,
    SHAPES,
    array,
    assert_near,
    few,
    kept,
    oracle_run,
    run_against_oracle,
    set_step,
    state_of,
    works_of,
)

# ----------------------------------------------------------------------------------------------------- every option


@pytest.mark.sampled(count=13)
@pytest.mark.parametrize("name", RECIPES)
def test_float64_is_the_oracle(name: str) -> None:
    run_against_oracle(few(name), steps=2)


@pytest.mark.parametrize("name", ["paper", "gradients and amsgrad"])
def test_shapes(name: str) -> None:
    run_against_oracle(few(name, shapes=SHAPES), steps=2)


BATCHES: dict[str, tuple[factoring.Rule, Shape]] = {
    "stack": (explicit(1, 2, 0), (3, 4, 5)),
    "batch in the middle": (explicit((0, 3), (2,), (1,)), (3, 2, 4, 5)),
    "columns first": (explicit(2, 0, 1), (3, 4, 5)),
    "two batch axes": (explicit(2, 1, (0, 3)), (2, 4, 3, 5)),
    "stack of vectors": (explicit((), (), 0), (3, 70)),
    "rows far apart": (explicit((0, 2), (1, 3)), (2, 3, 2, 5)),
    "batch of what is whole": (explicit((), (), (0, -1)), (3, 4, 5)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batch_axes(name: str) -> None:
    rule, shape = BATCHES[name]
    recipe = Recipe(lr=0.1, factoring=rule, **RECIPES["gradients and amsgrad"])
    run_against_oracle(works_of(recipe, [shape], torch.float64), steps=2)


def test_ascent_and_many_recipes_at_once() -> None:
    tasks = [task for name in ("paper", "decay by one", "amsgrad") for task in few(name, maximize=True)]
    run_against_oracle([*tasks, *few("paper")])


# ---------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("name", ["paper", "floor", "amsgrad", "average of steps", "decay of gradients"])
def test_float32(name: str) -> None:
    recipe = Recipe(lr=0.1, **RECIPES[name])
    tasks = works_of(recipe, SHAPES if name == "paper" else FEW, torch.float32)
    before = [array(task.p) for task in tasks]
    grads = []
    for t in (1, 2):
        set_step(tasks, t)
        grads.append([array(task.grad) for task in tasks])
        step(tasks)
    for task, p, own in zip(tasks, before, zip(*grads, strict=True), strict=True):
        exact, single = (oracle_run(recipe, p, own, compute) for compute in (np.float64, np.float32))
        budget = GAPS * float(np.max(np.abs(exact - single), initial=0.0))
        assert_near(task.p, exact, budget, tuple(task.p.shape))


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize("name", ["paper", "gradients and amsgrad"])
def test_one_rounding(dtype: str, rounding: str, name: str) -> None:
    """A 16-bit step is the exact step, rounded once: each element lies between the rounded ends of the budget."""
    recipe, shapes = Recipe(lr=0.1, **RECIPES[name]), [(16, 24), (3, 2, 3, 3), (40,)]
    tasks = works_of(recipe, shapes, getattr(torch, dtype), rounding=rounding)
    certain = total = 0
    for t in (1, 2):
        set_step(tasks, t)
        starts = [(array(task.p), array(task.grad), state_of(task, t - 1)) for task in tasks]
        step(tasks)
        for index, (task, (p, grad, state)) in enumerate(zip(tasks, starts, strict=True)):
            exact, budget = unrounded(recipe, p, grad, state, dtype)
            random = oracle.random_bits(SEED, t, index, p.shape)
            lowest, highest = (ended(exact + shift, random, dtype, rounding) for shift in (-budget, budget))
            after = array(task.p)
            assert np.all((lowest <= after) & (after <= highest)), (t, task.p.shape)
            certain, total = certain + int(np.sum(lowest == highest)), total + after.size
            if rounding == "kahan":  # the two together are the exact step, but for the rounding of the rest
                rest = array(task.state["compensation"])
                assert np.all(np.abs(after + rest - exact) <= budget + dtypes.spacing(rest, "bfloat16"))
    assert certain > 0.9 * total, "an interval with two ends in it proves little"


def unrounded(recipe: Recipe, p: Array, grad: Array, state: oracle.State, dtype: str) -> tuple[Array, float]:
    """The exact step before it is rounded, and how far from it float32 may be."""
    whole = p if state.compensation is None else p + state.compensation
    bare = dataclasses.replace(state, compensation=None)
    recipe = dataclasses.replace(recipe, eps1=recipe.eps1_for(dtype))
    exact, single = (oracle.step(recipe, whole, grad, bare, compute=c)[0] for c in (np.float64, np.float32))
    return exact, GAPS * float(np.max(np.abs(exact - single)))


def ended(x: Array, random: Array, dtype: str, rounding: str) -> Array:
    return oracle.round_stochastically(x, random, dtype) if rounding == "stochastic" else dtypes.round_to(x, dtype)


@pytest.mark.parametrize("name", ["paper", "amsgrad", "not factored"])
def test_a_second_moment_in_bfloat16(name: str) -> None:
    """It is rounded where it is stored, and only there: all but some elements are the oracle's, no other is far."""
    recipe = dataclasses.replace(Recipe(lr=0.1, **RECIPES[name]), state_dtype="param")
    (task,) = tasks = works_of(recipe, [(16, 24)], torch.bfloat16)
    for t in (1, 2):
        set_step(tasks, t)
        before = state_of(task, t - 1)
        p, state = oracle.step(recipe, array(task.p), array(task.grad), before, dtype="bfloat16", compute=np.float32)
        step(tasks)
        for name, x in task.state.items():
            if name != "step":
                expected = getattr(state, name)
                assert x.dtype == torch.bfloat16
                assert np.all(np.abs(array(x) - expected) <= dtypes.spacing(expected, "bfloat16"))
                assert np.mean(array(x) == expected) > 0.99
        assert np.mean(array(task.p) == p) > 0.99


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
def test_a_gradient_of_another_dtype_is_used_as_it_is(narrow: torch.dtype) -> None:
    first, second = few("paper", torch.float32, [(4, 6)]), few("paper", torch.float32, [(4, 6)])
    for tasks in (first, second):
        set_step(tasks, 1)
    first[0].grad = first[0].grad.to(narrow)
    second[0].grad = first[0].grad.float()
    step(first)
    step(second)
    assert kept(first[0]) == kept(second[0])


# ----------------------------------------------------------------------------------------------------------- range


@pytest.mark.sampled
@pytest.mark.parametrize("exponent", [-18, 18])
@pytest.mark.parametrize("name", ["paper", "floor"])
def test_gradients_of_any_size_in_float32(exponent: int, name: str) -> None:
    """So many elements that a sum of squares overflows, and a row and a column of zeros, whose factors underflow."""
    recipe = Recipe(lr=0.1, **{**RECIPES[name], "eps1": 1e-30})
    tasks = works_of(recipe, [(3, 700), (1, 1200), (1200, 1), (7,)], torch.float32)
    before = [array(task.p) for task in tasks]
    grads: list[list[Array]] = []
    for t in (1, 2):
        set_step(tasks, t)
        for task in tasks:
            task.grad.copy_(torch.tensor(values(tuple(task.p.shape), t) * 10.0**exponent))
            if task.grad.ndim == 2 and min(task.p.shape) > 1:
                task.grad[0] = task.grad[:, 0] = 0.0
        grads.append([array(task.grad) for task in tasks])
        step(tasks)
    for task, p, own in zip(tasks, before, zip(*grads, strict=True), strict=True):
        exact, single = (oracle_run(recipe, p, own, compute) for compute in (np.float64, np.float32))
        assert_near(task.p, exact, GAPS * float(np.max(np.abs(exact - single))), tuple(task.p.shape))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["paper", "floor", "amsgrad", "not factored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_stays_one(name: str, dtype: torch.dtype) -> None:
    tasks = few(name, dtype)
    set_step(tasks, 1)
    for task in tasks:
        task.grad.view(-1)[3] = float("nan")
    step(tasks)
    assert all(task.p.isnan().all() for task in tasks)  # by way of RMS(u)
