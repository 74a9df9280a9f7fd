"""What `torch.optim.Optimizer` promises: closures, hooks, groups added later, missing gradients, copies, training."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import (
    advance,
    all_parameters,
    frozen,
    gradient,
    parameter_bits,
    parameters,
    set_gradients,
    snapshot,
)

# Every entry that a state can have: factors, whole moments, maximum, momentum; a schedule; 16-bit momentum.
RECIPES = {
    "paper": recipes.paper(),
    "amsgrad": recipes.adafactor_pytorch(0.1, non_constant_decay=False, weight_decay=0.1),
    "optax": recipes.optax(0.1, min_dim_size_to_factor=3, momentum=0.9, dtype_momentum="bfloat16"),
    "piecewise": Recipe(lr=schedules.piecewise_constant(0.1, (3, 6), 0.5), beta1=0.9, debias=True),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


# ------------------------------------------------------------------------------------------------------- closures


def test_closure_runs_once_under_grad_and_its_loss_is_returned() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer, calls = Adafactor(model.parameters(), lr=0.1), []
    expected = copy.deepcopy(model)
    expected(torch.ones(4, 3)).square().sum().backward()
    by_hand = Adafactor(expected.parameters(), lr=0.1)

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
        assert not torch.is_grad_enabled()
    by_hand.step()
    assert calls == [True]
    assert isinstance(loss, Tensor)
    assert loss.requires_grad, "the loss that the closure returned, not a copy"
    assert snapshot(optimizer) == snapshot(by_hand)


def test_step_without_closure_returns_none() -> None:
    optimizer = Adafactor(parameters())
    set_gradients(1, all_parameters(optimizer))
    assert optimizer.step() is None


def test_an_error_in_the_closure_changes_nothing() -> None:
    optimizer = Adafactor(parameters())
    advance(optimizer, 1, 2)
    before = snapshot(optimizer)

    def closure() -> float:
        raise ArithmeticError("the loss is not finite")

    with pytest.raises(ArithmeticError, match="not finite"):
        optimizer.step(closure)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("path", [{"foreach": False}, {}, {"fused": True}], ids=["plain", "eager", "compiled"])
@pytest.mark.parametrize("shape", [(6, 5), (300, 200)], ids=str)  # eager: in a stack, and in blocks
def test_autograd_sees_that_weights_are_written(shape: tuple[int, int], path: dict[str, Any]) -> None:
    p, x = torch.nn.Parameter(torch.ones(shape)), torch.ones(shape, requires_grad=True)
    optimizer = Adafactor([p], **path)
    for _ in range(3):
        loss = (x * p).sum()
        p.grad = torch.ones_like(p)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_zero_grad() -> None:
    optimizer = Adafactor(parameters())
    set_gradients(1, all_parameters(optimizer))
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in all_parameters(optimizer))
    optimizer.zero_grad()
    assert all(p.grad is None for p in all_parameters(optimizer))


# ---------------------------------------------------------------------------------------------------------- hooks


def test_step_hooks_run_in_order() -> None:
    optimizer, order = Adafactor(parameters()), []
    start = parameter_bits(optimizer)

    def hook(label: str, moved: bool) -> Any:
        def run(which: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            assert which is optimizer
            assert (parameter_bits(optimizer) != start) == moved
            order.append(label)

        return run

    handles = [
        register_optimizer_step_pre_hook(hook("global pre", False)),
        register_optimizer_step_post_hook(hook("global post", True)),
        optimizer.register_step_pre_hook(hook("pre", False)),
        optimizer.register_step_post_hook(hook("post", True)),
    ]
    try:
        advance(optimizer, 1, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["global pre", "pre", "post", "global post"]
    advance(optimizer, 2, 2)
    assert len(order) == 4, "a removed hook does not run"


def test_a_pre_hook_may_change_the_arguments() -> None:
    optimizer = Adafactor(parameters())
    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((*args, lambda: 2.5), kwargs))
    set_gradients(1, all_parameters(optimizer))
    assert optimizer.step() == 2.5


# ----------------------------------------------------------------------------------------- parameters and gradients


@pytest.mark.parametrize("by", ["step", "grad"])
def test_maximize_is_the_negated_gradient(recipe: Recipe, by: Any) -> None:
    ascend = Adafactor(parameters(), recipe=recipe, weight_decay=0.1, weight_decay_by=by, maximize=True)
    descend = Adafactor(parameters(), recipe=recipe, weight_decay=0.1, weight_decay_by=by)
    advance(ascend, 1, 4)
    advance(descend, 1, 4, sign=-1.0)
    assert parameter_bits(ascend) == parameter_bits(descend)
    kept = [p.grad for p in all_parameters(ascend)]
    set_gradients(4, all_parameters(ascend))
    assert frozen(kept) == frozen([p.grad for p in all_parameters(ascend)]), "the gradients stay as they were"


def test_a_parameter_without_gradient_is_skipped_and_counts_its_own_steps(recipe: Recipe) -> None:
    together = Adafactor(parameters(), recipe=recipe, weight_decay=0.1)
    tensors = all_parameters(together)
    tensors[1].requires_grad_(False)  # frozen until step 4
    missing = {1: {1, 2, 3}, 2: {2}}
    for t in range(1, 6):
        set_gradients(t, tensors)
        for index, steps in missing.items():
            if t in steps:
                tensors[index].grad = None
        tensors[1].requires_grad_(t >= 4)
        together.step()
        assert (tensors[1] in together.state) == (t >= 4), "no state before the first gradient"
    for index, p in enumerate(parameters()):
        alone = Adafactor([p], recipe=recipe, weight_decay=0.1)
        given = [t for t in range(1, 6) if t not in missing.get(index, ())]
        for t in given:
            p.grad = torch.tensor(gradient(t, index, tuple(p.shape)), dtype=p.dtype)
            alone.step()
        assert together.state[tensors[index]]["step"].item() == len(given)
        assert torch.equal(p, tensors[index])


def test_a_step_without_any_gradient_changes_nothing(recipe: Recipe) -> None:
    optimizer = Adafactor(parameters(), recipe=recipe, weight_decay=0.1)
    optimizer.step()
    assert not optimizer.state
    advance(optimizer, 1, 3)
    optimizer.zero_grad()
    before = snapshot(optimizer)
    optimizer.step()
    assert snapshot(optimizer) == before


def test_state_and_parameter_tensors_keep_their_identity(recipe: Recipe) -> None:
    """Graph capture, sharding and gradient release all hold on to them."""
    optimizer = Adafactor(parameters(), recipe=recipe)

    def addresses() -> list[tuple[int, int]]:
        state = [tensor for p in all_parameters(optimizer) for tensor in optimizer.state[p].values()]
        return [(id(tensor), tensor.data_ptr()) for tensor in (*all_parameters(optimizer), *state)]

    advance(optimizer, 1, 1)
    before = addresses()
    advance(optimizer, 2, 4)
    assert addresses() == before


# ------------------------------------------------------------------------------------------------ groups added later


def test_add_param_group_mid_run(recipe: Recipe) -> None:
    first, second, third, fourth = parameters()
    optimizer = Adafactor([first, second], recipe=recipe)
    advance(optimizer, 1, 2)
    optimizer.add_param_group({"params": [third, fourth], "beta1": 0.5, "lr": 0.05})
    advance(optimizer, 3, 5)

    same = parameters()
    apart = [Adafactor(same[:2], recipe=recipe), Adafactor(same[2:], recipe=recipe, beta1=0.5, lr=0.05)]
    advance(apart[0], 1, 2)
    for t in range(3, 6):
        set_gradients(t, same)
        for one in apart:
            one.step()
    assert parameter_bits(optimizer) == [*parameter_bits(apart[0]), *parameter_bits(apart[1])]


REFUSED_GROUPS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "number": ({"lr": -1.0}, ValueError, "lr must be at least 0, got -1.0"),
    "schedule": ({"recipe": "optax", "beta2": 1.5}, ValueError, r"beta2 must be in \[0, 1\), got 1.5"),
    "recipe": ({"recipe": "papier"}, ValueError, r"Did you mean 'paper'\?"),
    "keyword": ({"betas": (0.9, 0.99)}, TypeError, "Use beta1 and beta2."),
    "rule": ({"factoring": factoring.explicit((3,), (4,))}, ValueError, r"shape \(2, 3, 4\)"),
    "unnamed": ({"factoring": factoring.by_name({"x": factoring.last_two})}, ValueError, "named_parameters"),
    "maximize": ({"maximize": "yes"}, ValueError, "maximize must be True or False"),
    "named": ({"params": [("x", torch.nn.Parameter(torch.ones(2)))]}, ValueError, "with/without names"),
    "integers": ({"params": [torch.ones(2, dtype=torch.int64)]}, ValueError, r"shape \(2,\) must be one of float64"),
}


@pytest.mark.parametrize("case", REFUSED_GROUPS)
def test_a_refused_group_leaves_no_trace(case: str) -> None:
    fields, error, message = REFUSED_GROUPS[case]
    optimizer = Adafactor(parameters()[:2])
    advance(optimizer, 1, 2)
    before, group = snapshot(optimizer), {"params": parameters()[2:3], **fields}
    keys = dict(group)
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group)
    assert snapshot(optimizer) == before
    assert group == keys, "the caller's dict stays as he wrote it"
    optimizer.add_param_group({"params": parameters()[2:3]})
    advance(optimizer, 3, 3)


# --------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_mid_run_continues_bit_identically(how: str, recipe: Recipe) -> None:
    optimizer = Adafactor(parameters(), recipe=recipe)
    advance(optimizer, 1, 4)
    other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    at_copy = snapshot(optimizer)
    assert snapshot(other) == at_copy
    advance(other, 5, 8)
    assert snapshot(optimizer) == at_copy, "the copy shares nothing with the original"
    advance(optimizer, 5, 8)
    assert snapshot(other) == snapshot(optimizer)


def test_a_model_copied_with_its_optimizer_stays_with_it() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = Adafactor(model.named_parameters(), factoring=factoring.by_name({"bias": factoring.no_factoring}))
    advance(optimizer, 1, 2)
    twin, other = copy.deepcopy((model, optimizer))
    advance(other, 3, 4)
    assert all(p is q for p, q in zip(twin.parameters(), all_parameters(other), strict=True))
    assert not torch.equal(twin.weight, model.weight)
