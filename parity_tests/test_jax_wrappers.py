"""optax's wrappers around `adafactor_jax.adafactor`: what comes out is what the optimizer alone would have done."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adafactor_jax
from adafactor_jax import adafactor
from adafactor_spec import Recipe, schedules
from parity_tests.jax_steps import (
    FLOAT64,
    RECIPES,
    Tree,
    assert_equal,
    compilations,
    distance,
    kinds,
    optimizer,
    run,
    step_of,
    tree,
)

every_recipe = pytest.mark.parametrize("name", RECIPES)
# The forms of the state that a wrapper can meet: factors alone, a first moment inside and V_max, a first moment after.
some_recipes = pytest.mark.parametrize("name", ["paper", "amsgrad", "step"])
tree_get = optax.tree_utils.tree_get


@some_recipes
def test_masked(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2)]
        masked = optax.masked(tx, lambda params: {"layer": True, "scale": False} if params else {})
        moved, state = run(masked, step_of(masked), params, grads)
        alone, expected = run(tx, step, {"layer": params["layer"]}, [{"layer": g["layer"]} for g in grads])
        assert distance(moved["layer"], alone["layer"]) <= FLOAT64
        assert distance(jax.tree.leaves(state), jax.tree.leaves(expected)) <= FLOAT64
        assert_equal(moved["scale"], params["scale"] + grads[0]["scale"] + grads[1]["scale"])  # optax lets it through


@some_recipes
def test_partition(name: str) -> None:
    with jax.enable_x64(True):
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2)]
        fast = adafactor(0.1, recipe=RECIPES[name])
        parts = {"fast": fast, "plain": optimizer(name)[0], "frozen": optax.set_to_zero()}
        labels = {"layer": {"bias": "frozen", "kernel": "fast"}, "scale": "plain"}
        tx = optax.multi_transform(parts, labels)  # also called partition
        moved, state = run(tx, step_of(tx), params, grads)
        kernel, _ = run(fast, step_of(fast), params["layer"]["kernel"], [g["layer"]["kernel"] for g in grads])
        scale, _ = run(*optimizer(name), params["scale"], [g["scale"] for g in grads])
        assert distance(moved["layer"]["kernel"], kernel) <= FLOAT64
        assert distance(moved["scale"], scale) <= FLOAT64
        assert_equal(moved["layer"]["bias"], params["layer"]["bias"])
        assert [int(value) for _, value in optax.tree_utils.tree_get_all_with_path(state, "count")] == [2, 2]


@some_recipes
def test_multi_steps(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2)]
        accumulated = optax.MultiSteps(tx, 2, accumulator_dtype="float64")
        stepped = step_of(accumulated.gradient_transformation())
        moved, state = params, accumulated.init(params)
        for grad in grads:
            half, state = stepped(moved, state, grad)
            assert_equal(half, moved)
            moved, state = stepped(moved, state, grad)  # the mean of equal gradients is that gradient
        expected, inner = run(tx, step, params, grads)
        assert distance((moved, state.inner_opt_state), (expected, inner)) <= FLOAT64


@every_recipe
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_multi_steps_keeps_types(name: str, dtype: str) -> None:
    tx, params = optax.MultiSteps(optimizer(name)[0], 4), tree(0, dtype)
    state = tx.init(params)
    assert kinds(jax.eval_shape(tx.update, tree(1, dtype), state, params)) == kinds((params, state))


@some_recipes
def test_apply_if_finite(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params, good = tree(0, "float64"), tree(1, "float64")
        bad = {**good, "scale": jnp.asarray(jnp.nan, "float64")}
        safe = optax.apply_if_finite(tx, max_consecutive_errors=3)
        stepped = step_of(safe)
        moved, state = run(safe, stepped, params, [good])
        kept, skipped = stepped(moved, state, bad)
        assert_equal((kept, skipped.inner_state), (moved, state.inner_state))
        moved, state = stepped(kept, skipped, good)
        assert distance((moved, state.inner_state), run(tx, step, params, [good, good])) <= FLOAT64


# --- inject_hyperparams, without static_args ------------------------------------------------------------------------

INJECTED: dict[str, dict[str, Any]] = {
    **{name: {"recipe": recipe} for name, recipe in RECIPES.items()},
    "by name": {"recipe": "adafactor_pytorch_parent"},
    "learning rate": {"learning_rate": 3e-2},
    "numbers": {
        "learning_rate": 3e-2,
        "relative_step": False,
        "eps2": 0.1,
        "max_parameter_scale": 0.5,
        "beta2": 0.99,
        "eps1": 1e-20,
        "clipping_threshold": 0.5,
        "beta1": 0.8,
        "debias": True,
        "weight_decay": 0.1,
    },
    "flags": {
        "multiply_by_parameter_scale": False,
        "amsgrad": True,
        "clipping_threshold": None,
        "beta1": 0.8,
        "momentum_of": "step",
        "momentum_dtype": "bfloat16",
        "weight_decay": 0.1,
        "weight_decay_by": "lr",
        "decay_before_scale": True,
        "state_dtype": "param",
    },
    "power of lr": {"learning_rate": 0.5, "weight_decay": 0.1, "weight_decay_by": 2.0},
    "L2": {"weight_decay": 0.1, "weight_decay_by": "grad", "weight_decay_mask": {"layer": True, "scale": False}},
}


@pytest.mark.sampled(count=6)
@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name: str) -> None:
    with jax.enable_x64(True):
        arguments = INJECTED[name]
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2)]
        plain = adafactor(**arguments)
        injected = optax.inject_hyperparams(adafactor)(**arguments)
        expected, inner = run(plain, optimizer(name)[1] if name in RECIPES else step_of(plain), params, grads)
        moved, state = run(injected, step_of(injected), params, grads)
        numbers = {key for key, value in arguments.items() if isinstance(value, float)}
        assert set(state.hyperparams) == numbers
        assert distance((moved, state.inner_state), (expected, inner)) <= FLOAT64


def test_an_injected_learning_rate_can_be_changed() -> None:
    params, grads = tree(0), tree(1)
    tx = optax.inject_hyperparams(adafactor)(0.5, relative_step=False)
    update = jax.jit(tx.update)
    state = tx.init(params)
    assert kinds(update(grads, state, params)) == kinds((grads, state))
    updates, _ = update(grads, state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25, "float32")
    with compilations() as seen:
        halved, state = update(grads, state, params)
        updates_again, state = update(grads, state, params)
    assert seen == []
    assert_equal(halved, jax.tree.map(lambda u: u / 2, updates))  # by a power of two, so exactly
    assert kinds(updates_again) == kinds(grads)


def test_an_injected_schedule_counts_as_optax_does() -> None:
    with jax.enable_x64(True):
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2, 3)]
        decay = optax.exponential_decay(0.5, 1, 0.5)
        injected = optax.inject_hyperparams(adafactor)(decay, relative_step=False)
        wrapped = adafactor(schedules.zero_based(decay), relative_step=False)
        moved, state = run(injected, step_of(injected), params, grads)
        assert float(state.hyperparams["learning_rate"]) == 0.125
        assert distance(moved, run(wrapped, step_of(wrapped), params, grads)[0]) <= FLOAT64


def test_schedules_and_rules_inside_a_recipe_are_not_taken_for_hyperparameters() -> None:
    recipe = Recipe(beta2=schedules.adam_decay(0.99), weight_decay=0.1)
    tx = optax.inject_hyperparams(adafactor)(0.1, recipe=recipe, weight_decay=0.2)
    state = tx.init(tree(0))
    assert set(state.hyperparams) == {"learning_rate", "weight_decay"}


@pytest.mark.parametrize(
    ("piece", "arguments"),
    [
        ("scale_by_factored_rms", {"beta2": 0.9, "eps1": 1e-20, "amsgrad": True}),
        ("clip_by_block_rms", {"threshold": 0.5}),
        ("scale_by_step_size", {"learning_rate": 0.1, "relative_step": True}),
        ("scale_by_parameter_scale", {"step": 0.1, "eps2": 0.1, "max_parameter_scale": 1.0, "decay": 0.1}),
        ("momentum", {"beta1": 0.9, "debias": True}),
        ("add_decayed_weights", {"weight_decay": 0.1, "step": 0.1, "multiply_by_parameter_scale": True}),
    ],
)
def test_pieces_can_be_injected(piece: str, arguments: dict[str, Any]) -> None:
    factory = getattr(adafactor_jax, piece)
    with jax.enable_x64(True):
        params, grads = tree(0, "float64"), tree(1, "float64")

        def updates(tx: optax.GradientTransformation) -> Tree:
            return jax.jit(tx.update)(grads, tx.init(params), params)[0]

        injected = updates(optax.inject_hyperparams(factory)(**arguments))
        assert distance(injected, updates(factory(**arguments))) <= FLOAT64


def test_a_transformation_of_optax_makes_the_numerator() -> None:
    tx = adafactor_jax.scale_by_factored_rms(0.0, numerator=optax.trace(0.9))
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params)
    updates, _ = tx.update(params, state, params)
    assert_equal(updates, 0.9 * params + params)  # divided by sqrt(1)
