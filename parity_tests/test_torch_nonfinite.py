"""Gradients that are not finite, and torch's GradScaler: what is left out stays bit for bit as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from adafactor_spec import recipes
from adafactor_torch import Adafactor

from .replay import FLOAT32
from .torch_runs import (
    advance,
    all_parameters,
    assert_near,
    frozen,
    gradient,
    parameters,
    set_gradients,
    snapshot,
)

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
RECIPES = {
    "paper": recipes.paper(),
    "amsgrad": recipes.adafactor_pytorch(lr_decay_step=(2, 6), lr_decay_factor=0.5, weight_decay=0.1),
    "torch": recipes.torch(0.1, weight_decay=0.1),
}
BAD: dict[str, tuple[torch.dtype, float, dict[str, Any]]] = {
    "nan": (torch.float32, float("nan"), {"recipe": RECIPES["amsgrad"]}),
    "inf": (torch.float64, float("inf"), {"recipe": RECIPES["paper"]}),
    "-inf": (torch.bfloat16, float("-inf"), {"recipe": RECIPES["torch"], "rounding": "stochastic"}),
    "overflow": (torch.float16, 1e6, {"recipe": RECIPES["paper"], "rounding": "kahan"}),
}


# ------------------------------------------------------------------------------------------------ nonfinite="skip"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", BAD)
def test_the_others_move_as_if_it_had_no_gradient(case: str, path: str) -> None:
    dtype, bad, options = BAD[case]
    options = options | PATHS[path] | {"nonfinite": "skip", "telemetry": True}
    one, other = (Adafactor(parameters(dtype), **options) for _ in range(2))
    for optimizer in (one, other):
        advance(optimizer, 1, 2)
    for t, index in ((3, 0), (4, 2), (5, 1)):
        for optimizer in (one, other):
            set_gradients(t, all_parameters(optimizer))
        grad = all_parameters(one)[index].grad
        assert grad is not None
        grad.view(-1)[-1] = bad
        all_parameters(other)[index].grad = None
        one.step()
        other.step()
        assert snapshot(one) == snapshot(other)
    assert [int(told["skipped"]) for told in one.telemetry().values()] == [1, 1, 1, 0]
    assert [int(told["skipped"]) for told in other.telemetry().values()] == [0, 0, 0, 0]
    steps = [int(one.state[p]["step"]) for p in all_parameters(one)]
    assert steps == [4, 4, 4, 5]


@pytest.mark.parametrize("path", PATHS)
def test_a_first_gradient_that_is_bad_makes_no_state(path: str) -> None:
    optimizer = Adafactor(parameters(), nonfinite="skip", **PATHS[path])
    bad = all_parameters(optimizer)[0]
    set_gradients(1, all_parameters(optimizer))
    bad.grad = torch.full_like(bad, torch.inf)
    optimizer.step()
    assert set(optimizer.state) == set(all_parameters(optimizer)[1:])
    advance(optimizer, 2, 2)
    assert int(optimizer.state[bad]["step"]) == 1


@pytest.mark.parametrize("path", PATHS)
def test_step_param_leaves_it_out_too(path: str) -> None:
    optimizer = Adafactor(parameters(), nonfinite="skip", **PATHS[path])
    advance(optimizer, 1, 1)
    before, (p, *_) = snapshot(optimizer), all_parameters(optimizer)
    p.grad = torch.full_like(p, torch.nan)
    optimizer.step_param(p)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("path", PATHS)
def test_propagate_is_torchs_habit(path: str) -> None:
    optimizer = Adafactor(parameters(), **PATHS[path])
    bad, *good = all_parameters(optimizer)
    set_gradients(1, all_parameters(optimizer))
    bad.grad = torch.full_like(bad, torch.nan)
    optimizer.step()
    assert bool(bad.isnan().all()) and int(optimizer.state[bad]["step"]) == 1
    assert all(bool(p.isfinite().all()) for p in good)


# ------------------------------------------------------------------------------------------------------ GradScaler


# capturable=True means nothing on a CPU but that unscaling is left to the step, as with fused=True.
SCALED: dict[str, dict[str, Any]] = {
    "outside": {"foreach": False},
    "outside, eager": {},
    "plain": {"foreach": False, "capturable": True},
    "eager": {"capturable": True},
    "compiled": {"fused": True},
}


def losses(optimizer: Adafactor, first: int, last: int) -> Iterator[Tensor]:
    """Of each step a loss whose gradients are those of `advance`, exactly, whatever power of two it is scaled by."""
    for t in range(first, last + 1):
        for p in all_parameters(optimizer):
            p.grad = None
        tensors = enumerate(all_parameters(optimizer))
        yield sum((torch.tensor(gradient(t, i, tuple(p.shape))).to(p) * p).sum() for i, p in tensors)  # type: ignore[misc]


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", SCALED)
def test_a_scaled_run_is_the_run(case: str, name: str, dtype: torch.dtype) -> None:
    plain, scaled = (Adafactor(parameters(dtype), recipe=RECIPES[name], **SCALED[case]) for _ in range(2))
    assert scaled._step_supports_amp_scaling == (not case.startswith("outside"))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    advance(plain, 1, 4)
    for loss in losses(scaled, 1, 4):
        scaler.scale(loss).backward()
        scaler.step(scaled)
        scaler.update()
    assert scaler.get_scale() == 2.0**12
    assert not hasattr(scaled, "found_inf")
    if case != "eager" and (case, dtype) != ("compiled", torch.float32):
        assert snapshot(scaled) == snapshot(plain)
    else:  # these take another order of the same arithmetic where there is a scale
        for p, q in zip(all_parameters(scaled), all_parameters(plain), strict=True):
            assert_near(p, q.detach().numpy(), FLOAT32 if dtype == torch.float32 else None)


@pytest.mark.parametrize("case", SCALED)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_an_infinite_gradient_leaves_everything_as_it_was(case: str, nonfinite: str) -> None:
    options = SCALED[case] | {"nonfinite": nonfinite, "telemetry": True}
    optimizer = Adafactor(parameters(), recipe=RECIPES["amsgrad"], **options)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    advance(optimizer, 1, 2)
    before, told = snapshot(optimizer), frozen(optimizer.telemetry())
    for loss in losses(optimizer, 3, 3):
        scaler.scale(loss * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert snapshot(optimizer) == before
    inside = optimizer._step_supports_amp_scaling and nonfinite == "skip"
    assert [int(of["skipped"]) for of in optimizer.telemetry().values()] == [int(inside)] * 4
    assert inside or frozen(optimizer.telemetry()) == told
    advance(optimizer, 3, 3)
    other = Adafactor(parameters(), recipe=RECIPES["amsgrad"], **options)
    advance(other, 1, 3)
    assert snapshot(optimizer) == snapshot(other), "it goes on as if nothing had been"


@pytest.mark.parametrize("case", SCALED)
def test_gradients_that_are_unscaled_before_are_not_again(case: str) -> None:
    clipped, scaled = (Adafactor(parameters(), lr=0.1, **SCALED[case]) for _ in range(2))
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for t, loss in enumerate(losses(scaled, 1, 3), 1):
        set_gradients(t, all_parameters(clipped))
        torch.nn.utils.clip_grad_norm_(all_parameters(clipped), 0.5)
        clipped.step()
        scaler.scale(loss).backward()
        scaler.unscale_(scaled)
        torch.nn.utils.clip_grad_norm_(all_parameters(scaled), 0.5)
        scaler.step(scaled)
        scaler.update()
    assert snapshot(scaled) == snapshot(clipped)


@pytest.mark.parametrize("case", ["plain", "eager", "compiled"])
def test_any_scale(case: str) -> None:
    """1 / 1000 is not exact in float64, so bits may differ, but no more than float64 does."""
    plain, scaled = (Adafactor(parameters(torch.float64), lr=0.1, **SCALED[case]) for _ in range(2))
    scaler = GradScaler("cpu", init_scale=1000.0)
    advance(plain, 1, 3)
    for loss in losses(scaled, 1, 3):
        scaler.scale(loss).backward()
        scaler.step(scaled)
        scaler.update()
    for p, q in zip(all_parameters(scaled), all_parameters(plain), strict=True):
        assert_near(p, q.detach().numpy())


@pytest.mark.parametrize("case", ["plain", "eager", "compiled"])
def test_no_gradients_at_all(case: str) -> None:
    """GradScaler hands over the plain 0 that is the sum of no flags."""
    optimizer = Adafactor(parameters(), **SCALED[case])
    before, scaler = snapshot(optimizer), GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert snapshot(optimizer) == before
    with_some = Adafactor(parameters(), **SCALED[case])
    set_gradients(1, all_parameters(with_some)[:1])
    scaler.step(with_some)
    assert len(with_some.state) == 1


def test_a_scaler_that_is_off_changes_nothing() -> None:
    optimizer, other = (Adafactor(parameters(), fused=True) for _ in range(2))
    scaler = GradScaler("cpu", enabled=False)
    for loss in losses(optimizer, 1, 2):
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    advance(other, 1, 2)
    assert snapshot(optimizer) == snapshot(other)
