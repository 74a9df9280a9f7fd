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
from parity_tests.faults import FAULTS, KERNEL_FAULTS, STEP_FAULTS
from parity_tests.random_recipes import SHAPES
from parity_tests.rejections import rejections
from parity_tests.test_agreement import Run, compared, run

# An original whose recorded runs reject a fault, where those of t5x do not; `make tables` shows all that do.
REJECTED_BY = {
    "momentum before clip": "big_vision",
    "normaliser over the wrong axis": "paper",
    "rows and columns swapped": "paper",
    "no normaliser": "paper",
    "amsgrad not debiased": "adafactor_pytorch",
    "decay times nothing": "kohya",
    "decay after RMS(p)": "keras",
    "momentum rounded in another place": "big_vision",
    "first moment not debiased": "adafactor_pytorch",
    "beta2 without its cap": "timm_big_vision",
    "eps1 added where it is a floor": "torch",
    "no relative step": "paper",
    "ties to the first axes": "optax",
    "min_dim exclusive": "optax",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_recorded_runs_reject(fault: str) -> None:
    assert any(True for _ in rejections(fault, REJECTED_BY.get(fault, "t5x")))


def test_the_recorded_runs_accept_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "none", lambda patch, kernels: None)
    assert not [found for name in {"t5x", *REJECTED_BY.values()} for found in rejections("none", name)]


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
    shapes = {name: SHAPES[name] for name in ("vector", "matrix", "stack", "kernel")}  # each compiles its own operators
    params = {name: rng.standard_normal(shape) * (name != "vector") for name, shape in shapes.items()}
    return params, [{name: rng.standard_normal(shape) * 10.0**t for name, shape in shapes.items()} for t in range(3)]


@functools.cache
def _right(recipe: Recipe) -> dict[str, Run]:
    """What every implementation computes without a fault: made once, and before a fault is planted."""
    with jax.disable_jit():
        made = ("oracle", "yardstick", "jax", "torch")
        return {which: run(which, recipe, _problem(), "float64", plain=True) for which in made}


def _rejected(recipe: Recipe, wrong: tuple[str, ...], errors: tuple[type[Exception], ...] = ()) -> bool:
    """Whether the comparison sees the fault that is planted now in the implementations `wrong`, or one of `errors`."""
    try:
        with jax.disable_jit():
            runs = {which: run(which, recipe, _problem(), "float64", plain=True) for which in wrong}
    except errors:
        return True
    worst, allowed = compared(_right(recipe) | runs, _problem(), "float64")
    return not all(allowed.allows(*found) for found in worst.values())


@pytest.mark.parametrize(("name", "kernels"), [("jax", jax_kernels), ("torch", torch_kernels)], ids=["jax", "torch"])
@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_the_comparison_rejects(fault: str, name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in FOR_KERNELS:
        _right(recipe)
    KERNEL_FAULTS[fault](monkeypatch, kernels)
    unfit = (ValueError, TypeError, RuntimeError)  # shapes that do not fit are a rejection, too
    assert any(_rejected(recipe, (name,), unfit) for recipe in FOR_KERNELS), "no recipe shows this fault"


@pytest.mark.parametrize("fault", STEP_FAULTS)
def test_the_comparison_rejects_a_wrong_step(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the oracle: a difference is a difference, whichever side is wrong."""
    for recipe in FOR_STEPS:
        _right(recipe)
    STEP_FAULTS[fault](monkeypatch, oracle)
    assert any(_rejected(recipe, ("oracle", "yardstick")) for recipe in FOR_STEPS), "no recipe shows this fault"


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "as_chosen"])
def test_the_comparison_accepts_the_kernels(plain: bool) -> None:
    for recipe in {*FOR_KERNELS, *FOR_STEPS}:
        runs = _right(recipe)
        if not plain:
            runs = runs | {"torch": run("torch", recipe, _problem(), "float64")}
        worst, allowed = compared(runs, _problem(), "float64")
        assert all(allowed.allows(*found) for found in worst.values()), worst
