"""Whole training: a loop that learns, mixed precision, and torch's distributed checkpoints in one process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import advance, all_parameters, frozen, parameter_bits, parameters, snapshot, twins


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth a second thread, which on busy cores makes every step wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(recipe: Recipe) -> tuple[list[float], list[bytes]]:
    """Losses and final weights of a small network that learns a fixed smooth function of eight numbers."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=random)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3]
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random) / 3)
    optimizer, losses = Adafactor(model.parameters(), recipe=recipe), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(torch.nn.functional.mse_loss(y.mean().expand_as(y), y).item())
    return losses, parameter_bits(optimizer)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(lr=0.05),
        Recipe(lr=schedules.piecewise_constant(0.1, (30, 45), 0.3), beta1=0.9),
        recipes.adafactor_pytorch(0.05, non_constant_decay=False),
        recipes.torch(0.05),
        recipes.optax(0.05, min_dim_size_to_factor=8),
    ],
    ids=["paper", "piecewise", "adafactor_pytorch", "torch", "optax"],
)
def test_training_learns_and_repeats_bit_identically(recipe: Recipe) -> None:
    (*losses, constant), weights = train(recipe)
    assert losses[-1] < constant < losses[0], "it starts worse and ends better than the best constant answer"
    assert ([*losses, constant], weights) == train(recipe)


# ------------------------------------------------------------------------------------------------- mixed precision


def scaled_step(optimizer: torch.optim.Optimizer, scaler: Any, factor: float) -> None:
    """One step under a gradient scaler whose gradients are (2 p - 1) * factor."""
    optimizer.zero_grad()
    loss = sum(((p * p - p).sum() * factor for p in all_parameters(optimizer)), torch.zeros(()))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_gradient_scaler() -> None:
    optimizer, plain = (Adafactor(parameters(), lr=0.1, beta1=0.9) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    no_scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(3):
        scaled_step(optimizer, scaler, 1.0)
        scaled_step(plain, no_scaler, 1.0)
    assert snapshot(optimizer) == snapshot(plain), "a power of two leaves no trace"
    before = snapshot(optimizer)
    scaled_step(optimizer, scaler, float("inf"))
    assert snapshot(optimizer) == before, "a step with infinite gradients is skipped"
    assert scaler.get_scale() == 2.0**9
    scaled_step(optimizer, scaler, 1.0)
    scaled_step(plain, no_scaler, 1.0)
    assert snapshot(optimizer) == snapshot(plain)


def test_gradient_scaler_with_unscaled_and_clipped_gradients() -> None:
    optimizer, plain = (Adafactor(parameters(), lr=0.1) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = scaler.scale(sum((p.square().sum() for p in all_parameters(optimizer)), torch.zeros(())))
    scaled.backward()
    scaler.unscale_(optimizer)
    sum((p.square().sum() for p in all_parameters(plain)), torch.zeros(())).backward()
    for one in (optimizer, plain):
        torch.nn.utils.clip_grad_norm_(all_parameters(one), 1.0)
    scaler.step(optimizer)
    plain.step()
    assert snapshot(optimizer) == snapshot(plain)


def test_autocast_does_not_reach_into_the_step() -> None:
    inside, outside = (Adafactor(parameters(), lr=0.1, beta1=0.9, factoring=factoring.as_matrix) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        advance(inside, 1, 3)
    advance(outside, 1, 3)
    assert snapshot(inside) == snapshot(outside)


# -------------------------------------------------------------------------------------------- distributed checkpoints

CHECKPOINTED: dict[str, Callable[[torch.nn.Module], Adafactor]] = {
    "paper": lambda model: Adafactor(model.parameters(), lr=0.1, weight_decay=0.1),
    "amsgrad": lambda model: Adafactor(model.parameters(), recipe=recipes.adafactor_pytorch(non_constant_decay=False)),
    "by_name": lambda model: Adafactor(
        model.named_parameters(), factoring=factoring.by_name({"bias": factoring.no_factoring}), beta1=0.9
    ),
    "schedule": lambda model: Adafactor(
        model.parameters(), lr=schedules.piecewise_constant(0.1, (2, 5), 0.5), weight_decay=0.1
    ),
    "function": lambda model: Adafactor(model.parameters(), lr=lambda t: 0.1 / t, weight_decay=0.1),
    "decay by one": lambda model: Adafactor(model.parameters(), lr=0.1, weight_decay=0.1, weight_decay_by="one"),
    "groups": lambda model: Adafactor([{"params": [p], "lr": 0.1 / i} for i, p in enumerate(model.parameters(), 1)]),
}


def network() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    for p, fresh in zip(model.parameters(), parameters(shapes=[p.shape for p in model.parameters()]), strict=True):
        p.data.copy_(fresh)
    return model


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("case", CHECKPOINTED)
def test_checkpoint_state_dicts_of_one_process(case: str, flat: bool) -> None:
    """`get_optimizer_state_dict` and `set_optimizer_state_dict` go by parameter names, and need no process group."""
    options = checkpoint.StateDictOptions(flatten_optimizer_state_dict=flat)
    model, again = network(), network()
    optimizer, resumed = CHECKPOINTED[case](model), CHECKPOINTED[case](again)
    advance(optimizer, 1, 3)
    saved = checkpoint.get_optimizer_state_dict(model, optimizer, options=options)
    for p, old in zip(again.parameters(), twins(optimizer), strict=True):
        p.data.copy_(old)
    before = parameter_bits(resumed)
    checkpoint.set_optimizer_state_dict(again, resumed, saved, options=options)
    assert parameter_bits(resumed) == before
    assert snapshot(resumed)[:2] == snapshot(optimizer)[:2]
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    assert snapshot(resumed)[:2] == snapshot(optimizer)[:2]


@pytest.mark.parametrize("case", CHECKPOINTED)
def test_a_checkpoint_template_of_a_fresh_optimizer_moves_nothing(case: str) -> None:
    """torch makes the state by a step with zero gradients, and `group["lr"] = 0` so that nothing moves."""
    model = network()
    optimizer = CHECKPOINTED[case](model)
    before, rates = parameter_bits(optimizer), [group["lr"] for group in optimizer.param_groups]
    template = checkpoint.get_optimizer_state_dict(model, optimizer)
    assert parameter_bits(optimizer) == before
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert not any(int(state["step"]) for state in optimizer.state.values())
    assert set(template["state"]) == {name for name, _ in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # which is what no_dist=True asks for
@pytest.mark.parametrize("case", CHECKPOINTED)
def test_distributed_checkpoint_on_disk(case: str, tmp_path: Path) -> None:
    model, again = network(), network()
    optimizer, resumed = CHECKPOINTED[case](model), CHECKPOINTED[case](again)
    advance(optimizer, 1, 3)
    saved: dict[str, Any] = {"optimizer": checkpoint.get_optimizer_state_dict(model, optimizer)}
    save(saved, checkpoint_id=tmp_path, no_dist=True)
    for p, old in zip(again.parameters(), twins(optimizer), strict=True):
        p.data.copy_(old)
    template: dict[str, Any] = {"optimizer": checkpoint.get_optimizer_state_dict(again, resumed)}
    load(template, checkpoint_id=tmp_path, no_dist=True)
    assert frozen(template) == frozen(saved)
    checkpoint.set_optimizer_state_dict(again, resumed, template["optimizer"])
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    assert snapshot(resumed)[:2] == snapshot(optimizer)[:2]
