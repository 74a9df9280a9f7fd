"""A state is stepped with the options that it was made with, and an update can be differentiated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor, momentum
from adafactor_spec import factoring

PARAMS = {"b": jnp.zeros(3, "bfloat16"), "w": jnp.ones((2, 3), "bfloat16")}
STATES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "telemetry is missing": ({}, {"telemetry": True}, r"telemetry must be as it was when the state was made, got True"),
    "telemetry is left over": ({"telemetry": True}, {}, r"telemetry must be .*, got False\. .*tx\.init\(params\)"),
    "nothing is kept": (
        {},
        {"rounding": "kahan"},
        r"rounding must be the one that the state was made with, got .kahan",
    ),
    "something is kept": ({"rounding": "kahan"}, {"rounding": "stochastic"}, r"got 'stochastic'\. Or put zeros"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_other_options_is_refused(name: str) -> None:
    made_with, stepped_with, message = STATES[name]
    state = adafactor(**made_with).init(PARAMS)
    with pytest.raises(ValueError, match=message):
        adafactor(**stepped_with).update(PARAMS, state, PARAMS)


OTHERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"state must be AdafactorState, as tx.init\(params\) makes it, got 'NoneType'"),
    "its parts without its class": (tuple(adafactor().init(PARAMS)), "state must be AdafactorState, .*, got 'tuple'"),
    "optax's": (optax.adam(1.0).init(PARAMS), "state must be AdafactorState, "),
    "a piece's": (momentum(0.9).init(PARAMS), "state must be AdafactorState, .*, got 'CountedState'"),
    "a momentum left over": (adafactor(beta1=0.9).init(PARAMS), r"m\['b'\] must be nothing, got 'float32\[3\]'"),
    "another rule": (
        adafactor(factoring=factoring.no_factoring).init(PARAMS),
        r"state.inner\[0\].v_row\['w'\] must be float32\[2, 1\], got 'nothing'",
    ),
    "transposed": (
        adafactor().init({"b": jnp.zeros(3, "bfloat16"), "w": jnp.ones((3, 2), "bfloat16")}),
        r"state.inner\[0\].v_row\['w'\] must be float32\[2, 1\], got 'float32\[3, 1\]'",
    ),
    "a parameter too few": (adafactor().init({"w": PARAMS["w"]}), r"v\['b'\] must be float32\[3\], got 'nothing'"),
    "a parameter too many": (adafactor().init({**PARAMS, "x": PARAMS["b"]}), r"v\['x'\] must be nothing, got"),
    "another dtype": (adafactor(state_dtype="param").init(PARAMS), r"must be float32\[2, 1\], got 'bfloat16\[2, 1\]'"),
    "a count that is a fraction": (
        adafactor().init(PARAMS)._replace(count=jnp.zeros(())),
        r"state.count must be int32\[\], got 'float32\[\]'",
    ),
    "a count for each of several": (
        adafactor().init(PARAMS)._replace(count=jnp.zeros(2, jnp.int32)),
        r"state.count must be int32\[\], got 'int32\[2\]'",
    ),
    "text": (adafactor().init(PARAMS)._replace(count="3"), r"state.count must be int32\[\], got 'str'"),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_kind_is_refused_by_the_first_place_that_differs(name: str, compiled: bool) -> None:
    """What is missing would be missing, and what has another shape would be broadcast, without a word."""
    state, message = OTHERS[name]
    update = jax.jit(adafactor().update) if compiled and name != "text" else adafactor().update
    with pytest.raises(ValueError, match=rf"(?s)^{message if message.startswith('state') else 'state.*' + message}"):
        update(PARAMS, state, PARAMS)


def test_a_state_of_another_piece_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^state.inner.m\['b'\] must be bfloat16\[3\], got 'float32"):
        momentum(0.9, state_dtype="param").update(PARAMS, momentum(0.9).init(PARAMS), PARAMS)


@pytest.mark.parametrize("count", [2, np.int64(2), np.array(2, np.int32)], ids=type)
def test_a_restored_state_may_be_of_numpy(count: Any) -> None:
    tx = adafactor(1e-2)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    expected, _ = tx.update(PARAMS, state, PARAMS)
    restored = jax.tree.map(np.asarray, state)._replace(count=count)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, tx.update(PARAMS, restored, PARAMS)[0], expected))


@pytest.mark.parametrize("by", ["gradients", "parameters"])
def test_an_update_can_be_differentiated_where_an_rms_is_0(by: str) -> None:
    """A bias that begins at 0 and has no gradient yet; the derivative of a root alone is infinite there."""
    tx = adafactor(1e-2)
    ones = {"b": jnp.zeros(3), "w": jnp.ones((2, 3))}

    def moved(values: Any) -> jax.Array:
        grads, params = (values, ones) if by == "gradients" else (ones, values)
        updates, _ = tx.update(grads, tx.init(params), params)
        return jnp.sum(updates["b"] * jnp.arange(3)) + jnp.sum(updates["w"] * jnp.arange(6).reshape(2, 3))

    slopes = jax.jit(jax.grad(moved))(ones)  # compiled: one program in place of hundreds of operators
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in jax.tree.leaves(slopes))
