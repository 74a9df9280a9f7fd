"""Steps that are counted on a device: their numbers and masks are tensors there, and the host knows none of them.

A CPU stands in for the device: its steps are counted where a GPU's would be (`counted_here`). Meta tensors, which have
no values at all, show that nobody asks for one.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adafactor_spec import Recipe, recipes, schedules
from adafactor_torch import Adafactor, _saved_state
from adafactor_torch import _param_groups as _groups
from adafactor_torch._step import driver as _driver
from adafactor_torch._step import tasks as _tasks

from .profiles import examples
from .random_recipes import any_recipe, problems
from .test_torch_device_numbers import on_meta
from .test_torch_numbers import NoReads
from .test_torch_paths import PLAIN, assert_same, run
from .torch_runs import FLOAT64, advance, all_parameters, frozen, parameters, set_gradients, snapshot, twins

FUZZ = settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
PATHS: dict[str, dict[str, Any]] = {"plain": PLAIN, "eager": {"fused": False}}


@pytest.fixture
def counted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the steps of CPU parameters where those of a device are counted."""
    count_here(monkeypatch)


def count_here(patch: pytest.MonkeyPatch) -> None:
    """The same for other tests."""
    for module in (_driver, _groups, _saved_state, _tasks):
        patch.setattr(module, "counts_on_device", lambda group, p: group["capturable"] or group["nonfinite"] == "skip")


# ----------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("path", PATHS)
@FUZZ
@given(recipe=any_recipe(), problem=problems(), nonfinite=st.sampled_from(["propagate", "skip"]))
def test_any_recipe_steps_as_from_the_host(path: str, recipe: Recipe, problem: Any, nonfinite: str) -> None:
    params, grads = problem
    host = run((params, grads), torch.float64, recipe, **PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        count_here(patch)
        there = run((params, grads), torch.float64, recipe, capturable=True, nonfinite=nonfinite, **PATHS[path])
    assert_same(host, there, FLOAT64)


@pytest.mark.usefixtures("counted_here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_takes_the_same_bits(dtype: torch.dtype) -> None:
    """float32 arithmetic with float64 numbers, or with the same as tensors: no bit differs."""
    options: dict[str, Any] = {"lr": 0.01, "rounding": "stochastic", "seed": 5, **PLAIN}
    host, there = Adafactor(parameters(dtype), **options), Adafactor(parameters(dtype), capturable=True, **options)
    for optimizer in (host, there):
        advance(optimizer, 1, 6)
    assert snapshot(there)[:2] == snapshot(host)[:2]


BAD = {"inf": (torch.float32, math.inf), "nan": (torch.float64, math.nan), "overflow": (torch.float16, 1e6)}


@pytest.mark.usefixtures("counted_here")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_gradient_is_masked(case: str, path: str) -> None:
    (dtype, bad), options = BAD[case], PATHS[path] | {"nonfinite": "skip", "telemetry": True, "beta1": 0.9}
    one, other = (Adafactor(parameters(dtype), rounding="kahan", **options) for _ in range(2))
    for optimizer in (one, other):
        advance(optimizer, 1, 2)
        set_gradients(3, all_parameters(optimizer))
    told = frozen(one.telemetry()["0.2"])
    grad = all_parameters(one)[2].grad
    assert grad is not None
    grad.view(-1)[-1] = bad
    all_parameters(other)[2].grad = None
    with NoReads():
        one.step()
    other.step()
    assert snapshot(one) == snapshot(other)
    after = one.telemetry()
    assert [int(of["skipped"]) for of in after.values()] == [0, 0, 1, 0]
    assert frozen(after["0.2"]) | {"skipped": None} == told | {"skipped": None}
    assert [int(one.state[p]["step"]) for p in all_parameters(one)] == [3, 3, 2, 3]


@pytest.mark.usefixtures("counted_here")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_found_inf_masks_everything_and_the_scale_is_taken_off(nonfinite: str, path: str) -> None:
    options = PATHS[path] | {"capturable": True, "nonfinite": nonfinite, "lr": 0.1}
    one, other = (Adafactor(parameters(), **options) for _ in range(2))
    for optimizer in (one, other):
        advance(optimizer, 1, 2)
    before = snapshot(one)
    one.grad_scale, one.found_inf = torch.tensor(8.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    other.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for optimizer, scale in ((one, 8.0), (other, 1.0)):
        set_gradients(3, all_parameters(optimizer), scale)
        with NoReads():
            optimizer.step()
    assert snapshot(one) == before
    one.found_inf.zero_()  # type: ignore[attr-defined]
    one.step()
    assert snapshot(one) == snapshot(other) != before


@pytest.mark.usefixtures("counted_here")
def test_a_run_that_is_counted_there_resumes() -> None:
    options: dict[str, Any] = {"recipe": recipes.torch(0.1, weight_decay=0.1), "capturable": True, **PLAIN}
    one = Adafactor(parameters(), **options)
    advance(one, 1, 3)
    other = Adafactor(twins(one), **options)
    other.load_state_dict(one.state_dict())
    for optimizer in (one, other):
        advance(optimizer, 4, 7)
    assert snapshot(one) == snapshot(other)


# --------------------------------------------------------------------------------------- without values: meta tensors


def meta_step(optimizer: Adafactor) -> None:
    for p in all_parameters(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()


WHOLE: dict[str, dict[str, Any]] = {
    "schedule": {"lr": schedules.piecewise_constant(0.1, (2,), 0.5), "capturable": True},
    "function": {"lr": lambda t: 0.1 / t, "nonfinite": "skip"},
    "tensor lr": {"lr": torch.tensor(0.1), "capturable": True, "beta1": schedules.adam_decay(0.9), "debias": True},
    "everything": {
        "recipe": recipes.adafactor_pytorch(non_constant_decay=False, weight_decay=0.1),
        "capturable": True,
        "nonfinite": "skip",
        "telemetry": True,
        "maximize": True,
    },
    "averages": {"beta1": 0.9, "momentum_dtype": "bfloat16", "momentum_rounding": "use", "capturable": True},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", WHOLE)
def test_whole_steps_ask_for_no_value(case: str, path: str) -> None:
    optimizer = Adafactor(on_meta(), **WHOLE[case], **PATHS[path])
    lr = optimizer.param_groups[0]["lr"]
    optimizer.grad_scale = optimizer.found_inf = torch.ones((), device="meta")  # type: ignore[attr-defined]
    for _ in range(3):
        with NoReads():
            meta_step(optimizer)
    optimizer.telemetry()
    assert optimizer.param_groups[0]["lr"] is lr
    assert {x.device.type for p in all_parameters(optimizer) for x in optimizer.state[p].values()} == {"meta"}
    other = Adafactor(on_meta(), **WHOLE[case], **PATHS[path])
    other.load_state_dict(optimizer.state_dict())
    meta_step(other)


def test_counting_moves_to_the_device_when_it_is_asked_to() -> None:
    optimizer = Adafactor(on_meta(), **PLAIN)
    meta_step(optimizer)
    assert {optimizer.state[p]["step"].device.type for p in all_parameters(optimizer)} == {"cpu"}
    optimizer.param_groups[0]["capturable"] = True
    meta_step(optimizer)
    assert {optimizer.state[p]["step"].device.type for p in all_parameters(optimizer)} == {"meta"}


def test_devices_may_be_mixed_in_a_group() -> None:
    lr = schedules.piecewise_constant(0.1, (2,), 0.5)
    optimizer = Adafactor([*on_meta((4, 3)), *parameters()[1:]], lr=lr, capturable=True, **PLAIN)
    other = Adafactor(parameters()[1:], lr=lr, **PLAIN)
    for t in range(1, 4):
        set_gradients(t, all_parameters(optimizer)[1:])
        set_gradients(t, [parameters()[0], *all_parameters(other)][1:])
        all_parameters(optimizer)[0].grad = torch.ones(4, 3, device="meta")
        optimizer.step()
        other.step()
    assert snapshot(other)[0] == frozen(all_parameters(optimizer)[1:])
    assert optimizer.param_groups[0]["lr"] == 0.05, "of the count that the host has"
