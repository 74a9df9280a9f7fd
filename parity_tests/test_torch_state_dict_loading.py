"""What `load_state_dict` refuses, and what hooks around saving and loading see."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import (
    advance,
    all_parameters,
    frozen,
    leaves,
    parameter_bits,
    parameters,
    snapshot,
    through_disk,
    twins,
)


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    advance(optimizer, 1, 2)
    return optimizer


def refused(optimizer: Adafactor, state_dict: Any, error: type[Exception], message: str) -> None:
    """Loading fails with that message and changes neither the optimizer nor the state dict."""
    before, given = snapshot(optimizer), frozen(state_dict)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state_dict)
    assert snapshot(optimizer) == before
    assert frozen(state_dict) == given
    advance(optimizer, 3, 4)


OTHER_RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "amsgrad": (recipes.adafactor_pytorch(non_constant_decay=False), recipes.paper()),
    "no amsgrad": (recipes.paper(), recipes.adafactor_pytorch(non_constant_decay=False)),
    "factoring": (recipes.optax(0.1, min_dim_size_to_factor=4), recipes.paper()),
    "no factoring": (recipes.paper(), recipes.optax(0.1)),
    "momentum": (Recipe(beta1=0.9), recipes.paper()),
    "view": (Recipe(factoring=factoring.as_matrix), recipes.paper()),
}


@pytest.mark.parametrize("case", OTHER_RECIPES)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "mid-run"])
def test_state_of_another_recipe_is_refused(case: str, fresh: bool) -> None:
    theirs, ours = OTHER_RECIPES[case]
    saved = stepped(Adafactor(parameters(), recipe=theirs)).state_dict()
    optimizer = Adafactor(parameters(), recipe=ours)
    advance(optimizer, 1, 0 if fresh else 2)
    refused(optimizer, saved, ValueError, r"^state of parameter \d must be .*, got .*\. Build the optimizer with")


def test_the_refused_parameter_is_named() -> None:
    def named() -> list[tuple[str, torch.nn.Parameter]]:
        return [(f"layer.{index}", p) for index, p in enumerate(parameters())]

    saved = stepped(Adafactor(named())).state_dict()
    rule = factoring.by_name({"layer.2": factoring.no_factoring})
    refused(Adafactor(named(), factoring=rule), saved, ValueError, r"^state of parameter 'layer\.2' must be ")


def test_state_of_other_shapes_is_refused() -> None:
    saved = stepped(Adafactor(parameters())).state_dict()
    other = parameters(shapes=[(4, 3), (5,), (2, 3, 5), ()])
    refused(Adafactor(other), saved, ValueError, r"^state of parameter 2 must be .*\(2, 1, 5\).*, got .*\(2, 1, 4\)")


def test_state_with_an_entry_missing_is_refused() -> None:
    saved = stepped(Adafactor(parameters(), beta1=0.9)).state_dict()
    saved = copy.deepcopy(saved)
    del saved["state"][1]["m"]
    refused(Adafactor(parameters(), beta1=0.9), saved, ValueError, r"^state of parameter 1 must be ")


OTHER_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adafactor": torch.optim.Adafactor,
    "AdamW": torch.optim.AdamW,
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "SGD, momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("case", OTHER_OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_state_of_another_optimizer_is_refused(case: str, steps: int) -> None:
    """Also where it has no state yet: its groups lack our fields."""
    theirs = OTHER_OPTIMIZERS[case](parameters())
    advance(theirs, 1, steps)
    refused(Adafactor(parameters(), recipe="torch"), theirs.state_dict(), ValueError, r" must be .*, got ")


@pytest.mark.parametrize("ours", [True, False], ids=["in the new one", "in the saved one"])
def test_keys_of_others_in_a_group_are_no_reason_to_refuse(ours: bool) -> None:
    """Users and schedulers put values of their own into groups: a name, `max_lr`, `swa_lr`."""
    source, optimizer = Adafactor(parameters()), Adafactor(parameters())
    (optimizer if ours else source).param_groups[0]["swa_lr"] = 0.05
    advance(source, 1, 2)
    optimizer.load_state_dict(source.state_dict())
    assert ("swa_lr" in optimizer.param_groups[0]) == ("swa_lr" in source.param_groups[0])
    advance(optimizer, 3, 3)


def nested_deeply() -> Any:
    value: Any = 0.5
    for _ in range(5000):
        value = [value]
    return value


@pytest.mark.parametrize("value", [copy, nested_deeply()], ids=["a module", "a deep list"])
def test_a_value_of_the_users_that_cannot_be_copied_is_refused(value: Any) -> None:
    """torch copies the groups, and would fail with an error of Python's own."""
    optimizer = stepped(Adafactor(parameters()))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["mine"] = value
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"^'mine' of group 0 of the state dict must be one that can be copied, got "):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before


def test_another_number_of_groups_is_torchs_own_error() -> None:
    first, *rest = parameters()
    saved = stepped(Adafactor([{"params": [first]}, {"params": rest}])).state_dict()
    refused(stepped_once(), saved, ValueError, "different number of parameter groups")


def test_another_number_of_parameters_is_torchs_own_error() -> None:
    saved = stepped(Adafactor(parameters()[:3])).state_dict()
    refused(stepped_once(), saved, ValueError, "doesn't match the size of optimizer's group")


def stepped_once() -> Adafactor:
    optimizer = Adafactor(parameters())
    advance(optimizer, 1, 1)
    return optimizer


def test_a_saved_number_out_of_range_is_refused() -> None:
    saved = stepped(Adafactor(parameters())).state_dict()
    saved["param_groups"][0]["clipping_threshold"] = -1.0
    refused(stepped_once(), saved, ValueError, "^clipping_threshold must be positive, got -1.0")


FUNCTIONS: dict[str, dict[str, Any]] = {
    "lr": {"lr": lambda t: 0.1 / t},
    "base": {"lr": schedules.piecewise_constant(lambda t: 0.1 / t, (2,), 0.5)},
    "weight_decay": {"weight_decay": lambda t: 0.1 / t},
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_the_new_optimizer_does_not_have_is_refused(case: str) -> None:
    """It was saved as its name only: a number in its place would be another learning rate, silently."""
    saved = stepped(Adafactor(parameters(), **FUNCTIONS[case])).state_dict()
    refused(Adafactor(parameters(), lr=0.3), saved, ValueError, rf"^({case}|lr) must be .*function.*, got .*\. ")


# ---------------------------------------------------------------------------------------------------------- hooks


def test_state_dict_hooks_run_in_order_and_see_what_is_saved(tmp_path: Path) -> None:
    optimizer, order, seen = Adafactor(parameters(), lr=schedules.inverse_sqrt()), [], []
    advance(optimizer, 1, 2)

    def post(label: str) -> Callable[[torch.optim.Optimizer, Any], None]:
        def run(which: torch.optim.Optimizer, state_dict: Any) -> None:
            assert which is optimizer
            order.append(label)
            seen.append(state_dict)
            through_disk(state_dict, tmp_path)

        return run

    optimizer.register_state_dict_pre_hook(lambda which: order.append("pre"))
    optimizer.register_state_dict_pre_hook(lambda which: order.append("pre, first"), prepend=True)
    optimizer.register_state_dict_post_hook(post("post"))
    optimizer.register_state_dict_post_hook(post("post, first"), prepend=True)
    saved = optimizer.state_dict()
    assert order == ["pre, first", "pre", "post, first", "post"]
    assert [frozen(each) for each in seen] == [frozen(saved)] * 2


def test_a_state_dict_post_hook_may_change_or_replace_it() -> None:
    optimizer = Adafactor(parameters())
    optimizer.register_state_dict_post_hook(lambda which, state_dict: state_dict.update(note="mine"))
    assert optimizer.state_dict()["note"] == "mine"
    optimizer.register_state_dict_post_hook(lambda which, state_dict: {"note": state_dict["note"], "only": True})
    assert optimizer.state_dict() == {"note": "mine", "only": True}


def test_load_hooks_run_in_order_and_see_what_was_saved_and_what_is_loaded() -> None:
    source = stepped(Adafactor(parameters(torch.bfloat16), lr=schedules.inverse_sqrt(), beta1=0.9))
    saved, order = source.state_dict(), []
    optimizer = Adafactor(twins(source), lr=schedules.inverse_sqrt(), beta1=0.9)
    fresh = snapshot(optimizer)

    def pre(which: torch.optim.Optimizer, state_dict: Any) -> None:
        assert which is optimizer
        assert snapshot(optimizer) == fresh
        assert frozen(state_dict) == frozen(saved)
        order.append("pre")

    def post(which: torch.optim.Optimizer) -> None:
        assert which is optimizer
        assert snapshot(optimizer) == snapshot(source), "float32 state of bfloat16 parameters, schedules as objects"
        order.append("post")

    optimizer.register_load_state_dict_pre_hook(pre)
    optimizer.register_load_state_dict_pre_hook(lambda which, state_dict: order.append("pre, first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(post)
    optimizer.register_load_state_dict_post_hook(lambda which: order.append("post, first"), prepend=True)
    for _ in range(2):
        optimizer.load_state_dict(saved)
        fresh = snapshot(optimizer)
    assert order == 2 * ["pre, first", "pre", "post, first", "post"]


def test_a_load_pre_hook_may_replace_the_state_dict() -> None:
    source = stepped(Adafactor(parameters(), lr=0.1))

    def pre(which: torch.optim.Optimizer, state_dict: Any) -> Any:
        groups = [group | {"lr": 0.02} for group in state_dict["param_groups"]]
        return state_dict | {"param_groups": groups}

    optimizer = Adafactor(twins(source), lr=0.5)
    optimizer.register_load_state_dict_pre_hook(pre)
    optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert source.param_groups[0]["lr"] == 0.1


def test_a_refused_state_dict_leaves_no_hook_behind() -> None:
    optimizer = stepped_once()
    hooks: list[Any] = [optimizer._optimizer_load_state_dict_pre_hooks, optimizer._optimizer_load_state_dict_post_hooks]
    with pytest.raises(ValueError, match="must be"):
        optimizer.load_state_dict(stepped(torch.optim.AdamW(parameters())).state_dict())
    assert not any(hooks)
    optimizer.load_state_dict(optimizer.state_dict())
    assert not any(hooks)


def test_groups_after_loading_are_as_complete_as_before(tmp_path: Path) -> None:
    source = stepped(Adafactor(parameters(), recipe="adafactor_pytorch"))
    optimizer = Adafactor(twins(source), recipe="adafactor_pytorch")
    keys = set(optimizer.param_groups[0])
    optimizer.load_state_dict(through_disk(source.state_dict(), tmp_path))
    assert set(optimizer.param_groups[0]) == keys
    assert not [leaf for leaf in leaves(optimizer.state_dict()) if isinstance(leaf, torch.nn.Parameter)]
    optimizer.add_param_group({"params": parameters(shapes=[(2, 2)])})
    advance(optimizer, 3, 3)
    assert len(all_parameters(optimizer)) == len(parameter_bits(optimizer)) == 5
