"""optax's wrappers in float32 and in 16 bits: compiled once, as the definition, and their state found by its names."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle, replace
from parity_tests.jax_steps import FLOAT32_GAPS, Tree, assert_equal, compilations, kinds, step_of, structure, tree

tree_utils = optax.tree_utils
SHAPES = {"bias": (6,), "kernel": (64, 80)}  # so large that a second rounding to 16 bits shows in some elements
RECIPE = Recipe(lr=0.1, beta1=0.9, weight_decay=0.1)
PLAIN = Recipe(lr=0.1, relative_step=False)  # schedule_free asks for an optimizer without momentum
OTHER = replace(RECIPE, beta1=None, weight_decay=0.0, clipping_threshold=0.5)

WRAPPERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "masked": lambda: optax.chain(
        optax.masked(adafactor(recipe=RECIPE), {"bias": False, "kernel": True}),
        optax.masked(optax.set_to_zero(), {"bias": True, "kernel": False}),
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"one": adafactor(recipe=RECIPE), "other": adafactor(recipe=OTHER)}, {"bias": "other", "kernel": "one"}
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(adafactor(recipe=RECIPE), max_consecutive_errors=1),
    "MultiSteps": lambda: optax.MultiSteps(adafactor(recipe=RECIPE), 2).gradient_transformation(),
    "lookahead": lambda: optax.lookahead(adafactor(recipe=RECIPE), sync_period=2, slow_step_size=0.5),
    "schedule_free": lambda: optax.contrib.schedule_free(adafactor(recipe=PLAIN), learning_rate=0.1, b1=0.9),
}
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)


def start(name: str, dtype: str) -> Tree:
    """Parameters of either sign, none of them near 0, where a step would be a large multiple of a parameter."""
    params = jax.tree.map(lambda x: jnp.sign(x) + x, tree(0, dtype, SHAPES, scale=0.25))
    return optax.LookaheadParams.init_synced(params) if name == "lookahead" else params


def gradients(name: str, dtype: str) -> tuple[list[Tree], list[Tree]]:
    """(what is given to the wrapper, what reaches the optimizer)"""
    grads = [tree(t, dtype, SHAPES) for t in range(1, 5)]
    if name == "apply_if_finite":
        bad = {**grads[1], "bias": grads[1]["bias"].at[2].set(jnp.inf)}
        return [grads[0], bad, *grads[2:]], [grads[0], *grads[2:]]
    if name == "MultiSteps":
        # The mean in float32, and then in the gradient's dtype.
        mean = lambda a, b: ((a.astype("float32") + b.astype("float32")) / 2).astype(a.dtype)  # noqa: E731
        return grads, [jax.tree.map(mean, *pair) for pair in (grads[:2], grads[2:])]
    return grads, grads


def stepped(name: str, dtype: str) -> tuple[Tree, Tree]:
    """(parameters, state) after the gradients; the first step compiles and no other, and no type changes."""
    tx, params = WRAPPERS[name](), start(name, dtype)
    step, state = step_of(tx), tx.init(params)
    types, (given, _) = kinds((params, state)), gradients(name, dtype)
    params, state = step(params, state, given[0])
    with compilations() as seen:
        for grad in given[1:]:
            params, state = step(params, state, grad)
    assert seen == []
    assert kinds((params, state)) == types
    return params, state


def by_definition(name: str, leaf: str, dtype: str, stored: str, compute: Any = np.float64) -> Any:
    """One parameter before the first step and after each, by the oracle, with the wrapper's own rule.

    Begins with parameters and gradients of `dtype`; between the steps parameters are stored as `stored`.
    """
    recipe = {"schedule_free": PLAIN, "multi_transform": OTHER if leaf == "bias" else RECIPE}.get(name, RECIPE)
    begin, (_, grads) = start(name, dtype), gradients(name, dtype)
    p = np.asarray((begin.fast if name == "lookahead" else begin)[leaf]).astype(compute)
    state = oracle.init(recipe, p, dtype=stored, compute=compute)
    path, slow, z = [p], p, p
    for t, grad in enumerate(grads, 1):
        g = np.asarray(grad[leaf]).astype(compute)
        moved, state = oracle.step(recipe, p, g, state, dtype=stored, compute=compute)
        if name == "lookahead" and t % 2 == 0:
            moved = slow = slow + compute(0.5) * (moved - slow)
        if name == "schedule_free":  # x is the average of z, and y = p is between the two
            b1 = compute(0.9)
            x, z = (p - (1 - b1) * z) / b1, z + (moved - p)
            x = (1 - 1 / compute(t)) * x + z / compute(t)
            moved = b1 * x + (1 - b1) * z
        p = moved
        path.append(p)
    return np.stack(path)


def to_compare(name: str, params: Tree) -> list[tuple[str, Any]]:
    """Every leaf that a definition is for, and its name."""
    trees = [params.fast, params.slow] if name == "lookahead" else [params]  # equal after two periods
    leaves = ["kernel"] if name == "masked" else ["bias", "kernel"]
    return [(leaf, np.asarray(values[leaf], np.float64)) for values in trees for leaf in leaves]


@every_wrapper
def test_as_the_definition(name: str) -> None:
    params, gaps, ours = stepped(name, "float32")[0], [], []
    if name == "masked":
        assert_equal(params["bias"], start(name, "float32")["bias"])
    for leaf, moved in to_compare(name, params):
        exact = by_definition(name, leaf, "float32", "float64")
        single = by_definition(name, leaf, "float32", "float32", np.float32)
        way = np.max(np.abs(exact[-1] - exact[0]))
        gaps.append(np.max(np.abs(single[-1] - exact[-1])) / way)
        ours.append(np.max(np.abs(moved - exact[-1])) / way)
    assert 0 < max(gaps) < 1e-5  # parameters of about 1 have come some tenths: a few times the 6e-8 of float32
    assert max(ours) <= FLOAT32_GAPS * max(gaps)


# The other two do arithmetic of their own in 16 bits.
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("masked", "bfloat16"),
        ("multi_transform", "bfloat16"),
        ("apply_if_finite", "bfloat16"),
        ("MultiSteps", "bfloat16"),
        ("MultiSteps", "float16"),
    ],
)
def test_16_bit_parameters_round_once(name: str, dtype: str) -> None:
    for leaf, moved in to_compare(name, stepped(name, dtype)[0]):
        exact, single = (by_definition(name, leaf, dtype, dtype, compute)[-1] for compute in (np.float64, np.float32))
        told = exact == single  # nearer to the middle of two numbers than float32 can tell, the two differ
        assert told.mean() > 0.99
        assert np.array_equal(moved[told], exact[told])


@pytest.mark.parametrize("name", ["lookahead", "schedule_free"])
def test_16_bit_parameters_move(name: str) -> None:
    moved, begin = (to_compare(name, params) for params in (stepped(name, "bfloat16")[0], start(name, "bfloat16")))
    for (_, after), (_, before) in zip(moved, begin, strict=True):
        assert np.all(np.isfinite(after)) and np.mean(after != before) > 0.9


# --- The state, by name ---------------------------------------------------------------------------------------------

FACTORS = {"v_row": [(64, 1)], "v_col": [(1, 80)], "v": [(6,)]}


def named(state: Tree, field: str) -> list[Any]:
    """The arrays of every entry of that name: multi_transform keeps two optimizers."""
    return jax.tree.leaves([value for _, value in tree_utils.tree_get_all_with_path(state, field)])


@every_wrapper
def test_factors_and_counts_are_found_and_set(name: str) -> None:
    tx = WRAPPERS[name]()
    state = tx.init(start(name, "bfloat16"))
    present = {**FACTORS, "v": []} if name == "masked" else FACTORS  # nothing is kept of what is left out
    mapped = tree_utils.tree_map_params(tx, lambda x: x + 1, state)
    assert structure(mapped) == structure(state)
    for field, shapes in present.items():
        assert [leaf.shape for leaf in named(state, field)] == shapes
        assert all(bool(jnp.all(leaf == 1)) for leaf in named(mapped, field))
    assert {int(count) for count in named(mapped, "count")} == {0}
    if name != "multi_transform":  # where more than one has the name, a filter has to say which
        # One call for each: given both, optax does not look below the count.
        changed = tree_utils.tree_set(state, count=jnp.asarray(7, "int32"))
        changed = tree_utils.tree_set(changed, v_row=tree_utils.tree_get(mapped, "v_row"))
        assert kinds(changed) == kinds(state)
        assert int(tree_utils.tree_get(changed, "count")) == 7
        assert_equal(named(changed, "v_row"), named(mapped, "v_row"))
        assert_equal(named(changed, "v_col"), named(state, "v_col"))


def test_the_learning_rate_is_found_and_set() -> None:
    tx = optax.inject_hyperparams(adafactor)(0.5, relative_step=False)
    params, grads = start("", "float32"), tree(1, "float32", SHAPES)
    state = tx.init(params)
    assert float(tree_utils.tree_get(state, "learning_rate")) == 0.5
    halved = tree_utils.tree_set(state, learning_rate=jnp.asarray(0.25, "float32"))
    update = jax.jit(tx.update)
    whole, _ = update(grads, state, params)
    with compilations() as seen:
        half, later = update(grads, halved, params)
    assert seen == []
    assert_equal(half, jax.tree.map(lambda u: u / 2, whole))  # by a power of two, so exactly
    # inject_hyperparams counts too.
    assert int(tree_utils.tree_get(later.inner_state, "count")) == len(named(later, "count")) - 1 == 1
    assert [leaf.shape for leaf in named(later, "v_row")] == FACTORS["v_row"]
    mapped = tree_utils.tree_map_params(tx, jnp.zeros_like, later)
    assert float(tree_utils.tree_get(mapped, "learning_rate")) == 0.25 and not np.any(named(mapped, "v_row")[0])
