"""What stands in place of a number: what the host can know is checked, and a tracer is left alone."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adafactor_jax
from adafactor_jax import adafactor
from adafactor_spec import FIELDS, Recipe, recipes, schedules

from .jax_steps import tree
from .odd_values import FRACTIONS, NO_FIELD, NO_NUMBER, WHOLE, in_form

NUMBERS = (
    *("learning_rate", "eps2", "max_parameter_scale", "beta2", "eps1"),
    *("clipping_threshold", "beta1", "weight_decay", "weight_decay_by"),
)
DELETED = jnp.asarray(0.25) + 0
DELETED.delete()
ARRAYS: dict[str, Any] = {
    "below 0": jnp.float32(-1.0),
    "NaN": jnp.float32(math.nan),
    "an axis": jnp.ones(1),
    "flag": jnp.asarray(True),
    "complex": jnp.asarray(1j),
    "key": jax.random.key(0),
    "deleted": DELETED,
}
ODD = NO_NUMBER | NO_FIELD | ARRAYS
ODD |= {f"fraction {key}": value for key, (value, _) in FRACTIONS.items()}
ODD |= {f"whole {key}": value for key, (value, _) in WHOLE.items()}
ODD |= {"2^31": 2**31, "2^63": 2**63, "1e300": 1e300, "infinity": math.inf, "None": None, "-1": -1}
ODD |= {"array": jnp.float32(0.25), "whole array": jnp.asarray(3), "16 bits": jnp.asarray(0.25, "bfloat16")}


def program_of(tx: optax.GradientTransformation) -> str:
    """What a step computes, as text, constants included."""
    params = tree(0)
    return str(jax.make_jaxpr(tx.update)(tree(1), tx.init(params), params))


@pytest.mark.parametrize("field", NUMBERS)
def test_an_array_is_checked(field: str) -> None:
    for name, value in ARRAYS.items():
        arguments: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=rf"^{field} must be ") as caught:
            adafactor(**arguments)
        assert in_form(caught.value), name


@pytest.mark.parametrize("field", ["learning_rate", "eps2", "clipping_threshold", "beta2", "weight_decay"])
def test_an_array_is_its_number(field: str) -> None:
    expected: dict[str, Any] = {field: 0.25}
    for value in (np.array(0.25), np.float16(0.25), jnp.float32(0.25), jnp.asarray(0.25, "bfloat16")):
        arguments: dict[str, Any] = {field: value}
        assert program_of(adafactor(**arguments)) == program_of(adafactor(**expected))
    assert program_of(adafactor(**expected)) != program_of(adafactor())


PIECES: dict[str, dict[str, Any]] = {
    "scale_by_factored_rms": {},
    "clip_by_block_rms": {},
    "scale_by_step_size": {},
    "scale_by_parameter_scale": {},
    "momentum": {},
    "add_decayed_weights": {"weight_decay": 0.1},
    "adafactor": {},
}


def test_every_piece_is_in_the_table() -> None:
    assert {name for name in adafactor_jax.__all__ if not name.endswith("State")} == {
        *PIECES,
        "Telemetry",
        "state_shardings",
    }


@pytest.mark.parametrize("piece", PIECES)
def test_every_value_is_taken_or_refused_in_form(piece: str) -> None:
    make = getattr(adafactor_jax, piece)
    for argument in inspect.signature(make).parameters.keys() - {"mask", "weight_decay_mask"}:
        for name, value in ODD.items():
            try:
                make(**{**PIECES[piece], argument: value})
            except ValueError as error:
                if not in_form(error):
                    raise AssertionError(f"{argument}, {name}: {error}") from error


def test_flags_and_words_of_numpys() -> None:
    odd: dict[str, Any] = {"amsgrad": np.True_, "eps1_mode": np.str_("floor"), "state_dtype": np.str_("param")}
    more: dict[str, Any] = {"beta1": 0.5, "debias": np.True_, "rounding": np.str_("kahan"), "telemetry": np.True_}
    made = adafactor(**odd, **more)
    assert program_of(made) == program_of(
        adafactor(
            amsgrad=True,
            eps1_mode="floor",
            state_dtype="param",
            beta1=0.5,
            debias=True,
            rounding="kahan",
            telemetry=True,
        )
    )
    factored = adafactor_jax.scale_by_factored_rms
    plain = factored(amsgrad=True, eps1_mode="floor", state_dtype="param")
    assert program_of(factored(**odd)) == program_of(plain)


# --- inject_hyperparams: arrays when it is built and op by op, tracers in a compiled step ----------------------------

INJECTED: dict[str, dict[str, Any]] = {
    "no decay": {"weight_decay": 0.0},
    "no L2": {"weight_decay": 0.0, "weight_decay_by": "grad"},
    "decay by the learning rate": {"learning_rate": 0.25, "weight_decay": 0.25, "weight_decay_by": 1.0},
    "decay by itself": {"weight_decay": 0.25, "weight_decay_by": 0.0},
    "no clipping": {"clipping_threshold": math.inf},
    "no average": {"beta1": 0.0},
    "no step": {"learning_rate": 0.0},
    "the smallest eps1": {"eps1": 1e-37},
    "NumPy's": {"learning_rate": np.array(0.25), "weight_decay": np.array(0.0)},
    "JAX's": {"learning_rate": jnp.float32(0.25), "eps2": jnp.float32(0.5)},
    "a seed": {"seed": 5, "rounding": "stochastic"},
    "a schedule": {"learning_rate": optax.linear_schedule(0.25, 0.5, 4)},
}


@pytest.mark.parametrize("name", INJECTED)
def test_what_a_step_consists_of_does_not_depend_on_a_value(name: str) -> None:
    """The state that is made of a number is the one that a traced step wants and gives."""
    params, grads = tree(0), tree(1)
    tx = optax.inject_hyperparams(adafactor)(**INJECTED[name])
    state = tx.init(params)
    expected: Any = jax.tree.structure(state)
    assert jax.tree.structure(jax.eval_shape(tx.init, params)) == expected
    assert jax.tree.structure(jax.eval_shape(tx.update, grads, state, params)[1]) == expected


@pytest.mark.parametrize("name", ["no decay", "decay by the learning rate", "NumPy's"])
def test_op_by_op_a_step_computes_what_a_compiled_one_does(name: str) -> None:
    params, grads = {"w": tree(0)["layer"]["kernel"]}, {"w": tree(1)["layer"]["kernel"]}
    tx = optax.inject_hyperparams(adafactor)(**INJECTED[name])
    (one,), (other,) = (
        jax.tree.leaves(update(grads, tx.init(params), params)[0]) for update in (tx.update, jax.jit(tx.update))
    )
    # XLA fuses operations in one and not in the other: an ulp or two of the largest element.
    np.testing.assert_allclose(one, other, rtol=0, atol=4 * 2.0**-24 * np.max(np.abs(one)))


@pytest.mark.parametrize("field", ["learning_rate", "eps2", "eps1", "clipping_threshold", "weight_decay"])
def test_an_injected_number_is_checked_where_it_is_known(field: str) -> None:
    params, grads = tree(0), tree(1)
    bad: dict[str, Any] = {field: -1.0}
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got Array\(-1"):
        optax.inject_hyperparams(adafactor)(**bad).init(params)
    good: dict[str, Any] = {field: 0.5}
    tx = optax.inject_hyperparams(adafactor)(**good)
    state = tx.init(params)
    state.hyperparams[field] = jnp.asarray(-1.0)
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got Array\(-1"):
        tx.update(grads, state, params)
    jax.eval_shape(tx.update, grads, state, params)  # in a trace, where to know it would be to wait for the device


def test_what_float32_makes_of_a_number_is_checked() -> None:
    """beta2 = 1 - 1e-9 is 1 in float32, where the second moment would stay 0."""
    with pytest.raises(ValueError, match=r"^beta2 must be in \[0, 1\), got Array\(1\."):
        optax.inject_hyperparams(adafactor)(beta2=1 - 1e-9).init(tree(0))


def test_a_seed_is_a_whole_number_in_a_trace_too() -> None:
    with pytest.raises(
        ValueError, match=r"^seed must be a whole number, in an array of integers, got Array\(1\."
    ) as caught:
        optax.inject_hyperparams(adafactor)(seed=1.0).init(tree(0))
    assert in_form(caught.value)

    def build(seed: Any) -> Any:
        adafactor(seed=seed)
        return seed

    jax.eval_shape(build, 3)
    with pytest.raises(ValueError, match=r"^seed must be a whole number, in an array of integers, got ") as caught:
        jax.eval_shape(build, 3.0)
    assert in_form(caught.value)


def test_a_tracer_is_left_alone() -> None:
    """Also where it has a value that could be read: the step would then have no derivative by it."""

    def moved(rate: Any) -> Any:
        tx = adafactor(rate, relative_step=False, eps2=rate, clipping_threshold=1.0 + rate, weight_decay=rate)
        params = {"w": jnp.ones((4, 3))}
        updates, _ = tx.update({"w": jnp.full((4, 3), 0.5)}, tx.init(params), params)
        return jnp.sum(updates["w"])

    jax.eval_shape(moved, 0.25)
    jax.eval_shape(jax.vmap(moved), jnp.ones(2))
    assert float(jax.grad(moved)(0.25)) < -1.0


def test_what_a_trace_must_know_is_refused_in_form() -> None:
    def in_a_trace(make: Callable[[Any], Any]) -> None:
        with pytest.raises(ValueError, match=r"must be a number that is known before a step is traced, got ") as caught:
            jax.eval_shape(lambda x: (make(x), x)[1], 3)
        assert in_form(caught.value)

    in_a_trace(lambda x: recipes.optax(min_dim_size_to_factor=x))
    in_a_trace(lambda x: schedules.piecewise_constant(0.1, [x], 0.5))
    in_a_trace(lambda x: schedules.linear_warmup(0.1, x))
    in_a_trace(lambda x: schedules.power_decay(offset=x))
    in_a_trace(lambda x: schedules.adam_decay(x / 4))
    in_a_trace(lambda x: schedules.inverse_sqrt(x))


def test_a_recipe_of_traced_numbers() -> None:
    """Arguments of a recipe, too, may be hyperparameters, where they decide nothing but values."""

    def build(x: Any) -> Any:
        made = [
            recipes.optax(x, clipping_threshold=x, momentum=x / 2, weight_decay_rate=x, eps=x),
            recipes.big_vision(lr=x, wd=x, momentum=x / 2, clipping_threshold=x, wd_mults={"a": x}, schedule=x),
            recipes.t5x(x, weight_decay_rate=x, weight_decay_rate_lr_exponent=x),
            recipes.torch(x, eps=(x, x), weight_decay=x),
            recipes.algoperf(x, weight_decay=x),
            recipes.mesh_tensorflow(learning_rate=x, beta1=x / 2, decay_rate=x / 2),
            recipes.timm(x, weight_decay=x),
        ]
        assert all(isinstance(recipe, Recipe) for recipe in made)
        return x

    jax.eval_shape(build, 0.5)


def test_the_numbers_are_those_of_the_fields() -> None:
    assert {"lr" if name == "learning_rate" else name for name in NUMBERS} <= set(FIELDS)
