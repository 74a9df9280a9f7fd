"""Schedules and rules are saved as data; a plain function stays the one that the new optimizer was built with."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from adafactor_spec import factoring, schedules
from adafactor_torch import Adafactor

from .torch_runs import advance, parameter_bits, parameters, snapshot, through_disk, twins

DATA: dict[str, tuple[str, Any]] = {
    "constant": ("lr", schedules.constant(0.1)),
    "piecewise": ("lr", schedules.piecewise_constant(schedules.inverse_sqrt(), [2, 5], 0.5)),
    "NumPy": ("lr", schedules.piecewise_constant(np.float64(0.1), cast(Any, np.array([2, 5])), np.float64(0.5))),
    "linear_warmup": ("lr", schedules.linear_warmup(schedules.at_least(0.1, 0.05), 10)),
    "relative_step": ("lr", schedules.relative_step(schedules.product(0.1, schedules.inverse_sqrt()))),
    "zero_based": ("lr", schedules.zero_based(schedules.linear_warmup(0.1, 7))),
    "power_decay": ("beta2", schedules.power_decay(0.7, cap=0.99, offset=2)),
    "adam_decay": ("beta1", schedules.adam_decay(0.9)),
    "weight_decay": ("weight_decay", schedules.inverse_sqrt()),
    "last_two": ("factoring", factoring.last_two),
    "no_factoring": ("factoring", factoring.no_factoring),
    "as_matrix": ("factoring", factoring.as_matrix),
    "largest_two": ("factoring", factoring.largest_two(3, ties="first")),
    "leading_or_last_two": ("factoring", factoring.leading_or_last_two(3)),
    "explicit": ("factoring", factoring.explicit((), ())),
    "by_name": (
        "factoring",
        factoring.by_name(
            {r"^0$": factoring.explicit((0,), (1,)), "1|3": factoring.no_factoring}, factoring.largest_two(4)
        ),
    ),
    "number": ("eps2", np.float64(0.01)),
    "flag": ("amsgrad", np.bool_(True)),
    "dtype": ("momentum_dtype", torch.bfloat16),
}
# What the new optimizer is built with, where the shapes of the state leave a choice: the saved value wins.
OTHERS = {"lr": 0.3, "beta2": 0.5, "weight_decay": 0.3, "eps2": 0.5}


@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
@pytest.mark.parametrize("case", DATA)
def test_schedules_rules_and_numbers_come_back_as_equal_values(case: str, in_group: bool, tmp_path: Path) -> None:
    field, value = DATA[case]
    key = "lr_schedule" if field == "lr" else field

    def build(tensors: list[torch.nn.Parameter], value: Any) -> Adafactor:
        named = [(str(index), p) for index, p in enumerate(tensors)]
        return Adafactor([{"params": named, field: value}]) if in_group else Adafactor(named, **{field: value})

    optimizer = build(parameters(), value)
    advance(optimizer, 1, 3)
    resumed = build(twins(optimizer), OTHERS.get(field, value))
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    back = resumed.param_groups[0][key]
    assert back == ("bfloat16" if case == "dtype" else value)
    advance(optimizer, 4, 6)
    advance(resumed, 4, 6)
    assert parameter_bits(resumed) == parameter_bits(optimizer)


class Trainer:
    """Whose method is the learning rate, and who must not be copied."""

    def learning_rate(self, t: float) -> float:
        return 0.1 / t


@dataclasses.dataclass
class Warmup:
    """A callable that compares by value and so has no hash."""

    peak: float = 0.1

    def __call__(self, t: float) -> float:
        return self.peak * min(1.0, t / 4)


class Own(schedules.Schedule):
    """A schedule of the user's, with a complement of its own."""

    def __call__(self, t: float) -> float:
        return 0.1

    def complement(self, t: float) -> float:
        return 0.9


@dataclasses.dataclass(frozen=True)
class OwnRule(factoring.Rule):
    """A rule of the user's."""

    def plan(self, shape: tuple[int, ...], name: str) -> factoring.Plan:
        return factoring.Plan(shape)


FUNCTIONS: dict[str, tuple[str, Any]] = {
    "lambda": ("lr", lambda t: 0.1 / t),
    "method": ("lr", Trainer().learning_rate),
    "callable": ("lr", Warmup()),
    "schedule": ("beta2", Own()),
    "decay": ("weight_decay", lambda t: 0.1 / t),
    "rule": ("factoring", OwnRule()),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_plain_function_stays_the_one_the_new_optimizer_was_built_with(case: str, tmp_path: Path) -> None:
    field, function = FUNCTIONS[case]
    key = "lr_schedule" if field == "lr" else field
    optimizer = Adafactor(parameters(), **{field: function})
    advance(optimizer, 1, 4)
    resumed = Adafactor(twins(optimizer), **{field: function})
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    if case == "method":
        assert resumed.param_groups[0][key].__self__ is function.__self__
    else:
        assert resumed.param_groups[0][key] is function
    advance(optimizer, 5, 8)
    advance(resumed, 5, 8)
    assert parameter_bits(resumed) == parameter_bits(optimizer)


def test_a_function_inside_a_schedule_stays_too(tmp_path: Path) -> None:
    def base(t: float) -> float:
        return 0.1 / t

    lr = schedules.piecewise_constant(base, (3, 6), 0.5)
    optimizer = Adafactor(parameters(), lr=lr)
    advance(optimizer, 1, 4)
    resumed = Adafactor(twins(optimizer), lr=lr)
    resumed.load_state_dict(through_disk(optimizer.state_dict(), tmp_path))
    assert resumed.param_groups[0]["lr_schedule"] == lr
    advance(optimizer, 5, 8)
    advance(resumed, 5, 8)
    assert snapshot(resumed) == snapshot(optimizer)
