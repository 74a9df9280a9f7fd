"""Steps whose arithmetic rounds: 16-bit weights of JAX's optimizer and of torch's go where the oracle's do, but where
float32 cannot tell, and on average as far as float32 weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from adafactor_jax import adafactor
from adafactor_spec import Recipe, dtypes, oracle

from .jax_rounding import ROUNDINGS, SEED, STEPS, normal, torch_optimizer, torch_step, torch_tensor, weights, wide
from .jax_steps import FLOAT32_GAPS, Tree, assert_equal, step_of, structure

# Factored, scaled and clipped: the arithmetic rounds, and now and then that decides which neighbour is taken.
GENERAL = Recipe(lr=1e-3, relative_step=False, weight_decay=0.1)
# What decides it less often than this leaves the test its force: another seed, index or step decides one in ten.
UNDECIDED = 0.01


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_step_that_rounds_is_the_oracles(rounding: Any) -> None:
    """Rounding, the bits given, never turns the order of two numbers: between what the oracle makes of the two ends of
    float32's error there is one answer nearly always, and JAX and torch give it."""
    params = narrow(weights(0.5))
    tx = adafactor(recipe=GENERAL, rounding=rounding, seed=SEED)
    step, state = step_of(tx), tx.init(params)
    optimizer, ps = torch_optimizer(GENERAL, params, rounding, SEED)
    undecided = count = 0
    for t in range(1, STEPS + 1):
        before, grads = [wide(p) for p in jax.tree.leaves(params)], narrow(normal(t))
        olds = [dict(zip(KEPT, row, strict=True)) for row in kept_of(state, params)]
        for p, old, start in zip(ps, olds, before, strict=True):  # torch takes each step from where JAX does
            with torch.no_grad():
                p.copy_(torch_tensor(start, "float32"))
            for name, x in old.items():
                if t > 1 and x is not None:
                    optimizer.state[p][name].copy_(torch_tensor(x, "float32"))
        torch_step(optimizer, ps, grads)
        params, state = step(params, state, grads)
        found = zip(before, jax.tree.leaves(grads), olds, jax.tree.leaves(params), ps, strict=True)
        for index, (start, g, old, p, p_torch) in enumerate(found):
            dtype, kept = p.dtype.name, 0.0 if old["compensation"] is None else old["compensation"]
            exact, gap = change(start + kept, wide(g), old, t)
            low, high = (rounded(exact + end, rounding, t, index, dtype) for end in (-gap, gap))
            told = low == high
            for x in (wide(p), p_torch.detach().double().numpy()):
                assert np.all((low <= x) & (x <= high))
                np.testing.assert_array_equal(x[told], low[told])
            if rounding == "kahan":
                rest = wide(jax.tree.leaves(state.compensation)[index])
                cut = np.max(dtypes.spacing(wide(p), dtype)) / 2  # rounded to bfloat16 by at most 2^-9 of itself
                assert np.max(np.abs(wide(p) + rest - exact)) <= gap + cut * 2.0**-9
            undecided, count = undecided + int(np.sum(~told)), count + told.size
    assert undecided <= UNDECIDED * count


def narrow(values: Tree) -> Tree:
    """Without the float32 parameter."""
    return {name: leaf for name, leaf in values.items() if name != "bias"}


KEPT = ("v_row", "v_col", "v", "compensation")


def kept_of(state: Tree, params: Tree) -> list[tuple[Any, ...]]:
    """What the state has of each leaf, in float64; None where there is no such thing."""
    trees = [structure(params).flatten_up_to(optax.tree_utils.tree_get(state, name)) for name in KEPT]
    return [tuple(None if x is None else wide(x) for x in row) for row in zip(*trees, strict=True)]


def change(p: Any, g: Any, old: dict[str, Any], t: int) -> tuple[Any, float]:
    """(Where the weight is to be before it is rounded, how far another float32 result may be from that)."""
    moments = {name: x for name, x in old.items() if name != "compensation"}
    exact, single = (
        oracle.step(
            GENERAL,
            p.astype(kind),
            g.astype(kind),
            oracle.State(t - 1, **{name: x if x is None else x.astype(kind) for name, x in moments.items()}),
            compute=kind,
        )[0]
        for kind in (np.float64, np.float32)
    )
    # A scalar's one result may be exact by luck: no float32 is nearer than half a unit in its last place.
    gap = max(float(np.max(np.abs(exact - single))), 2.0**-24 * float(np.max(np.abs(exact))))
    return exact, FLOAT32_GAPS * gap


def rounded(x: Any, rounding: str, t: int, index: int, dtype: str) -> Any:
    if rounding == "kahan":
        return dtypes.round_to(x, dtype)
    return oracle.round_stochastically(x, oracle.random_bits(SEED, t, index, np.shape(x)), dtype)


def test_a_bfloat16_weight_of_one_moves_as_its_float32_twin_does() -> None:
    """At lr 1e-4, in 50 steps: on average with "stochastic", closely with "kahan", not at all with "nearest"."""

    def moved(dtype: str, rounding: Any) -> Any:
        p = jnp.ones((200, 250), dtype)
        options: dict[str, Any] = {"relative_step": False, "multiply_by_parameter_scale": False, "weight_decay": 0.5}
        tx = adafactor(1e-4, rounding=rounding, **options)
        step = step_of(tx)
        body = lambda _, carry: step(carry[0], carry[1], jnp.ones_like(p))  # noqa: E731
        return 1.0 - wide(jax.jit(lambda: jax.lax.fori_loop(0, 50, body, (p, tx.init(p))))()[0])

    twin = moved("float32", "nearest")
    assert twin.mean() == pytest.approx(50 * 1.5e-4, rel=1e-2)  # the decay is half as large as the step
    assert not moved("bfloat16", "nearest").any()
    # A rounding of a step s at spacing h has variance s (h - s) <= s h; below 1, h = 2^-8. Five standard errors.
    error = 5 * float((twin.mean() * 2.0**-8 / twin.size) ** 0.5)
    assert abs(moved("bfloat16", "stochastic").mean() - twin.mean()) <= error
    # Half a spacing is cut off at the end; what is kept of it, in 8 bits, is wrong by 2^-18 a step at most.
    assert np.abs(moved("bfloat16", "kahan") - twin).max() <= 2.0**-9 + 50 * 2.0**-18


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_weights_know_one_rounding(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params, grads = (jnp.asarray(tree["embedding"], dtype) for tree in (weights(), normal(1)))
        moved = []
        kinds_of_rounding: tuple[Any, ...] = ("nearest", *ROUNDINGS)
        for rounding in kinds_of_rounding:
            tx = adafactor(recipe=GENERAL, rounding=rounding)
            moved.append(step_of(tx)(params, tx.init(params), grads))
        assert_equal(moved[0], moved[1])
        assert_equal(moved[0], moved[2])
