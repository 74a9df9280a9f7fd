"""`telemetry=True`: leaves of the JAX optimizer's state say of a step what the oracle and torch say of it, by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from adafactor_jax import adafactor
from adafactor_spec import oracle
from adafactor_torch import Adafactor

from .jax_steps import Tree, assert_equal, compilations, kind, kinds, run, step_of
from .test_oracle import G, P
from .test_torch_telemetry import NUMBERS, RECIPES, RULE, SHAPES, TOLD, expected
from .torch_runs import advance, gradient, values

INDEX = {name: index for index, name in enumerate(SHAPES)}
# One value for each index of the batch axes, which RULE gives the last two.
TOLD_SHAPES: dict[str, tuple[int, ...]] = {"matrix": (), "stack": (3,), "vectors": (2,), "scalar": ()}


def parameters(dtype: str = "float32") -> Tree:
    return {name: jnp.asarray(values(shape, INDEX[name]), dtype) for name, shape in SHAPES.items()}


def gradients(t: int, dtype: str = "float32") -> Tree:
    return {name: jnp.asarray(gradient(t, INDEX[name], shape), dtype) for name, shape in SHAPES.items()}


def told(state: Tree) -> dict[str, Tree]:
    return {number: optax.tree_utils.tree_get(state, number) for number in NUMBERS}


@pytest.mark.parametrize("case", ["paper", "decay before scale", "no scale, no clipping", "L2"])
def test_it_is_what_the_oracle_and_torch_say(case: str) -> None:
    with jax.enable_x64(True):
        recipe, tx = RECIPES[case], adafactor(recipe=RECIPES[case], telemetry=True)
        params, step = parameters("float64"), step_of(tx)
        state = tx.init(params)
        named = {name: torch.nn.Parameter(torch.tensor(values(shape, INDEX[name]))) for name, shape in SHAPES.items()}
        optimizer = Adafactor(named.items(), recipe=recipe, telemetry=True, foreach=False)
        weights = {name: values(shape, INDEX[name]) for name, shape in SHAPES.items()}
        states = {name: oracle.init(recipe, p, name=name) for name, p in weights.items()}
        for t in (1, 2, 3):
            params, state = step(params, state, gradients(t, "float64"))
            advance(optimizer, t, t)
            for name, p in weights.items():
                g = gradient(t, INDEX[name], SHAPES[name])
                for number, value in expected(recipe, name, p, g, states[name]).items():
                    found, in_torch = told(state)[number][name], optimizer.telemetry()[name][number].double().numpy()
                    assert kind(found) == (TOLD_SHAPES[name], "float32", False)
                    np.testing.assert_allclose(np.asarray(found, np.float64), value, rtol=TOLD, atol=0.0)
                    np.testing.assert_allclose(np.asarray(found, np.float64), in_torch, rtol=TOLD, atol=0.0)
                weights[name], states[name] = oracle.step(recipe, p, g, states[name], name=name)


@pytest.mark.parametrize(("threshold", "factor"), [(1.0, 1.0), (0.5, 2 * 0.96**0.5), (None, 1.0)])
def test_a_first_step_by_hand(threshold: float | None, factor: float) -> None:
    """Of the matrix in test_oracle.py: alpha = 1e-2 * RMS(p) = 0.02, and the mean of u^2 is 0.96."""
    tx = adafactor(telemetry=True, clipping_threshold=threshold)
    params = jnp.asarray(P, "float32")
    _, state = run(tx, step_of(tx), params, [jnp.asarray(G, "float32")])
    # A float32 chain of a dozen roundings and four roots, each half of what is rounded before it.
    found = [float(x) for x in told(state).values()]
    assert found == pytest.approx([0.02, 0.96**0.5, factor, 2.0], rel=16 * 2.0**-24)


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    state = optax.chain(optax.clip_by_global_norm(1.0), adafactor(factoring=RULE, telemetry=True)).init(parameters())
    telemetry = optax.tree_utils.tree_get(state, "telemetry")
    assert telemetry._fields == NUMBERS
    for number, numbers in told(state).items():
        assert numbers is getattr(telemetry, number)
        assert {name: kind(x) for name, x in numbers.items()} == {
            name: (shape, "float32", False) for name, shape in TOLD_SHAPES.items()
        }
        assert not any(np.any(x) for x in numbers.values())


def test_only_who_asks_is_told() -> None:
    state = adafactor().init(parameters())
    assert state.telemetry is None
    assert all(numbers is None for numbers in told(state).values())


def test_a_parameter_without_a_gradient_tells_of_the_step_before() -> None:
    tx = adafactor(factoring=RULE, telemetry=True)
    params, state = run(tx, step_of(tx), parameters(), [gradients(1)])
    update = jax.jit(tx.update)
    _, later = update(gradients(2) | {"stack": None}, state, params)
    for number in NUMBERS:
        before, after = told(state)[number], told(later)[number]
        assert_equal(after["stack"], before["stack"])
        assert np.any(after["vectors"] != before["vectors"]) or number in ("parameter_rms", "clip_factor")
    _, never = update(gradients(1) | {"stack": None}, tx.init(params), params)
    assert not any(np.any(told(never)[number]["stack"]) for number in NUMBERS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_once_with_buffers_of_its_own(dtype: str) -> None:
    tx = adafactor(factoring=RULE, telemetry=True)
    # A step does not read what it told of the one before, and jit leaves out what nobody reads, unless told to keep it.
    step, params = step_of(tx, donate_argnums=(0, 1), keep_unused=True), parameters(dtype)
    state = tx.init(params)
    types = kinds((params, state))
    with compilations() as seen:
        for t in (1, 2, 3):
            leaves = jax.tree.leaves((params, state))
            addresses = [leaf.unsafe_buffer_pointer() for leaf in leaves]
            assert len(set(addresses)) == len(addresses)
            params, state = step(params, state, gradients(t, dtype))
            assert all(leaf.is_deleted() for leaf in leaves)
    assert len([line for line in seen if "step" in line]) == 1
    assert kinds((params, state)) == types
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(told(state)))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("case", "dtype"),
    [("paper", "float32"), ("paper", "bfloat16"), ("no scale, no clipping", "float32"), ("momentum", "float32")],
)
def test_asking_changes_nothing_of_the_step(case: str, dtype: str) -> None:
    runs = []
    for asked in (True, False):
        tx = adafactor(recipe=RECIPES[case], telemetry=asked)
        params, state = run(tx, step_of(tx), parameters(dtype), [gradients(t, dtype) for t in (1, 2)])
        runs.append((params, optax.tree_utils.tree_get(state, "v_row"), optax.tree_utils.tree_get(state, "v")))
    assert_equal(*runs)


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_a_bad_value_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"telemetry must be True or False, got {value!r}"):
        adafactor(telemetry=value)
