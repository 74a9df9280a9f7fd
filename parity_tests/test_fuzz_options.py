"""Options, recipes' names, parameters, masks: whatever else a constructor is given, it takes or refuses in form."""

import itertools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import adafactor_jax
from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle, recipes, replace
from adafactor_torch import Adafactor, release_gradients

from . import hostile_fields as fields
from .hostile import (
    ANYTHING,
    CONSTANTS,
    FLAGS,
    NOTHING,
    OURS,
    Failing,
    Hostile,
    assert_in_form,
    cases,
    numbers,
    refusal_of,
    words,
)
from .test_fuzz_constructors import GRADS, jax_after_steps, parameters


def _as_seed(value: Hostile) -> Hostile:
    """A float that is whole may be taken for the integer."""
    whole = type(value.plain) is float and value.plain.is_integer()
    return Hostile(repr(value), value.value, int(value.plain), sure=False) if whole else value


SEEDS = numbers((0, 7, 2**31, 2**32 - 1, 2**32, -1, 1.5)).map(_as_seed)
OPTIONS: dict[str, tuple[Callable[[Any], bool], Any]] = {
    "foreach": (fields.one_of(None, True, False), st.one_of(FLAGS, CONSTANTS)),
    "fused": (fields.one_of(None, True, False), st.one_of(FLAGS, CONSTANTS)),
    "capturable": (fields.one_of(True, False), FLAGS),
    "maximize": (fields.one_of(True, False), FLAGS),
    "rounding": (fields.one_of("nearest", "stochastic", "kahan"), words(("nearest", "stochastic", "kahan"))),
    "seed": (lambda seed: type(seed) is int and 0 <= seed < 2**32, SEEDS),
    "nonfinite": (fields.one_of("propagate", "skip"), words(("propagate", "skip"))),
    "telemetry": (fields.one_of(True, False), FLAGS),
}


@st.composite
def options(draw: st.DrawFn) -> dict[str, Hostile]:
    names = draw(st.lists(st.sampled_from(list(OPTIONS)), min_size=1, max_size=3, unique=True))
    given = {name: draw(st.one_of(OPTIONS[name][1], OPTIONS[name][1], ANYTHING)) for name in names}
    return {name: _as_seed(value) if name == "seed" else value for name, value in given.items()}


def narrow(**given: Any) -> Adafactor:
    """Parameters of 16 bits, where the rounding has an effect."""
    return Adafactor([(name, torch.nn.Parameter(p.detach().bfloat16())) for name, p in parameters()], **given)


def added_options(given: Mapping[str, Any]) -> Adafactor:
    optimizer = Adafactor([("first", torch.nn.Parameter(torch.ones(2)))])
    p = [(name, torch.nn.Parameter(p.detach().bfloat16())) for name, p in parameters()]
    optimizer.add_param_group({"params": p, **given})
    return optimizer


def written_options(given: Mapping[str, Any]) -> Adafactor:
    optimizer = narrow()
    optimizer.param_groups[0].update(given)
    optimizer.step()  # without gradients: the values are looked at
    return optimizer


OPTION_WAYS: dict[str, Callable[[Mapping[str, Any]], Adafactor]] = {
    "keywords": lambda given: narrow(**given),
    "added": added_options,
    "written": written_options,
}


def bits_after_steps(optimizer: Adafactor) -> list[Any]:
    tensors = optimizer.param_groups[-1]["params"]
    for grads in GRADS:
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.tensor(g).bfloat16()
        optimizer.step()
    return [p.detach().view(torch.int16).tolist() for p in tensors]


@cases(50, 2000)
@given(options(), st.sampled_from(list(OPTION_WAYS)))
def test_options(given: dict[str, Hostile], way: str) -> None:
    """An option in any form is the plain one, to the bit."""
    plain = {name: value.plain for name, value in given.items()}
    bad = any(plain[name] is NOTHING or not OPTIONS[name][0](plain[name]) for name in given)
    bad = bad or (plain.get("foreach") is True and plain.get("fused") is True)
    optimizer, why = refusal_of(lambda: OPTION_WAYS[way]({n: v.value for n, v in given.items()}), given)
    assert (optimizer is None) >= bad, "taken, although it is out of range"
    assert why is None or bad or not all(value.sure for value in given.values()), why
    if optimizer is not None:
        saved = optimizer.state_dict()["param_groups"][-1]
        assert {name: (type(saved[name]), saved[name]) for name in plain} == {n: (type(v), v) for n, v in plain.items()}
        assert bits_after_steps(optimizer) == bits_after_steps(OPTION_WAYS[way](plain))


# -------------------------------------------------------------------------------------------------------- in JAX


def _is_mask(plain: Any) -> bool:
    return plain is None or type(plain) is bool


# No tree so deep or with so many leaves that JAX itself loses its way in it, and none of which it says itself that it
# is none.
NO_TREES = ("deep", "million", "generator")
IN_A_TREE = ANYTHING.filter(lambda value: not any(word in repr(value) for word in NO_TREES))
OPTIONS_IN_JAX: dict[str, tuple[Callable[[Any], bool], Any]] = {
    "rounding": OPTIONS["rounding"],
    "seed": (lambda plain: plain is None or OPTIONS["seed"][0](plain), st.one_of(SEEDS, CONSTANTS)),
    "telemetry": OPTIONS["telemetry"],
    "weight_decay_mask": (_is_mask, st.one_of(FLAGS, CONSTANTS)),
    "mesh": (lambda plain: plain is None, CONSTANTS),
    "specs": (lambda plain: plain is None, st.just(Hostile("PartitionSpec()", PartitionSpec()))),
}


@st.composite
def options_in_jax(draw: st.DrawFn) -> dict[str, Hostile]:
    names = draw(st.lists(st.sampled_from(list(OPTIONS_IN_JAX)), min_size=1, max_size=2, unique=True))
    given = {name: draw(st.one_of(OPTIONS_IN_JAX[name][1], OPTIONS_IN_JAX[name][1], IN_A_TREE)) for name in names}
    return {name: _as_seed(value) if name == "seed" else value for name, value in given.items()}


@cases(6, 1000)
@given(options_in_jax())
def test_options_in_jax(given: dict[str, Hostile]) -> None:
    """An option in any form is the plain one, to the bit. A mask is looked at when it meets the parameters."""
    plain = {name: value.plain for name, value in given.items()}
    bad = any(plain[name] is NOTHING or not OPTIONS_IN_JAX[name][0](plain[name]) for name in given)

    def stepped(values: Mapping[str, Any]) -> list[Any]:
        return jax_after_steps(adafactor(weight_decay=0.1, **values))

    found, why = refusal_of(lambda: stepped({name: value.value for name, value in given.items()}), given)
    assert (found is None) >= bad, "taken, although it is out of range"
    assert why is None or bad or not all(value.sure for value in given.values()), why
    if found is not None:
        assert all(one.tobytes() == other.tobytes() for one, other in zip(found, stepped(plain), strict=True))


# --------------------------------------------------------------------------------------------- recipes and parameters

NO_RECIPES = st.sampled_from([Hostile("Recipe", Recipe), Hostile("recipes.paper", recipes.paper)])
RECIPES = st.one_of(words(recipes.NAMES), ANYTHING, NO_RECIPES)
TAKES_A_RECIPE: dict[str, Callable[[Any], Any]] = {
    "torch": lambda recipe: Adafactor(parameters(), recipe=recipe, lr=0.1),
    "a group": lambda recipe: Adafactor([{"params": parameters(), "recipe": recipe, "lr": 0.1}]),
    "jax": lambda recipe: adafactor(0.1, recipe=recipe),
    "resolve": recipes.resolve,
    "function": lambda recipe: recipes.function(recipe)(),
}


@cases(30, 1000)
@given(RECIPES, st.sampled_from(list(TAKES_A_RECIPE)))
def test_recipes_by_name(given: Hostile, way: str) -> None:
    made, why = refusal_of(lambda: TAKES_A_RECIPE[way](given.value))
    assert made is None or given.plain in recipes.NAMES, "taken, although there is no such recipe"
    # A rule may not take the shapes, and praxis has no default of its own.
    assert made is not None or given.plain not in {*recipes.NAMES} - {"praxis"} or "parameter" in str(why), why


PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "a list": lambda value: [value],
    "beside others": lambda value: [value, *(p for _, p in parameters())],
    "named": lambda value: [("name", value)],
    "a name": lambda value: [(value, parameters()[0][1])],
    "a group": lambda value: [{"params": value}],
    "in a group": lambda value: [{"params": [value]}],
    "a key": lambda value: [{"params": parameters(), **({value: 1} if isinstance(value, str) else {"mine": value})}],
}


@cases(40, 1500)
@given(ANYTHING, st.sampled_from(list(PARAMETERS)), st.booleans())
def test_parameters(given: Hostile, how: str, added: bool) -> None:
    """What is no parameter, name or group is refused by torch's own checks or in our form, and leaves no trace."""
    optimizer = Adafactor([torch.nn.Parameter(torch.ones(2))])
    try:
        if added:
            for group in itertools.islice(PARAMETERS[how](given.value), 1):
                optimizer.add_param_group(group)
        else:
            Adafactor(PARAMETERS[how](given.value)).step()
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        # torch looks at parameters first, and what it finds in iterating over them is their own.
        if traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OURS):
            assert_in_form(error)
        assert len(optimizer.param_groups) == 1
    optimizer.step()


IN_JAX = {"w": jnp.ones((7, 3))}
CALLS: dict[str, Callable[[Any], Any]] = {
    "step_param": lambda value: Adafactor(parameters()).step_param(value),
    "release, a model": lambda value: release_gradients(value, Adafactor(parameters())),
    "release, an optimizer": lambda value: release_gradients([p for _, p in parameters()], value),
    "init of the oracle": lambda value: oracle.init(Recipe(), np.ones(2), rounding=value),
    "replace": lambda value: replace(Recipe(), **{value if isinstance(value, str) else "mine": 1}),
    "shardings": lambda value: adafactor_jax.state_shardings(value, {"w": jnp.ones(2)}),
    "parameters in JAX": lambda value: adafactor().init({"w": value}),
    "a gradient in JAX": lambda value: adafactor().update({"w": value}, adafactor().init(IN_JAX), IN_JAX),
}


@cases(40, 1500)
@given(IN_A_TREE, st.sampled_from(list(CALLS)))
def test_calls(given: Hostile, name: str) -> None:
    """What is nothing that a function takes is refused in form."""
    if name == "release, a model" and isinstance(given.value, Failing):
        return  # it fails when it is iterated over, which is its own matter
    with jax.enable_x64(False):
        found, _ = refusal_of(lambda: CALLS[name](given.value))
    arrays = np.ndarray | np.generic | jax.Array | float | int
    is_tree = name in ("parameters in JAX", "a gradient in JAX")
    assert found is None or (is_tree and all(isinstance(leaf, arrays) for leaf in jax.tree.leaves(given.value)))
