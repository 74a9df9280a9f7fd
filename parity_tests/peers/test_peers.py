"""The installed originals against the recipes, live: `make peers`. Not a part of `make test`.

A case replays from its number: `make peers ARGS="-k 'torch-17]'"`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from adafactor_spec import Recipe, factoring, recipes, replace
from parity_tests.peers import cases, ours
from parity_tests.peers.comparison import compare

CASES = 200  # of each original, as the issue asks

# Arguments of the recipe functions that are not drawn. `arguments` says why; those of the optimizers are drawn there.
NOT_DRAWN = {
    "torch": {"maximize"},
    "pytorch_optimizer": {"maximize"},
    "optax": {"weight_decay_mask"},
    "keras": {"clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "gradient_accumulation_steps"},
}

# Changes of one field, of recipes that use it, with which the recipe is no longer the original's.
WRONG: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "another lr": lambda recipe: {"lr": 1.001 * recipe.lr} if isinstance(recipe.lr, float) else {},
    "momentum of the gradient": lambda recipe: {"momentum_of": "grad"} if recipe.beta1 else {},
    "not clipped": lambda recipe: {"clipping_threshold": None},
    "another eps2": lambda recipe: {"eps2": recipe.eps2 + 0.01} if recipe.multiply_by_parameter_scale else {},
    "another beta2": lambda recipe: {"beta2": 0.99},
    "not factored": lambda recipe: {"factoring": factoring.no_factoring},
    "another decay": lambda recipe: {"weight_decay": 0.0},
    "decay by alpha or not": lambda recipe: (
        {"weight_decay_by": "one" if recipe.weight_decay_by == "step" else "step", "decay_before_scale": False}
        if recipe.decays
        else {}
    ),
}
# These have no such thing: no momentum, or no parameter scale.
WITHOUT = {
    ("torch", "momentum of the gradient"),
    ("keras", "momentum of the gradient"),
    ("timm_big_vision", "another eps2"),
}


# One process for each original: what JAX has compiled for a shape serves all cases of it.
PEERS = [pytest.param(peer, marks=pytest.mark.xdist_group(peer)) for peer in cases.KINDS]


@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("peer", PEERS)
def test_case(peer: str, number: int, record_property: Callable[[str, object], None]) -> None:
    case = cases.draw(peer, number)
    worst = compare(case)
    record_property("peer", peer)
    record_property("dtype", case.dtype)
    record_property("worst", [worst.of_budget, worst.relative, worst.allowed, number])
    assert worst.of_budget <= 1.0, f"{worst.where}: {worst.relative:.3g}, allowed {worst.allowed:.3g}. {case}"


@pytest.mark.parametrize("peer", PEERS)
def test_every_argument_is_drawn(peer: str) -> None:
    drawn: set[str] = set()
    for number in range(CASES):
        drawn |= set(cases.draw(peer, number).kwargs)
    assert drawn | NOT_DRAWN.get(peer, set()) == set(inspect.signature(getattr(recipes, peer)).parameters)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("peer", PEERS)
def test_a_wrong_recipe_is_rejected(peer: str, wrong: str) -> None:
    tried = 0
    for number in range(CASES):
        case = cases.draw(peer, number)
        recipe = ours.recipe_of(case)
        changes = {} if case.lrs else WRONG[wrong](recipe)
        if changes and replace(recipe, **changes) != recipe:
            tried += 1
            if compare(case, replace(recipe, **changes)).of_budget > 1.0:
                return
    assert not tried, f"{tried} cases of {peer} pass with a recipe that is wrong: {wrong}"
    assert (peer, wrong) in WITHOUT
