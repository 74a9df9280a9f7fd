"""Every named wrong Adafactor is rejected by the recorded runs, or by comparing the frameworks with the oracle."""

import functools
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import adafactor_jax._kernels as jax_kernels
import adafactor_torch._kernels as torch_kernels
from adafactor_spec import Recipe, factoring, oracle, recipes, schedules
from parity_tests import recorded
from parity_tests.faults import FAULTS, KERNEL_FAULTS, STEP_FAULTS
from parity_tests.random_recipes import SHAPES
from parity_tests.rejections import rejections
from parity_tests.test_agreement import deviations


@pytest.mark.parametrize("fault", FAULTS)
def test_the_recorded_runs_reject(fault: str) -> None:
    """Those of one original at least; `make tables` shows which."""
    assert any(True for name in recorded.implementations() for _ in rejections(fault, name))


def test_the_recorded_runs_accept_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "none", lambda patch, kernels: None)
    assert not [found for name in recorded.implementations() for found in rejections("none", name)]


# A recipe that uses every kernel, and gradients that reach every branch.
EVERYTHING = Recipe(
    lr=0.1,
    beta2=0.9,
    eps1=1e-3,
    factoring=factoring.last_two,
    clipping_threshold=0.5,
    beta1=0.9,
    momentum_of="update",
    weight_decay=0.1,
)
# A step size that the relative step cuts at t = 2, and a floor that gradients of size 1 meet.
FLOOR = Recipe(lr=0.9, eps1=0.5, eps1_mode="floor")
# beta2 as it is at t = 20,001, where a float32 difference is wrong by 1e-4.
LATE = Recipe(lr=0.1, beta2=schedules.power_decay(offset=-20_000))
AMSGRAD = Recipe(lr=0.1, beta2=0.9, amsgrad=True, clipping_threshold=None, multiply_by_parameter_scale=False)
# Batch axes with factors and without, and a largest scale between those of the indices.
STACKED = Recipe(
    lr=0.1,
    max_parameter_scale=1.0,
    factoring=factoring.by_name({"stack": factoring.explicit(1, 2, 0), "kernel": factoring.explicit((), (), 1)}),
    clipping_threshold=0.5,
)
# A cap, an offset, a decay times nothing and a rounded momentum, of which three steps show something.
CAPPED = recipes.timm_big_vision(
    0.1, min_dim_size_to_factor=4, decay_offset=1, beta2_cap=0.3, weight_decay=0.1, unscaled_wd=True
)
KERAS = recipes.keras(0.1, weight_decay=0.1)
FOR_KERNELS = (EVERYTHING, AMSGRAD, STACKED)
FOR_STEPS = (EVERYTHING, recipes.adafactor_pytorch(), FLOOR, LATE, CAPPED, KERAS)


@functools.cache
def _problem() -> Any:
    rng = np.random.default_rng(3)
    params = {name: rng.standard_normal(shape) * (name != "vector") for name, shape in SHAPES.items()}
    return params, [{name: rng.standard_normal(shape) * 10.0**t for name, shape in SHAPES.items()} for t in range(3)]


@pytest.mark.parametrize("kernels", [jax_kernels, torch_kernels], ids=["jax", "torch"])
@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_the_comparison_rejects(fault: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    KERNEL_FAULTS[fault](monkeypatch, kernels)
    rejected = []
    for recipe in FOR_KERNELS:
        with jax.disable_jit():
            try:
                worst, allowed = deviations(recipe, _problem(), "float64", plain=True)
            except (ValueError, TypeError, RuntimeError):  # shapes that do not fit are a rejection, too
                rejected.append("error")
                continue
        rejected += [pair for pair, found in worst.items() if not allowed.allows(*found)]
    assert rejected


@pytest.mark.parametrize("fault", STEP_FAULTS)
def test_the_comparison_rejects_a_wrong_step(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the oracle: a difference is a difference, whichever side is wrong."""
    STEP_FAULTS[fault](monkeypatch, oracle)
    for recipe in FOR_STEPS:
        with jax.disable_jit():
            worst, allowed = deviations(recipe, _problem(), "float64")
        if not all(allowed.allows(*found) for found in worst.values()):
            return
    pytest.fail("no recipe shows this fault")


def test_the_comparison_accepts_the_kernels() -> None:
    for recipe in {*FOR_KERNELS, *FOR_STEPS}:
        with jax.disable_jit():
            worst, allowed = deviations(recipe, _problem(), "float64")
        assert all(allowed.allows(*found) for found in worst.values()), worst
