"""Parameter groups: every field of a recipe may be overridden, changed mid-run, and chosen by the parameter's name."""

import dataclasses
from typing import Any

import pytest
import torch

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import (
    advance,
    assert_near,
    gradient,
    oracle_run,
    parameter_bits,
    parameters,
    set_gradients,
    snapshot,
    values,
)

BASE = Recipe(lr=0.05, beta1=0.5, weight_decay=0.05, clipping_threshold=0.5)
OVERRIDES: dict[str, dict[str, Any]] = {
    "lr": {"lr": 0.2, "relative_step": False},
    "schedule": {"lr": schedules.piecewise_constant(0.2, (2,), 0.5)},
    "function": {"lr": lambda t: 0.2 / t},
    "beta2": {"beta2": schedules.adam_decay(0.9)},
    "weight_decay": {"weight_decay": 0.5},
    "no weight_decay": {"weight_decay": None},
    "clipping_threshold": {"clipping_threshold": 0.1},
    "no clipping": {"clipping_threshold": None},
    "beta1": {"beta1": 0.9},
    "no beta1": {"beta1": None},
    "momentum": {"momentum_of": "step", "debias": True, "momentum_dtype": torch.bfloat16},
    "factoring": {"factoring": factoring.no_factoring},
    "scale": {"multiply_by_parameter_scale": False},
    "eps1": {"eps1": 10.0, "eps1_mode": "floor"},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "recipe": {"recipe": "adafactor_pytorch"},
    "recipe, field": {"recipe": "adafactor_pytorch", "weight_decay": 0.3},
    "recipe, lr": {"recipe": recipes.paper(), "lr": 1e-3},
    # The schedule of the group's recipe gives way to the group's own number.
    "schedule, lr": {"recipe": Recipe(lr=schedules.piecewise_constant(0.2, (2,), 0.5)), "lr": 0.01},
    "lr, schedule": {"recipe": recipes.paper(), "lr": schedules.inverse_sqrt()},
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_group_behaves_like_an_optimizer_with_its_fields(case: str) -> None:
    fields = OVERRIDES[case]
    tensors, same = parameters(torch.float64), parameters(torch.float64)
    optimizer = Adafactor([{"params": tensors[:1], **fields}, {"params": tensors[1:]}], recipe=BASE)
    alone = Adafactor(same[:1], **({"recipe": BASE} | fields))
    rest = Adafactor(same[1:], recipe=BASE)
    plain = Adafactor(parameters(torch.float64)[:1], recipe=BASE)
    advance(optimizer, 1, 4)
    advance(plain, 1, 4)
    for t in range(1, 5):
        set_gradients(t, same)
        alone.step()
        rest.step()
    assert parameter_bits(optimizer) == [*parameter_bits(alone), *parameter_bits(rest)]
    assert parameter_bits(optimizer)[:1] != parameter_bits(plain), "the override has an effect"


def test_every_field_of_a_group_stands_in_it_under_its_own_name() -> None:
    optimizer = Adafactor([{"params": parameters(), "beta1": 0.9}], recipe=BASE)
    for field in dataclasses.fields(Recipe):
        expected = 0.9 if field.name == "beta1" else getattr(BASE, field.name)
        assert optimizer.param_groups[0][field.name] == expected
    assert "beta1: 0.9" in repr(optimizer)


CHANGES: dict[str, dict[str, Any]] = {
    "lr": {"lr": 1e-3},
    "weight_decay": {"weight_decay": 0.5},
    "weight_decay on": {"weight_decay": 0.5, "weight_decay_by": "one"},
    "clipping_threshold": {"clipping_threshold": 0.1},
    "eps2": {"eps2": 2.0},
    "beta2": {"beta2": 0.5},
    "beta1": {"beta1": schedules.adam_decay(0.9)},
    "multiply_by_parameter_scale": {"multiply_by_parameter_scale": False},
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_field_changed_mid_run_takes_effect_at_the_next_step(case: str) -> None:
    param = torch.nn.Parameter(torch.tensor(values((4, 3), 0)))
    optimizer = Adafactor([param], recipe=BASE)
    advance(optimizer, 1, 3)
    optimizer.param_groups[0].update(CHANGES[case])
    advance(optimizer, 4, 6)
    changed, grads = dataclasses.replace(BASE, **CHANGES[case]), [gradient(t, 0, (4, 3)) for t in range(1, 7)]
    assert_near(param, oracle_run(lambda t: BASE if t <= 3 else changed, values((4, 3), 0), grads))
    with pytest.raises(AssertionError):
        assert_near(param, oracle_run(BASE, values((4, 3), 0), grads))


BAD_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
    "nan": ({"lr": float("nan")}, "lr must be at least 0, got nan"),
    "tensor": ({"eps2": torch.tensor(0.1)}, "eps2 must be a number"),
    "weight_decay": ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
    "clipping_threshold": ({"clipping_threshold": 0.0}, "clipping_threshold must be positive, got 0.0"),
    "beta1": ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
    "maximize": ({"maximize": "yes"}, "maximize must be True or False, got 'yes'"),
    "rank": ({"factoring": factoring.explicit((3,), (4,))}, r"shape \(5,\) must be in \[-1, 1\), got 3"),
}


@pytest.mark.parametrize("case", BAD_CHANGES)
def test_a_bad_change_is_refused_at_the_next_step_and_nothing_moves(case: str) -> None:
    fields, message = BAD_CHANGES[case]
    first, second, *_ = parameters()
    optimizer = Adafactor([{"params": [first]}, {"params": [second]}])
    advance(optimizer, 1, 2)
    before = snapshot(optimizer)[:2]
    optimizer.param_groups[1].update(fields)
    with pytest.raises(ValueError, match=message):
        advance(optimizer, 3, 3)
    assert snapshot(optimizer)[:2] == before


# ---------------------------------------------------------------------------------------------------------- names


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5)


RULE = factoring.by_name({r"^embedding\.": factoring.no_factoring, "bias": factoring.explicit((), ())})


def test_names_choose_the_rule() -> None:
    model = Block()
    optimizer = Adafactor(model.named_parameters(), factoring=RULE)
    assert optimizer.param_groups[0]["param_names"] == ["embedding.weight", "head.weight", "head.bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["embedding.weight", "head.weight", "head.bias"]
    advance(optimizer, 1, 1)
    shapes = [{key: tuple(v.shape) for key, v in optimizer.state[p].items()} for p in model.parameters()]
    assert shapes == [
        {"step": (), "v": (5, 4)},
        {"step": (), "v_row": (5, 1), "v_col": (1, 4)},
        {"step": (), "v": (5,)},
    ]


def test_named_groups_may_differ() -> None:
    model = Block()
    groups: list[dict[str, Any]] = [
        {"params": model.embedding.named_parameters(prefix="embedding"), "factoring": RULE},
        {"params": list(model.head.named_parameters(prefix="head")), "lr": 0.5},
    ]
    optimizer = Adafactor(groups)
    advance(optimizer, 1, 1)
    assert set(optimizer.state[model.embedding.weight]) == {"step", "v"}
    assert set(optimizer.state[model.head.weight]) == {"step", "v_row", "v_col"}
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["embedding.weight"],
        ["head.weight", "head.bias"],
    ]


def test_names_change_nothing_else() -> None:
    named, unnamed = Block(), Block()
    unnamed.load_state_dict(named.state_dict())
    one, other = Adafactor(named.named_parameters()), Adafactor(unnamed.parameters())
    advance(one, 1, 3)
    advance(other, 1, 3)
    assert parameter_bits(one) == parameter_bits(other)


def test_a_rule_by_name_refuses_parameters_without_names() -> None:
    with pytest.raises(ValueError, match=r"^factoring must be .* got by_name\(.*model.named_parameters\(\)") as error:
        Adafactor(Block().parameters(), factoring=RULE)
    assert "instead of model.parameters()" in str(error.value)


def test_a_group_s_recipe_replaces_what_the_keywords_say() -> None:
    first, second, *_ = parameters()
    optimizer = Adafactor([{"params": [first], "recipe": "optax"}, {"params": [second]}], lr=0.3, weight_decay=0.1)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (1.0, 0.0)
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["weight_decay"]) == (0.3, 0.1)


def test_a_misspelt_field_of_a_group_is_refused_and_a_key_of_the_user_s_own_is_kept() -> None:
    with pytest.raises(TypeError, match=r"no 'weight_decai'\. Did you mean 'weight_decay'\?"):
        Adafactor([{"params": parameters(), "weight_decai": 0.1}])
    assert Adafactor([{"params": parameters(), "layer": 3}]).param_groups[0]["layer"] == 3


def test_a_function_that_leaves_its_range_is_refused_and_nothing_moves() -> None:
    optimizer = Adafactor(parameters(), lr=lambda t: 0.1 if t < 3 else float("nan"))
    advance(optimizer, 1, 2)
    before = snapshot(optimizer)[:2]
    with pytest.raises(ValueError, match=r"^lr at t = 3 must be at least 0, got nan"):
        advance(optimizer, 3, 3)
    assert snapshot(optimizer)[:2] == before


def test_a_late_parameter_does_not_set_the_learning_rate_back() -> None:
    first, second, *_ = parameters()
    optimizer = Adafactor([first, second], lr=lambda t: 1.0 / t)
    for _ in range(3):
        first.grad = torch.ones_like(first)
        optimizer.step()
    first.grad, second.grad = None, torch.ones_like(second)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0 / 3.0
