"""`group["lr"]` is the learning rate in force: written by the recipe's schedule, or by torch's schedulers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from adafactor_spec import Recipe, schedules
from adafactor_torch import Adafactor

from .torch_runs import (
    advance,
    all_parameters,
    assert_near,
    gradient,
    oracle_run,
    parameter_bits,
    parameters,
    snapshot,
    values,
)

SHAPE = (4, 3)
STEPS = 8
PIECEWISE = schedules.piecewise_constant(0.2, (3, 6), 0.5)

SCHEDULES: dict[str, tuple[Any, Callable[[int], float]]] = {
    "piecewise_constant": (PIECEWISE, lambda t: 0.2 if t < 3 else 0.1 if t < 6 else 0.05),
    "over a schedule": (
        schedules.piecewise_constant(schedules.inverse_sqrt(), (4,), 0.1),
        lambda t: t**-0.5 * (0.1 if t >= 4 else 1.0),
    ),
    "linear_warmup": (schedules.linear_warmup(0.4, 5), lambda t: 0.4 * min(1.0, t / 5)),
    "function": (lambda t: 0.3 / (t + 1), lambda t: 0.3 / (t + 1)),
}


@pytest.mark.parametrize("relative_step", [False, True])
@pytest.mark.parametrize("case", SCHEDULES)
def test_a_schedule_is_followed_and_the_group_says_so(case: str, relative_step: bool) -> None:
    lr, expected = SCHEDULES[case]
    param = torch.nn.Parameter(torch.tensor(values(SHAPE, 0)))
    recipe = Recipe(lr=lr, relative_step=relative_step, weight_decay=0.1)
    optimizer = Adafactor([param], recipe=recipe)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected(1), rel=1e-15)
    for t in range(1, STEPS + 1):
        advance(optimizer, t, t)
        assert type(optimizer.param_groups[0]["lr"]) is float
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected(t), rel=1e-15)
    assert_near(param, oracle_run(recipe, values(SHAPE, 0), [gradient(t, 0, SHAPE) for t in range(1, STEPS + 1)]))


def test_a_function_sees_one_at_the_first_update_and_each_parameter_its_own_step() -> None:
    seen: list[float] = []

    def lr(t: float) -> float:
        seen.append(t)
        return 0.1

    first, second = parameters()[:2]
    optimizer = Adafactor([first], lr=lr)
    seen.clear()  # of what building it asked for
    advance(optimizer, 1, 2)
    assert set(seen) == {1, 2}
    optimizer.add_param_group({"params": [second]})
    seen.clear()
    advance(optimizer, 3, 3)
    assert set(seen) == {3, 1}
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_the_groups_learning_rate_is_that_of_the_step_just_made() -> None:
    optimizer = Adafactor([{"params": [p], "lr": PIECEWISE} for p in parameters()[:2]])
    frozen = all_parameters(optimizer)[1]
    for t in range(1, 4):
        advance(optimizer, t, t)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    frozen.grad = None
    for _ in range(3):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


# ------------------------------------------------------------------------------------------------ torch's schedulers


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)
    return lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.ExponentialLR(optimizer, 0.5)], milestones=[3])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.5, STEPS, cycle_momentum=False),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS),
    "SequentialLR": sequential,
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5),
}


def driven(optimizer: torch.optim.Optimizer, make: Callable[[torch.optim.Optimizer], Any]) -> Iterator[float]:
    """The learning rate in force at each step of a run under a scheduler."""
    scheduler = make(optimizer)
    arguments = [1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []  # a loss that does not fall
    for t in range(1, STEPS + 1):
        yield optimizer.param_groups[0]["lr"]
        advance(optimizer, t, t)
        scheduler.step(*arguments)


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_scheduler_drives_a_number(case: str) -> None:
    rates = list(driven(torch.optim.SGD(parameters(), lr=0.2), SCHEDULERS[case]))
    assert len(set(rates)) > 2
    optimizer, by_hand, unmoved = (Adafactor(parameters(), lr=0.2, relative_step=False) for _ in range(3))
    assert list(driven(optimizer, SCHEDULERS[case])) == rates
    for t, rate in enumerate(rates, 1):
        by_hand.param_groups[0]["lr"] = rate
        advance(by_hand, t, t)
    advance(unmoved, 1, STEPS)
    assert parameter_bits(optimizer) == parameter_bits(by_hand) != parameter_bits(unmoved)


def test_a_scheduler_drives_each_group() -> None:
    optimizer = Adafactor([{"params": [p], "lr": 0.1 * 2**i} for i, p in enumerate(parameters())])
    scheduler = lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.5**epoch, *3 * [lambda epoch: 0.25**epoch]])
    advance(optimizer, 1, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05, 0.1, 0.2]
    advance(optimizer, 2, 2)


@pytest.mark.parametrize("case", SCHEDULERS)
@pytest.mark.parametrize("lr", [PIECEWISE, lambda t: 0.2 / t], ids=["schedule", "function"])
def test_a_scheduler_over_a_schedule_is_refused(case: str, lr: Any) -> None:
    """Two masters of one number: the schedule would silently win, whatever the scheduler wrote."""
    optimizer = Adafactor(parameters(), lr=lr)
    start = snapshot(optimizer)[:2]
    plateau = case == "ReduceLROnPlateau"  # shows itself only when it reduces for the first time
    with pytest.raises(ValueError, match=r"^lr must be a number under a torch.optim.lr_scheduler, got .*\. Pass"):
        list(driven(optimizer, SCHEDULERS[case]))
    assert plateau or snapshot(optimizer)[:2] == start


def test_a_number_written_over_a_schedule_is_refused() -> None:
    """It could be in force for no step at all."""
    optimizer = Adafactor(parameters(), lr=PIECEWISE)
    advance(optimizer, 1, 1)
    before = snapshot(optimizer)[:2]
    optimizer.param_groups[0]["lr"] = 0.01
    with pytest.raises(ValueError, match=r"^lr must be "):
        advance(optimizer, 2, 2)
    assert snapshot(optimizer)[:2] == before
