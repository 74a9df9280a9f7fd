"""The numbers of steps that are counted on a device: tensors, equal to the host's, and never asked for a value."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adafactor_spec import Recipe, per_name, replace, rounding_key, schedules
from adafactor_torch import Adafactor
from adafactor_torch._param_groups import numbers_of
from adafactor_torch._task.device_schedules import OnDevice, keys_on_device, numbers_on_device

from .profiles import examples
from .random_recipes import any_recipe
from .test_torch_numbers import NoReads
from .torch_runs import frozen, parameters, set_gradients

STEPS = (1, 2, 3, 7, 100, 12_345, 2**23 + 1)
# pow, expm1 and log1p of another library differ by an ulp or two, and a handful of them stand in a row: 8 ulp.
NUMBER = 8 * 2.0**-52
FUZZ = settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))


def on_meta(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes or ((4, 3), (5,), ())]


# --------------------------------------------------------------------------------------------------------- numbers


SCHEDULES = [
    schedules.constant(0.3),
    schedules.zero_based(schedules.inverse_sqrt(100)),
    schedules.zero_based(lambda count: 0.5 / (count + 2)),
    schedules.power_decay(0.8, cap=0.999, offset=2),
    schedules.adam_decay(0.999),
    schedules.adam_decay(0.0),
    schedules.inverse_sqrt(10),
    schedules.relative_step(schedules.linear_warmup(1.0, 1000)),
    schedules.linear_warmup(schedules.inverse_sqrt(), 50),
    schedules.linear_cooldown(0.5, 10_000, 20_000),
    schedules.cosine_decay(schedules.linear_warmup(0.3, 3), 5, 15_000),
    schedules.piecewise_constant(0.2, (2, 5, 200), 0.5),
    schedules.piecewise_constant(schedules.inverse_sqrt(), (3,), 2.0),
    schedules.at_least(schedules.inverse_sqrt(), 0.1),
    schedules.at_least(0.3, 0.5),
    schedules.relative_step(0.01),
    schedules.product(schedules.inverse_sqrt(), 0.3),
    schedules.power(schedules.linear_warmup(0.3, 5), 1.5),
    lambda t: 0.3 / (t + 1) + 2 * abs(0.1 - t**-1.0) ** 2 % 7,
]


def stepped(steps: tuple[int, ...]) -> list[Tensor]:
    return [torch.tensor(t) for t in steps]


def assert_numbers(recipe: Recipe) -> None:
    with NoReads():
        found = numbers_on_device(recipe, stepped(STEPS))
    for t, numbers in zip(STEPS, found, strict=True):
        for name, number in vars(numbers_of(recipe, t)).items():
            there = getattr(numbers, name)
            assert (there is None) == (number is None), name
            if number is not None:
                assert (there.dtype, there.shape) == (torch.float64, ())
                assert abs(float(there) - number) <= NUMBER * max(abs(number), 1.0 if "beta" in name else 0.0), (
                    name,
                    t,
                )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=map(str, range(len(SCHEDULES))))
def test_every_schedule_gives_the_hosts_numbers(schedule: Any) -> None:
    fields: dict[str, Any] = {"weight_decay": schedule, "weight_decay_by": "lr"}
    assert_numbers(Recipe(lr=schedule, relative_step=False, **fields))
    assert_numbers(Recipe(lr=schedule, **fields | {"weight_decay_by": 1.5}))


@FUZZ
@given(recipe=any_recipe())
def test_every_recipe_gives_the_hosts_numbers(recipe: Recipe) -> None:
    for name in ("stack", "matrix", "vector"):
        assert_numbers(recipe.for_name(name))


def test_a_tensor_is_a_learning_rate_there() -> None:
    lr = torch.tensor([0.3])
    found = numbers_on_device(replace(Recipe(weight_decay=0.1), lr=OnDevice(lr.double())), stepped((4, 100)))
    assert [float(now.rho) for now in found] == [float(lr), 0.1]


@given(seed=st.integers(0, 2**32 - 1), step=st.integers(1, 2**40), position=st.integers(0, 2**20))
@FUZZ
def test_keys_are_the_hosts(seed: int, step: int, position: int) -> None:
    steps, positions = (step, 1, 2**24), (position, 0, position + 1)
    with NoReads():
        keys = keys_on_device(seed, stepped(steps), positions)
    assert keys.dtype == torch.int32
    expected = [rounding_key(seed, t, index) for t, index in zip(steps, positions, strict=True)]
    assert [int(key) % 2**32 for key in keys] == expected


# ------------------------------------------------------------------------------------- functions that cannot run there


def branching(t: Any) -> float:
    return 0.1 if t < 10 else 0.01


BRANCHES = {
    "branch": branching,
    "math": lambda t: 0.1 / math.sqrt(t),
    "numpy": lambda t: 0.1 / np.sqrt(t),
    "min": lambda t: min(0.1, 1 / t),
    "base": schedules.linear_warmup(branching, 3),
}


@pytest.mark.parametrize("field", ["lr", "beta1", "beta2", "weight_decay", "weight_decay by name"])
@pytest.mark.parametrize("case", BRANCHES)
def test_a_function_that_cannot_run_there_is_refused_when_it_is_built(case: str, field: str) -> None:
    value, argument = BRANCHES[case], field.removesuffix(" by name")
    option: dict[str, Any] = {"nonfinite": "skip"} if case == "branch" else {"capturable": True}
    fields: dict[str, Any] = {argument: value if field == argument else per_name({"0": value}, default=0.1)}
    named = [(str(i), p) for i, p in enumerate(on_meta())]
    with pytest.raises(ValueError, match=f"^{argument} must be written with operators, or one of adafactor_spec"):
        Adafactor(named, **fields, **option)
    optimizer = Adafactor([("first", on_meta((2, 2))[0])], **option)
    with pytest.raises(ValueError, match="must be written with operators"):
        optimizer.add_param_group({"params": named, **fields})
    assert len(optimizer.param_groups) == 1
    Adafactor(named, **fields)
    Adafactor([(str(i), p) for i, p in enumerate(parameters())], **fields, **option)


def test_one_that_is_put_there_later_leaves_everything_as_it_was() -> None:
    first, second = parameters()[:2], on_meta()
    optimizer = Adafactor([{"params": first}, {"params": second}], capturable=True)
    set_gradients(1, first)
    for p in second:
        p.grad = torch.ones_like(p)
    optimizer.param_groups[1]["beta2"] = branching
    before = frozen(first)
    with pytest.raises(TypeError, match="asks for the value of a t that is on a device"):
        optimizer.step()
    assert frozen(first) == before and not optimizer.state
