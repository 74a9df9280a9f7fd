"""Resume is exact on every path, in every dtype and rounding; what is saved wins over what is new, but for the path."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_spec.factoring import explicit
from adafactor_torch import Adafactor
from adafactor_torch._param_groups import OPTIONS

from .torch_runs import (
    DTYPES,
    FLOAT64,
    advance,
    all_parameters,
    assert_near,
    bits,
    frozen,
    parameters,
    set_gradients,
    snapshot,
    through_disk,
    twins,
)

ROOT = Path(__file__).resolve().parents[1]
PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
ROUNDINGS = ("nearest", "stochastic", "kahan")
RECIPES = {
    "paper": recipes.paper(),
    "amsgrad": recipes.adafactor_pytorch(lr_decay_step=(2, 6), lr_decay_factor=0.5, weight_decay=0.1),
    "torch": recipes.torch(0.1, weight_decay=0.1),
    "optax": recipes.optax(0.1, min_dim_size_to_factor=3, momentum=0.9, dtype_momentum="bfloat16"),
    "scheduled": Recipe(
        lr=schedules.piecewise_constant(schedules.linear_warmup(0.2, 4), (3, 6), 0.5),
        beta2=schedules.power_decay(0.8, cap=0.99, offset=1),
        beta1=schedules.adam_decay(0.9),
        weight_decay=schedules.inverse_sqrt(),
        factoring=factoring.as_matrix,
    ),
}
# Every path, dtype and rounding, and the recipes in turn.
CASES = {
    f"{path} {str(dtype).removeprefix('torch.')} {rounding} {name}": (path, dtype, rounding, name)
    for (path, dtype, rounding), name in zip(
        itertools.product(PATHS, DTYPES, ROUNDINGS), itertools.cycle(RECIPES), strict=False
    )
}


def build(case: str, tensors: list[torch.nn.Parameter]) -> Adafactor:
    path, _, rounding, name = CASES[case]
    return Adafactor(tensors, recipe=RECIPES[name], rounding=rounding, seed=7, **PATHS[path])


def pictures(optimizers: dict[str, Adafactor]) -> dict[str, Any]:
    return {case: [[p.detach() for p in all_parameters(o)], o.state_dict()] for case, o in optimizers.items()}


def go_on(before: str, after: str) -> None:
    """What the new process does: all runs again from a file, three steps more, to a file."""
    torch.set_num_threads(1)
    optimizers = {}
    for case, (tensors, state_dict) in torch.load(before, weights_only=True).items():
        optimizers[case] = build(case, [torch.nn.Parameter(p) for p in tensors])
        optimizers[case].load_state_dict(state_dict)
        advance(optimizers[case], 4, 6)
    torch.save(pictures(optimizers), after)


def test_a_new_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    optimizers = {case: build(case, parameters(dtype)) for case, (_, dtype, _, _) in CASES.items()}
    for optimizer in optimizers.values():
        advance(optimizer, 1, 3)
    before, after = str(tmp_path / "before.pt"), str(tmp_path / "after.pt")
    torch.save(pictures(optimizers), before)
    script = "import sys; from parity_tests.test_torch_resume import go_on; go_on(*sys.argv[1:])"
    command, one_thread = [sys.executable, "-W", "error", "-c", script, before, after], {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=os.environ | one_thread, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    resumed = torch.load(after, weights_only=True)
    for case, optimizer in optimizers.items():
        advance(optimizer, 4, 6)
        assert frozen(resumed[case]) == frozen(pictures({case: optimizer})[case]), case


# ------------------------------------------------------------------------ what the compiled path carries between steps


# Each is split into several units, or into units of several matrices, in its own way.
SPLIT: list[tuple[tuple[int, ...], Any]] = [
    ((300, 500), factoring.last_two),
    ((70_000, 1), factoring.last_two),
    ((1, 70_000), factoring.last_two),
    ((70_000,), factoring.last_two),
    ((40, 30, 3, 3), factoring.last_two),
    ((40, 30, 3, 3), factoring.as_matrix),
    ((3, 200, 300), explicit(1, 2, 0)),
    ((3, 300, 400), explicit(2, 1, 0)),
    ((70_000, 3), factoring.no_factoring),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("shape", "rule"), SPLIT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fields", [{}, {"beta1": 0.9, "debias": True, "eps1_mode": "floor", "eps1": 1e-3}], ids=len)
def test_a_carried_sum_of_squares_is_the_one_that_is_taken_again(
    shape: tuple[int, ...], rule: Any, dtype: torch.dtype, fields: dict[str, Any]
) -> None:
    rounding = ROUNDINGS[(len(shape) + DTYPES.index(dtype)) % 3]
    options: dict[str, Any] = {"lr": 0.1, "factoring": rule, "rounding": rounding, "fused": True, **fields}
    optimizer = Adafactor(parameters(dtype, [shape]), **options)
    advance(optimizer, 1, 2)
    resumed = Adafactor(twins(optimizer), **options)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        set_gradients(3, all_parameters(each))
        each.step()
    (p,), (q,) = all_parameters(optimizer), all_parameters(resumed)
    assert torch.equal(p, q)
    assert all(torch.equal(optimizer.state[p][entry], resumed.state[q][entry]) for entry in optimizer.state[p])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_so_it_is_for_many_small_parameters(dtype: torch.dtype) -> None:
    """RMS(p) is rounded to float32, which hides most of another order of adding: many chances to see one."""
    optimizer = Adafactor(parameters(dtype, [(5 + i % 7, 20 + i) for i in range(400)]), lr=0.1, fused=True)
    for t in range(1, 4):
        resumed = Adafactor(twins(optimizer), lr=0.1, fused=True)
        resumed.load_state_dict(optimizer.state_dict())
        for each in (optimizer, resumed):
            set_gradients(t, all_parameters(each))
            each.step()
        assert all(map(torch.equal, all_parameters(optimizer), all_parameters(resumed)))


@pytest.mark.parametrize("path", PATHS)
def test_what_is_written_into_a_parameter_between_steps_is_seen(path: str) -> None:
    optimizer = Adafactor(parameters(), lr=0.1, **PATHS[path])
    advance(optimizer, 1, 2)
    with torch.no_grad():
        for p in all_parameters(optimizer):
            p.mul_(3.0)
    fresh = Adafactor(twins(optimizer), lr=0.1, **PATHS[path])
    fresh.load_state_dict(optimizer.state_dict())
    advance(optimizer, 3, 4)
    advance(fresh, 3, 4)
    assert snapshot(optimizer) == snapshot(fresh)


# ------------------------------------------------------------------------------------------------------ what wins


@pytest.mark.parametrize("new", PATHS)
@pytest.mark.parametrize("old", PATHS)
@pytest.mark.parametrize("name", ["paper", "amsgrad", "scheduled"])
def test_a_state_goes_on_on_another_path(old: str, new: str, name: str, tmp_path: Path) -> None:
    optimizer = Adafactor(parameters(torch.float64), recipe=RECIPES[name], **PATHS[old])
    advance(optimizer, 1, 3)
    resumed = Adafactor(twins(optimizer), recipe=RECIPES[name], **PATHS[new])
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    assert snapshot(resumed)[:2] == snapshot(optimizer)[:2]
    chosen = {key: value for key, value in resumed.param_groups[0].items() if key in ("foreach", "fused")}
    assert chosen == {"foreach": None, "fused": None} | PATHS[new]
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    for p, q in zip(all_parameters(optimizer), all_parameters(resumed), strict=True):
        assert_near(q, p.detach().numpy(), FLOAT64 * max(1.0, float(p.detach().abs().max())))


SAVED: dict[str, Any] = {
    "rounding": "kahan",
    "seed": 11,
    "nonfinite": "skip",
    "telemetry": True,
    "maximize": True,
    "beta1": 0.5,
}
MACHINE: dict[str, Any] = {"foreach": False, "fused": True, "capturable": True}


def test_the_run_is_what_was_saved_and_the_machine_what_is_new() -> None:
    optimizer = Adafactor(parameters(torch.bfloat16), foreach=True, **SAVED)
    advance(optimizer, 1, 2)
    resumed = Adafactor(twins(optimizer), beta1=0.9, **MACHINE)
    resumed.load_state_dict(optimizer.state_dict())
    group = resumed.param_groups[0]
    assert {key: group[key] for key in (*SAVED, *MACHINE)} == SAVED | MACHINE
    assert "format" not in group
    assert all("compensation" in resumed.state[p] for p in all_parameters(resumed))
    group["rounding"] = "nearest"
    advance(resumed, 3, 3)
    assert not any("compensation" in resumed.state[p] for p in all_parameters(resumed))


def released(state_dict: Any) -> Any:
    """As format 1 was: without options, or a word of a format."""
    state_dict = copy.deepcopy(state_dict)
    for group in state_dict["param_groups"]:
        for key in ("format", *OPTIONS):
            if key != "maximize":
                del group[key]
    return state_dict


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_released_format_loads(name: str, path: str, tmp_path: Path) -> None:
    optimizer = Adafactor(parameters(), recipe=RECIPES[name], **PATHS[path])
    advance(optimizer, 1, 3)
    resumed = Adafactor(twins(optimizer), recipe=RECIPES[name], rounding="kahan", telemetry=True, **PATHS[path])
    resumed.load_state_dict(through_disk(released(optimizer.state_dict()), tmp_path))
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    assert snapshot(resumed) == snapshot(optimizer)


@pytest.mark.parametrize("version", [3, 0, "2", None])
def test_another_format_is_refused_and_nothing_has_changed(version: Any) -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    advance(optimizer, 1, 1)
    other = Adafactor(parameters(), beta1=0.9)
    advance(other, 1, 2)
    state_dict, before = optimizer.state_dict(), snapshot(other)
    assert [group["format"] for group in state_dict["param_groups"]] == [2]
    state_dict["param_groups"][0]["format"] = version
    with pytest.raises(ValueError, match=r"^format of group 0 of the state dict must be 1 to 2, got .*later version"):
        other.load_state_dict(state_dict)
    assert snapshot(other) == before


@pytest.mark.parametrize("option", ["rounding", "seed", "nonfinite", "telemetry", "maximize"])
def test_a_saved_option_out_of_range_is_refused(option: str) -> None:
    optimizer = Adafactor(parameters())
    state_dict, before = optimizer.state_dict(), snapshot(optimizer)
    state_dict["param_groups"][0][option] = "what"
    with pytest.raises(ValueError, match=f"^{option} must be "):
        optimizer.load_state_dict(state_dict)
    assert snapshot(optimizer) == before


# ------------------------------------------------------------------------------------------------ a tensor for lr


@pytest.mark.parametrize("path", PATHS)
def test_a_tensor_is_a_learning_rate_that_a_scheduler_fills(path: str, tmp_path: Path) -> None:
    def made(tensors: list[torch.nn.Parameter], lr: Any) -> tuple[Adafactor, Any]:
        optimizer = Adafactor(tensors, lr=lr, relative_step=False, **PATHS[path])
        return optimizer, lr_scheduler.ExponentialLR(optimizer, 0.5)

    def go(optimizer: Adafactor, scheduler: Any, first: int, last: int) -> None:
        for t in range(first, last + 1):
            advance(optimizer, t, t)
            scheduler.step()

    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer, scheduler = made(parameters(), lr)
    number, of_number = made(parameters(), 0.5)
    go(optimizer, scheduler, 1, 3)
    go(number, of_number, 1, 3)
    assert optimizer.param_groups[0]["lr"] is lr and float(lr) == 0.0625
    assert snapshot(optimizer)[:2] == snapshot(number)[:2]
    saved = optimizer.state_dict()
    resumed, again = made(twins(optimizer), torch.tensor(0.9))
    again.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(through_disk(saved, tmp_path))
    taken = resumed.param_groups[0]["lr"]
    assert isinstance(taken, Tensor) and bits(taken) == bits(lr)
    resumed.load_state_dict(saved)
    go(resumed, again, 4, 6)
    assert float(lr) == 0.0625, "loading copies it"
    go(optimizer, scheduler, 4, 6)
    assert snapshot(resumed) == snapshot(optimizer)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_a_tensor_out_of_range_is_refused(lr: float) -> None:
    with pytest.raises(ValueError, match=r"^lr must be at least 0"):
        Adafactor(parameters(), lr=torch.tensor(lr))
    with pytest.raises(ValueError, match=r"^lr must be a number or a tensor with one"):
        Adafactor(parameters(), lr=torch.ones(2))
    optimizer = Adafactor(parameters(), lr=torch.tensor(0.1))
    advance(optimizer, 1, 1)
    before = snapshot(optimizer)[:2]
    optimizer.param_groups[0]["lr"].fill_(lr)
    set_gradients(2, all_parameters(optimizer))
    with pytest.raises(ValueError, match=r"^lr( at t = 2)? must be at least 0"):
        optimizer.step()
    assert snapshot(optimizer)[:2] == before
