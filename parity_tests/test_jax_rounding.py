"""16-bit weights of the JAX optimizer land, after `optax.apply_updates`, on the bits of the oracle's and torch's."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import Recipe

from .jax_rounding import (
    EXACT,
    EXACT_SUM,
    ROUNDINGS,
    SEED,
    STEPS,
    by_the_oracle,
    signs,
    torch_optimizer,
    torch_step,
    weights,
    wide,
)
from .jax_steps import Tree, assert_equal, compilations, kind, kinds, step_of, structure

# --- Ways to take the steps: (rounding, seed, recipe, parameters, gradients) -> (parameters, state) -------------------


def donated(rounding: Any, seed: int, recipe: Recipe, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    tx = adafactor(recipe=recipe, rounding=rounding, seed=seed)
    step, state = step_of(tx, donate_argnums=(0, 1)), tx.init(params)
    params = jax.tree.map(jnp.copy, params)
    for grad in grads:
        params, state = step(params, state, grad)
    return params, state


def scanned(rounding: Any, seed: int, recipe: Recipe, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    tx = adafactor(recipe=recipe, rounding=rounding, seed=seed)
    step = step_of(tx)

    def body(carry: tuple[Tree, Tree], grad: Tree) -> tuple[tuple[Tree, Tree], None]:
        return step(*carry, grad), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    last: tuple[Tree, Tree] = jax.jit(lambda: jax.lax.scan(body, (params, tx.init(params)), stacked)[0])()
    return last


def injected(rounding: Any, seed: int, recipe: Recipe, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    """With a seed that is a hyperparameter; the one that the optimizer was built with is another."""
    tx = optax.inject_hyperparams(adafactor)(recipe=recipe, rounding=rounding, seed=seed + 1)
    step, state = step_of(tx), tx.init(params)
    assert set(state.hyperparams) == {"seed"}
    state.hyperparams["seed"] = jnp.asarray(seed)
    for grad in grads:
        params, state = step(params, state, grad)
    return params, state.inner_state


def resumed(rounding: Any, seed: int, recipe: Recipe, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    """From what a file keeps of the first two steps, by an optimizer that is built anew."""
    after = donated(rounding, seed, recipe, params, grads[:2])
    params, state = pickle.loads(pickle.dumps(jax.device_get(after)))
    step = step_of(adafactor(recipe=recipe, rounding=rounding, seed=seed))
    for grad in grads[2:]:
        params, state = step(params, state, grad)
    return params, state


WAYS = {way.__name__: way for way in (donated, scanned, injected, resumed)}


@functools.cache
def exact_run(rounding: str) -> tuple[Recipe, Tree, list[Tree], list[Any]]:
    """(Recipe, parameters, gradients, what the oracle makes of them)."""
    recipe, params = EXACT if rounding == "stochastic" else EXACT_SUM, weights()
    grads = [signs(t) for t in range(1, STEPS + 1)]
    return recipe, params, grads, by_the_oracle(recipe, params, grads, rounding, SEED)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("rounding", "way"), [*(("stochastic", way) for way in WAYS), ("kahan", "donated"), ("kahan", "resumed")]
)
def test_the_same_bits_as_the_oracle(rounding: str, way: str) -> None:
    recipe, params, grads, expected = exact_run(rounding)
    moved, state = WAYS[way](rounding, SEED, recipe, params, grads)
    kept = structure(params).flatten_up_to(state.compensation)
    for start, p, c, (x, rest) in zip(*map(jax.tree.leaves, (params, moved)), kept, expected, strict=True):
        assert p.dtype == start.dtype
        np.testing.assert_array_equal(wide(p), x)
        assert (c is None) == (rest is None) == (rounding == "stochastic" or p.dtype == "float32")
        if c is not None:
            np.testing.assert_array_equal(wide(c), rest)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_same_bits_as_the_oracle_in_torch(rounding: str) -> None:
    recipe, params, grads, expected = exact_run(rounding)
    optimizer, ps = torch_optimizer(recipe, params, rounding, SEED)
    for grad in grads:
        torch_step(optimizer, ps, grad)
    for p, (x, rest) in zip(ps, expected, strict=True):
        np.testing.assert_array_equal(p.detach().double().numpy(), x)
        if rest is not None:
            np.testing.assert_array_equal(optimizer.state[p]["compensation"].double().numpy(), rest)


@pytest.mark.parametrize("other", ["nothing", "rounding", "seed", "position", "step"])
def test_the_comparison_sees_other_bits(other: str) -> None:
    """With one of them changed, more than one weight in ten lies elsewhere after two steps."""
    params, grads = ([values["scale"] for values in trees] for trees in ([weights()], [signs(1), signs(2)]))
    ((expected, _),) = by_the_oracle(EXACT, params, [[grad] for grad in grads], "stochastic", SEED)
    rounding: Any = "nearest" if other == "rounding" else "stochastic"
    wrong = adafactor(recipe=EXACT, rounding=rounding, seed=SEED + 1 if other == "seed" else SEED)
    first = [jnp.ones((), "float16")] if other == "position" else []
    moved, state, step = [*first, *params], wrong.init([*first, *params]), step_of(wrong)
    state = state._replace(count=state.count + 1) if other == "step" else state
    for grad in grads:
        moved, state = step(moved, state, [*first, grad])
    assert (np.mean(wide(moved[-1]) != expected) > 0.1) == (other != "nothing")


@pytest.mark.parametrize("seed", [None, 0, 2**31, 2**32 - 1, np.uint32(7)])
def test_seeds(seed: Any) -> None:
    """None is 0."""
    params, grads = {"scale": weights()["scale"]}, [{"scale": signs(1)["scale"]}]
    moved, _ = donated("stochastic", seed, EXACT, params, grads)
    ((x, _),) = by_the_oracle(EXACT, params, grads, "stochastic", int(seed or 0))
    np.testing.assert_array_equal(wide(moved["scale"]), x)


def test_no_seed_is_no_hyperparameter() -> None:
    params, grads = {"scale": weights()["scale"]}, {"scale": signs(1)["scale"]}

    def moved(expected: set[str], **seed: int) -> Tree:
        tx = optax.inject_hyperparams(adafactor)(2.0**-8, relative_step=False, rounding="stochastic", **seed)
        now, state, step = params, tx.init(params), step_of(tx)
        assert set(state.hyperparams) == {"learning_rate", *expected}
        with compilations() as seen:
            for _ in range(3):
                now, state = step(now, state, grads)
        assert len([line for line in seen if "step" in line]) == 1
        return now

    assert_equal(moved(set()), moved({"seed"}, seed=0))


def test_weights_near_zero_land_where_they_shall_by_float32_updates() -> None:
    """Their difference to the next weight has more bits than bfloat16 has, but not more than float32."""
    start = 11 * 2.0**-15 * np.random.default_rng(0).uniform(-2.0, 2.0, 2000)
    params, grads = {"w": jnp.asarray(start, "bfloat16"), "zeros": jnp.zeros(2000, "bfloat16")}, []
    for t in range(STEPS):
        signs = np.random.default_rng(t).choice([-1.0, 1.0], 2000)
        grads.append({"w": jnp.asarray(signs, "float32"), "zeros": jnp.asarray(-signs, "float32")})
    moved, _ = donated("stochastic", SEED, EXACT_SUM, params, grads)
    for p, (x, _) in zip(moved.values(), by_the_oracle(EXACT_SUM, params, grads, "stochastic", SEED), strict=True):
        np.testing.assert_array_equal(wide(p), x)


def test_what_is_kept_is_bfloat16_and_stays_so() -> None:
    params = {dtype: jnp.ones((6, 5), dtype) for dtype in ("bfloat16", "float16", "float32")}
    tx = adafactor(1e-3, rounding="kahan", weight_decay=0.1)
    state = tx.init(params)
    assert kind(state.compensation["bfloat16"]) == kind(state.compensation["float16"]) == ((6, 5), "bfloat16", False)
    assert state.compensation["float32"] is None
    assert not any(np.any(wide(kept)) for kept in jax.tree.leaves(state.compensation))
    before, step, grads = kinds(state), step_of(tx, donate_argnums=(0, 1)), jax.tree.map(jnp.ones_like, params)
    with compilations() as seen:
        for _ in range(3):
            params, state = step(params, state, grads)
    assert len([line for line in seen if "step" in line]) == 1
    assert kinds(state) == before
    assert all(np.any(wide(kept)) for kept in jax.tree.leaves(state.compensation))


def test_without_a_gradient_a_weight_and_what_is_kept_of_it_stay() -> None:
    params = {"a": jnp.full((4,), 0.7, "bfloat16"), "b": jnp.full((4,), 0.7, "bfloat16")}
    tx = adafactor(recipe=EXACT, rounding="kahan")
    params, state = step_of(tx)(params, tx.init(params), jax.tree.map(jnp.ones_like, params))
    updates, later = jax.jit(tx.update)({"a": None, "b": jnp.ones_like(params["b"])}, state, params)
    assert updates["a"] is None
    assert_equal(later.compensation["a"], state.compensation["a"])
    assert np.any(wide(later.compensation["b"]) != wide(state.compensation["b"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounding": "stochastik"}, "rounding must be one of 'nearest', 'stochastic', 'kahan', got 'stochastik'."),
        ({"rounding": None}, "rounding must be one of 'nearest', 'stochastic', 'kahan', got None."),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**32}, "seed must be in"),
        ({"seed": float("nan")}, "seed must be in"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5."),
        ({"seed": "5"}, "seed must be a number, got '5'."),
        ({"seed": True}, "seed must be a number, got True."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adafactor(**arguments)
