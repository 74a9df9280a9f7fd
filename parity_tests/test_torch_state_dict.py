"""State dicts are tensors and plain values, and a run that is resumed from one continues bit-identically."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import (
    DTYPES,
    advance,
    all_parameters,
    bits,
    frozen,
    parameters,
    set_gradients,
    snapshot,
    through_disk,
    twins,
)

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "paper": recipes.paper(),
    "adafactor_pytorch": recipes.adafactor_pytorch(lr_decay_step=(2, 6), lr_decay_factor=0.5, weight_decay=0.1),
    "amsgrad": recipes.adafactor_pytorch_parent(0.1, non_constant_decay=False, enable_factorization=False),
    "torch": recipes.torch(0.1, weight_decay=0.1),
    "optax": recipes.optax(0.1, min_dim_size_to_factor=3, momentum=0.9, dtype_momentum="bfloat16"),
    "piecewise": Recipe(
        lr=schedules.piecewise_constant(schedules.linear_warmup(0.2, 4), (3, 6), 0.5),
        beta2=schedules.power_decay(0.8, cap=0.99, offset=1),
        beta1=schedules.adam_decay(0.9),
        weight_decay=schedules.inverse_sqrt(),
        factoring=factoring.as_matrix,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_resume_through_disk_is_bit_identical(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    optimizer = Adafactor(parameters(dtype), recipe=RECIPES[name])
    advance(optimizer, 1, 4)
    resumed = Adafactor(twins(optimizer), recipe=RECIPES[name])
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    assert snapshot(resumed) == snapshot(optimizer)
    advance(optimizer, 5, 8)
    advance(resumed, 5, 8)
    assert snapshot(resumed) == snapshot(optimizer)


def test_resume_in_a_new_process_is_bit_identical(tmp_path: Path) -> None:
    script = """
import sys, torch
from adafactor_torch import Adafactor
from parity_tests.test_torch_state_dict import RECIPES, all_parameters, advance
saved = torch.load(sys.argv[1], weights_only=True)
optimizers = {}
for name, (tensors, state_dict) in saved.items():
    optimizers[name] = Adafactor([torch.nn.Parameter(p) for p in tensors], recipe=RECIPES[name])
    optimizers[name].load_state_dict(state_dict)
    advance(optimizers[name], 5, 8)
after = {name: [[p.detach() for p in all_parameters(o)], o.state_dict()] for name, o in optimizers.items()}
torch.save(after, sys.argv[2])
"""
    optimizers = {name: Adafactor(parameters(torch.bfloat16), recipe=recipe) for name, recipe in RECIPES.items()}
    for optimizer in optimizers.values():
        advance(optimizer, 1, 4)
    saved = {name: [[p.detach() for p in all_parameters(o)], o.state_dict()] for name, o in optimizers.items()}
    torch.save(saved, tmp_path / "before.pt")
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "before.pt"), str(tmp_path / "after.pt")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    after = torch.load(tmp_path / "after.pt", weights_only=True)
    for name, optimizer in optimizers.items():
        advance(optimizer, 5, 8)
        assert frozen(after[name]) == frozen([all_parameters(optimizer), optimizer.state_dict()])


def test_state_dict_is_a_picture_of_the_groups() -> None:
    first, *rest = parameters()
    optimizer = Adafactor([{"params": [first], "beta1": 0.9, "note": "mine"}, {"params": rest}], lr=0.1)
    groups = optimizer.state_dict()["param_groups"]
    assert [group["params"] for group in groups] == [[0], [1, 2, 3]]
    assert [(group["lr"], group["beta1"]) for group in groups] == [(0.1, 0.9), (0.1, None)]
    assert groups[0]["note"] == "mine"


def test_loading_copies_the_state(tmp_path: Path) -> None:
    optimizer = Adafactor(parameters())
    advance(optimizer, 1, 2)
    state_dict = copy.deepcopy(optimizer.state_dict())
    resumed, before = Adafactor(twins(optimizer)), frozen(state_dict)
    resumed.load_state_dict(state_dict)
    advance(resumed, 3, 4)
    assert frozen(state_dict) == before


def test_the_saved_numbers_win_over_those_of_the_new_optimizer() -> None:
    optimizer = Adafactor(parameters(), lr=0.1, weight_decay=0.2)
    advance(optimizer, 1, 2)
    optimizer.param_groups[0]["lr"] = 0.03
    resumed = Adafactor(twins(optimizer), lr=schedules.inverse_sqrt(), weight_decay=0.5)
    resumed.load_state_dict(optimizer.state_dict())
    group = resumed.param_groups[0]
    assert (group["lr"], group["lr_schedule"], group["weight_decay"]) == (0.03, None, 0.2)


def test_the_saved_storage_dtypes_win_too() -> None:
    """Otherwise the run would go on with a more precise state than the one that it names."""
    optimizer = Adafactor(parameters(torch.bfloat16), recipe="torch", beta1=0.9, momentum_dtype="bfloat16")
    advance(optimizer, 1, 3)
    resumed = Adafactor(twins(optimizer), recipe="torch", beta1=0.9, momentum_dtype="float32", state_dtype=None)
    resumed.load_state_dict(optimizer.state_dict())
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    assert snapshot(resumed) == snapshot(optimizer)


def test_parameters_without_state_have_none_after_loading() -> None:
    optimizer = Adafactor(parameters())
    set_gradients(1, all_parameters(optimizer)[:2])
    optimizer.step()
    resumed = Adafactor(twins(optimizer))
    resumed.load_state_dict(optimizer.state_dict())
    assert list(resumed.state) == all_parameters(resumed)[:2]
    advance(optimizer, 2, 3)
    advance(resumed, 2, 3)
    assert snapshot(resumed) == snapshot(optimizer)
    unstepped = Adafactor(parameters())
    unstepped.load_state_dict(Adafactor(parameters(), lr=0.3).state_dict())
    assert not unstepped.state
    assert unstepped.param_groups[0]["lr"] == 0.3


def test_loading_starts_over_a_run_that_has_gone_on(tmp_path: Path) -> None:
    optimizer = Adafactor(parameters(), recipe=RECIPES["piecewise"])
    advance(optimizer, 1, 3)
    saved, weights = through_disk(optimizer.state_dict(), tmp_path), twins(optimizer)
    advance(optimizer, 4, 8)
    after = snapshot(optimizer)
    with torch.no_grad():
        for p, old in zip(all_parameters(optimizer), weights, strict=True):
            p.copy_(old)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5 * 0.2 * 3 / 4
    advance(optimizer, 4, 8)
    assert snapshot(optimizer) == after


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_keeps_its_precision_on_parameters_of_another_dtype(dtype: torch.dtype) -> None:
    optimizer = Adafactor(parameters(torch.float32), beta1=0.9)
    advance(optimizer, 1, 3)
    resumed = Adafactor(twins(optimizer, dtype), beta1=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    for p, old in zip(all_parameters(resumed), all_parameters(optimizer), strict=True):
        for entry, tensor in optimizer.state[old].items():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert bits(resumed.state[p][entry]) == bits(tensor.to(torch.int64 if entry == "step" else wide))
    advance(resumed, 4, 5)
    assert {p.dtype for p in all_parameters(resumed)} == {dtype}


def test_a_scheduler_and_its_optimizer_resume_together(tmp_path: Path) -> None:
    def build(tensors: list[torch.nn.Parameter]) -> tuple[Adafactor, Any]:
        optimizer = Adafactor(tensors, lr=0.2, relative_step=False)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)

    def go(optimizer: Adafactor, scheduler: Any, first: int, last: int) -> None:
        for t in range(first, last + 1):
            advance(optimizer, t, t)
            scheduler.step()

    optimizer, scheduler = build(parameters())
    go(optimizer, scheduler, 1, 4)
    resumed, again = build(twins(optimizer))
    again.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    go(optimizer, scheduler, 5, 8)
    go(resumed, again, 5, 8)
    assert snapshot(resumed) == snapshot(optimizer)
