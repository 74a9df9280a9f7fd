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
from parity_tests.faults import KERNEL_FAULTS, STEP_FAULTS
from parity_tests.random_recipes import SHAPES
from parity_tests.test_agreement import deviations
from parity_tests.test_recorded import FLOAT64, run_oracle
from parity_tests.test_recorded import deviations as from_the_recorded

SMALL = ("vec7", "mat4x6", "cube")
# A setting of each kind is enough to see a fault; the whole table of faults and originals takes minutes.
SETTINGS = ["default", "late", "wd", "eps", "clip03", "const_amsgrad", "mixed"]


def _rejected_by_recorded_runs() -> list[str]:
    rejected = []
    for name in recorded.implementations():
        for setting in recorded.settings(name):
            if setting.name in SETTINGS and _worst(setting) > FLOAT64:
                rejected.append(f"{name} {setting.name}")
    return rejected


def _worst(setting: recorded.Setting) -> float:
    with np.errstate(all="ignore"):
        try:
            found = from_the_recorded(setting, run_oracle, SMALL)
        except ValueError:  # two factors that cannot be multiplied are a rejection, too
            return float("inf")
    return max(value if np.isfinite(value) else float("inf") for value in found.values())


# No original that was recorded here averages the update, so only the comparison can see this one.
SEEN_BY_RECORDED_RUNS = [fault for fault in [*KERNEL_FAULTS, *STEP_FAULTS] if fault != "momentum before clip"]


@pytest.mark.parametrize("fault", SEEN_BY_RECORDED_RUNS)
def test_the_recorded_runs_reject(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (KERNEL_FAULTS | STEP_FAULTS)[fault](monkeypatch, oracle)
    assert _rejected_by_recorded_runs()


def test_the_recorded_runs_accept_the_oracle() -> None:
    assert not _rejected_by_recorded_runs()


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
    for recipe in (EVERYTHING, AMSGRAD):
        with jax.disable_jit():
            try:
                worst, allowed = deviations(recipe, _problem(), "float64")
            except (ValueError, TypeError, RuntimeError):  # shapes that do not fit are a rejection, too
                rejected.append("error")
                continue
        rejected += [pair for pair, found in worst.items() if not allowed.allows(*found)]
    assert rejected


@pytest.mark.parametrize("fault", STEP_FAULTS)
def test_the_comparison_rejects_a_wrong_step(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the oracle: a difference is a difference, whichever side is wrong."""
    STEP_FAULTS[fault](monkeypatch, oracle)
    for recipe in (EVERYTHING, recipes.adafactor_pytorch(), FLOOR, LATE):
        with jax.disable_jit():
            worst, allowed = deviations(recipe, _problem(), "float64")
        if not all(allowed.allows(*found) for found in worst.values()):
            return
    pytest.fail("no recipe shows this fault")


def test_the_comparison_accepts_the_kernels() -> None:
    for recipe in (EVERYTHING, AMSGRAD):
        with jax.disable_jit():
            worst, allowed = deviations(recipe, _problem(), "float64")
        assert all(allowed.allows(*found) for found in worst.values()), worst
