"""What `adafactor_jax` refuses, and that the message says which argument, what it must be, what it was, the remedy."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import adafactor_jax
from adafactor_jax import adafactor
from adafactor_spec import FIELDS, REMEDIES, Recipe, factoring, recipes, schedules
from parity_tests.jax_steps import Tree, tree

NAN, INF = float("nan"), float("inf")


def refused(call: Callable[[], object], begins: str, error: type[Exception] = ValueError) -> None:
    """The call fails, and its message begins so and ends as a sentence."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(begins)
    assert re.search(r"[.?]$", str(caught.value))


def brief(value: object) -> str:
    """A name for a case: without the addresses of functions, which differ between the processes of a test run."""
    return re.sub(r" at 0x\w+", "", str(value))[:60]


# --- When the optimizer is built ------------------------------------------------------------------------------------

RANGES: dict[str, tuple[str, list[Any]]] = {
    "learning_rate": ("at least 0", [-1.0, NAN, INF]),
    "eps2": ("at least 0", [-1e-3, NAN, INF]),
    "max_parameter_scale": ("positive", [0.0, -1.0, NAN]),
    "beta2": ("in [0, 1)", [1.0, -0.1, NAN]),
    "eps1": ("at least 1e-37", [0.0, -1e-30, NAN]),
    "clipping_threshold": ("positive", [0.0, -1.0, NAN]),
    "beta1": ("in [0, 1)", [1.0, -0.1, NAN]),
    "weight_decay": ("at least 0", [-0.1, NAN, INF]),
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name, (_, bad) in RANGES.items() for value in bad])
def test_numbers_out_of_range(argument: str, value: float) -> None:
    arguments: dict[str, Any] = {argument: value}
    refused(lambda: adafactor(**arguments), f"{argument} must be {RANGES[argument][0]}, got {value!r}.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": "1e-2"}, "learning_rate must be a number, a schedule or a function of t, got '1e-2'."),
        ({"learning_rate": schedules.inverse_sqrt}, "learning_rate must be a number or a schedule, got <class"),
        ({"eps2": None}, "eps2 must be a number, got None."),
        ({"eps1_mode": "floors"}, "eps1_mode must be one of 'add', 'floor', got 'floors'. Did you mean 'floor'?"),
        ({"momentum_of": "gradient"}, "momentum_of must be one of 'grad', 'update', 'step', got 'gradient'."),
        ({"momentum_rounding": "round"}, "momentum_rounding must be one of 'store', 'use', 'decay', got 'round'."),
        ({"momentum_dtype": "int8"}, "momentum_dtype must be one of float64, float32, bfloat16, float16, got 'int8'."),
        ({"weight_decay_by": "alpha"}, "weight_decay_by must be one of 'step', 'lr', 'one', 'grad', got 'alpha'."),
        ({"state_dtype": "float32"}, "state_dtype must be one of None, 'param', got 'float32'."),
        ({"relative_step": 1}, "relative_step must be True or False, got 1."),
        ({"amsgrad": "yes"}, "amsgrad must be True or False, got 'yes'."),
        ({"factoring": "last_two"}, "factoring must be a factoring rule, got 'last_two'. Use factoring.last_two"),
        ({"factoring": factoring.largest_two}, "factoring must be a factoring rule, got <class"),
        # Fields that contradict each other.
        (
            {"weight_decay": 0.1, "decay_before_scale": True},
            "weight_decay_by must be 'lr', 'one' or a number with decay_before_scale=True, got 'step'. The decay ",
        ),
        ({"max_parameter_scale": 1e-4}, "max_parameter_scale must be at least eps2 = 0.001, got 0.0001."),
        ({"recipe": Recipe(max_parameter_scale=1.0), "eps2": 2.0}, "max_parameter_scale must be at least eps2 = 2.0"),
        # Recipes.
        ({"recipe": "papr"}, "recipe must be a Recipe or one of paper, "),
        ({"recipe": None}, "recipe must be a Recipe or one of paper, "),
        ({"recipe": {}}, "recipe must be a Recipe or one of paper, "),
        ({"recipe": recipes.torch}, "recipe must be a Recipe or one of paper, "),
    ],
    ids=brief,
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    refused(lambda: adafactor(**arguments), message)


@pytest.mark.parametrize(
    ("name", "nearest"), [("papr", "paper"), ("Torch", "torch"), ("adafactor_torch", "adafactor_pytorch")]
)
def test_an_unknown_recipe_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}'\. Did you mean '{nearest}'\?$"):
        adafactor(recipe=name)


@pytest.mark.parametrize(
    ("keyword", "remedy"),
    [
        ("betas", "Use beta1 and beta2."),
        ("lr", "Use learning_rate."),
        ("eps", "Use eps1 "),
        ("clip_threshold", "Use clipping_threshold."),
        ("clipping_treshold", "Did you mean 'clipping_threshold'?"),
        ("weight_decay_rate", "Use weight_decay, "),
        ("scale_parameter", "Use multiply_by_parameter_scale."),
        ("xyzzy", "Known: learning_rate, recipe, "),
    ],
)
def test_unknown_keywords(keyword: str, remedy: str) -> None:
    arguments: dict[str, Any] = {keyword: 0.5}
    refused(lambda: adafactor(1e-2, **arguments), f"adafactor() has no argument '{keyword}'. {remedy}", TypeError)


@pytest.mark.parametrize(
    "keyword", [name for name, remedy in REMEDIES.items() if remedy.startswith("Use") and name != "learning_rate"]
)
def test_a_remedy_works(keyword: str) -> None:
    """What the message tells to write is an argument that there is."""
    arguments: dict[str, Any] = {keyword: 0.5}
    with pytest.raises(TypeError) as caught:
        adafactor(**arguments)
    known = inspect.signature(adafactor).parameters
    advised = re.search(r"Use (\w+)", str(caught.value))
    assert advised
    assert advised[1] in known


def test_the_signature_has_every_field() -> None:
    known = dict(inspect.signature(adafactor).parameters)
    options = ["learning_rate", "recipe", "weight_decay_mask", "rounding", "seed", "telemetry", "mesh", "specs"]
    assert list(known) == [*options, *(name for name in FIELDS if name != "lr")]


# A piece is public, so what it is given has been checked by nobody else.
BAD_PIECES: list[tuple[str, dict[str, Any], str]] = [
    ("scale_by_factored_rms", {"beta2": 1.0}, "beta2 must be in [0, 1), got 1.0."),
    ("scale_by_factored_rms", {"eps1": NAN}, "eps1 must be at least 1e-37, got nan."),
    ("scale_by_factored_rms", {"eps1_mode": "added"}, "eps1_mode must be one of 'add', 'floor', got 'added'."),
    ("scale_by_factored_rms", {"factoring": "last_two"}, "factoring must be a factoring rule, got 'last_two'."),
    ("scale_by_factored_rms", {"state_dtype": "float32"}, "state_dtype must be one of None, 'param', got 'float32'."),
    ("clip_by_block_rms", {"threshold": -1.0}, "threshold must be positive, got -1.0."),
    ("clip_by_block_rms", {"threshold": NAN}, "threshold must be positive, got nan."),
    ("clip_by_block_rms", {"factoring": "last_two"}, "factoring must be a factoring rule, got 'last_two'."),
    ("scale_by_step_size", {"learning_rate": NAN}, "learning_rate must be a finite number, got nan."),
    ("scale_by_step_size", {"learning_rate": -1.0, "relative_step": True}, "learning_rate must be at least 0, got -1."),
    ("scale_by_step_size", {"relative_step": "2.0"}, "relative_step must be True or False, got '2.0'."),
    ("scale_by_parameter_scale", {"step": NAN}, "step must be a finite number, got nan."),
    ("scale_by_parameter_scale", {"eps2": -1.0}, "eps2 must be at least 0, got -1.0."),
    ("scale_by_parameter_scale", {"max_parameter_scale": 0.0}, "max_parameter_scale must be positive, got 0.0."),
    ("scale_by_parameter_scale", {"factoring": "last_two"}, "factoring must be a factoring rule, got 'last_two'."),
    ("scale_by_parameter_scale", {"decay": -0.1}, "decay must be at least 0, got -0.1."),
    ("momentum", {"beta1": 1.5}, "beta1 must be in [0, 1), got 1.5."),
    ("momentum", {"momentum_rounding": "round"}, "momentum_rounding must be one of 'store', 'use', 'decay', got 'rou"),
    ("momentum", {"momentum_dtype": "int8"}, "momentum_dtype must be one of float64, float32, bfloat16, float16, got"),
    ("add_decayed_weights", {"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1."),
    ("add_decayed_weights", {"weight_decay": 0.1, "eps2": NAN}, "eps2 must be at least 0, got nan."),
]


@pytest.mark.parametrize(("piece", "arguments", "message"), BAD_PIECES, ids=brief)
def test_bad_values_of_a_piece(piece: str, arguments: dict[str, Any], message: str) -> None:
    refused(lambda: getattr(adafactor_jax, piece)(**arguments), message)


# --- When it meets the parameters, and in a step --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64", "float8_e4m3fn"])
def test_parameters_that_are_not_real_numbers(dtype: str) -> None:
    params = tree(0)
    params["layer"]["kernel"] = jnp.zeros((4, 6), dtype)
    message = (
        "dtype of parameter 'layer/kernel' must be one of float64, float32, bfloat16, float16, "
        f"got '{dtype}'. Give such a parameter to optax.masked or optax.partition."
    )
    refused(lambda: adafactor().init(params), message)
    real = tree(0)
    refused(lambda: adafactor().update(real, adafactor().init(real), params), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "parameter 'w' must be an array, got 'str'."),
        (object(), "parameter 'w' must be an array, got 'object'."),
        (np.array("floor"), "dtype of parameter 'w' must be one of float64, float32, bfloat16, float16, got '<U5'."),
    ],
    ids=brief,
)
def test_what_is_no_parameter(value: Any, message: str) -> None:
    refused(lambda: adafactor().init({"w": value}), message)


@pytest.mark.parametrize("dtype", ["object", "U3", "M8[s]"])
def test_an_array_of_no_numbers_is_no_gradient(dtype: str) -> None:
    params = {"w": jnp.ones(3)}
    grads = {"w": np.zeros(3, dtype)}
    message = "gradient of 'w' must be an array of numbers, got "
    refused(lambda: adafactor().update(grads, adafactor().init(params), params), message)


def failing(params: Any) -> Any:
    raise KeyError("no such parameter")


@pytest.mark.parametrize("mask", [lambda params: (params, params), failing, float], ids=["pair", "failing", "class"])
def test_a_mask_of_another_structure(mask: Any) -> None:
    params = {"w": jnp.ones(3)}
    message = "weight_decay_mask must be a tree of bools like the parameters, a prefix of one, or a function that"
    tx = adafactor(weight_decay=0.1, weight_decay_mask=mask)
    refused(lambda: tx.update(params, tx.init(params), params), message)


def test_shardings_of_no_transformation() -> None:
    refused(
        lambda: adafactor_jax.state_shardings(object(), {"w": jnp.ones(2)}),
        "tx must be an optax transformation, got <object object at",
        TypeError,
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            factoring.explicit((0,), (1,)),
            "axis of the rule for parameter 'layer/bias' with shape (6,) must be in [-1, 1)",
        ),
        (factoring.explicit((0,), (-1,)), "axes of the rule for parameter 'layer/bias' with shape (6,) must be differ"),
        (
            factoring.by_name({"scale": factoring.explicit((), (), batch=(0,))}),
            "axis of the rule for parameter 'scale' with shape () must be in [0, 0), got 0. Give it a rule of its own",
        ),
    ],
    ids=brief,
)
def test_a_rule_of_the_wrong_rank(rule: factoring.Rule, message: str) -> None:
    refused(lambda: adafactor(factoring=rule).init(tree(0)), message)


def step_with(change: Callable[[Tree], Tree], compiled: bool) -> Callable[[], object]:
    """A step whose gradients were changed."""
    tx, params = adafactor(), tree(0)
    update = jax.jit(tx.update) if compiled else tx.update
    return lambda: update(change(tree(1)), tx.init(params), params)


def of_the_kernel(change: Callable[[jax.Array], Any]) -> Callable[[Tree], Tree]:
    return lambda grads: {**grads, "layer": {**grads["layer"], "kernel": change(grads["layer"]["kernel"])}}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.T, "shape of the gradient of 'layer/kernel' must be (4, 6), got (6, 4)."),
        (lambda g: g[:1], "shape of the gradient of 'layer/kernel' must be (4, 6), got (1, 6)."),
        (lambda g: g[0, 0], "shape of the gradient of 'layer/kernel' must be (4, 6), got ()."),
        (lambda g: g + 1j, "gradient of 'layer/kernel' must be real, got 'complex64'."),
        (sparse.BCOO.fromdense, "gradient of 'layer/kernel' must be "),
    ],
    ids=["transposed", "one row", "one element", "complex", "sparse"],
)
def test_gradients_of_another_kind(change: Callable[[jax.Array], Any], message: str, compiled: bool) -> None:
    refused(step_with(of_the_kernel(change), compiled), message)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gradient_too_few(compiled: bool) -> None:
    with pytest.raises(ValueError, match=r"(?s)bias.*kernel"):  # JAX's own message
        step_with(lambda grads: {**grads, "layer": {"bias": grads["layer"]["bias"]}}, compiled)()


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), tx)], ids=["alone", "chained"])
def test_an_update_without_parameters(wrap: Callable[[Any], optax.GradientTransformation]) -> None:
    tx = wrap(adafactor())
    message = "params must be given to update, got None. Call tx.update(grads, state, params)."
    refused(lambda: tx.update(tree(1), tx.init(tree(0))), message)
    refused(lambda: jax.jit(tx.update)(tree(1), tx.init(tree(0))), message)
