"""A state is stepped with the options that it was made with, and an update can be differentiated."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from adafactor_jax import adafactor

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


@pytest.mark.parametrize("by", ["gradients", "parameters"])
def test_an_update_can_be_differentiated_where_an_rms_is_0(by: str) -> None:
    """A bias that begins at 0 and has no gradient yet; the derivative of a root alone is infinite there."""
    tx = adafactor(1e-2)
    ones = {"b": jnp.zeros(3), "w": jnp.ones((2, 3))}

    def moved(values: Any) -> jax.Array:
        grads, params = (values, ones) if by == "gradients" else (ones, values)
        updates, _ = tx.update(grads, tx.init(params), params)
        return jnp.sum(updates["b"] * jnp.arange(3)) + jnp.sum(updates["w"] * jnp.arange(6).reshape(2, 3))

    slopes = jax.grad(moved)(ones)
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in jax.tree.leaves(slopes))
