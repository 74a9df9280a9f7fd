"""Recipes: fields that are refused, and the originals' own vocabularies."""

import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from adafactor_spec import Recipe, dtypes, factoring, recipes, replace, schedules

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -1.0}, r"lr must be at least 0, got -1.0"),
        ({"lr": NAN}, r"lr must be at least 0, got nan"),
        ({"lr": float("inf")}, r"lr must be at least 0, got inf"),
        ({"lr": "1e-3"}, r"lr must be a number, a schedule or a function of t, got '1e-3'"),
        ({"lr": True}, r"lr must be a number, a schedule or a function of t, got True"),
        ({"relative_step": 1}, r"relative_step must be True or False, got 1"),
        ({"eps2": -1e-3}, r"eps2 must be at least 0, got -0.001"),
        ({"max_parameter_scale": 0.0}, r"max_parameter_scale must be positive, got 0.0"),
        ({"max_parameter_scale": 1e-4}, r"max_parameter_scale must be at least eps2 = 0.001, got 0.0001"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"beta2": schedules.power_decay}, r"beta2 must be a number or a schedule, got .*Call it: power_decay"),
        ({"factoring": "last_two"}, r"factoring must be a factoring rule, got 'last_two'"),
        ({"eps1": 0.0}, r"eps1 must be at least 1e-37, got 0.0. Use a tiny number such as 1e-30"),
        ({"eps1_mode": "offset"}, r"eps1_mode must be one of 'add', 'floor', got 'offset'"),
        ({"clipping_threshold": 0.0}, r"clipping_threshold must be positive, got 0.0. None switches clipping off"),
        ({"beta1": 1.5}, r"beta1 must be in \[0, 1\), got 1.5"),
        ({"momentum_of": "gradient"}, r"momentum_of must be one of .*, got 'gradient'. Did you mean 'grad'"),
        ({"momentum_dtype": "int8"}, r"momentum_dtype must be one of float64, float32, bfloat16, float16, got 'int8'"),
        ({"momentum_rounding": "never"}, r"momentum_rounding must be one of"),
        ({"weight_decay": -0.1}, r"weight_decay must be at least 0, got -0.1"),
        ({"weight_decay_by": "alpha"}, r"weight_decay_by must be one of 'step', 'lr', 'one', 'grad', got 'alpha'"),
        ({"decay_before_scale": True}, r"weight_decay_by must be 'lr', 'one' or a number with decay_before_scale=True"),
        ({"state_dtype": "bfloat16"}, r"state_dtype must be one of None, 'param', got 'bfloat16'"),
    ],
)  # fmt: skip
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)
    with pytest.raises(ValueError, match=message):
        replace(Recipe(), **fields)


def test_unknown_fields_get_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"no field 'betas'. Use beta1 and beta2"):
        replace(Recipe(), betas=(0.9, 0.999))
    with pytest.raises(TypeError, match=r"no field 'clipping_treshold'. Did you mean 'clipping_threshold'"):
        replace(Recipe(), clipping_treshold=1.0)


def test_recipes_are_data() -> None:
    for name in recipes.NAMES:
        recipe = recipes.shown(name)
        assert pickle.loads(pickle.dumps(recipe)) == recipe and hash(recipe) == hash(recipes.shown(name))
    assert Recipe() == recipes.paper() != replace(Recipe(), lr=0.1)


def test_none_is_off_and_dtypes_have_names() -> None:
    assert Recipe(weight_decay=None).weight_decay == 0.0 and not Recipe(weight_decay=None).decays  # type: ignore[arg-type]
    assert Recipe(momentum_dtype=np.float32).momentum_dtype == "float32"  # type: ignore[arg-type]
    assert dtypes.name_of("torch.bfloat16") == "bfloat16"


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'adafactor_pytorh'. Did you mean 'adafactor_pytorch'"):
        recipes.resolve("adafactor_pytorh")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: recipes.adafactor_pytorch(betas=(0.9, 0.999)), TypeError, "Use beta1 and beta2"),  # type: ignore[call-arg]
        (lambda: recipes.adafactor_pytorch(lr=-1.0), ValueError, "lr must be at least 0, got -1.0"),
        (lambda: recipes.adafactor_pytorch(beta2=1.0), ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
        (lambda: recipes.adafactor_pytorch(cliping_threshold=0), ValueError, "cliping_threshold must be positive"),
        (
            lambda: recipes.adafactor_pytorch(cliping_threshold=1, clipping_threshold=1),
            ValueError,
            "clipping_threshold must be given once",
        ),
        (lambda: recipes.adafactor_pytorch_parent(lr_decay_step=(3,)), TypeError, "no argument 'lr_decay_step'"),  # type: ignore[call-arg]
        (lambda: recipes.torch(d=0.5), ValueError, "d must be at least 1, got 0.5"),
        (lambda: recipes.torch(lr=-0.1), ValueError, "lr must be at least 0, got -0.1"),
        (lambda: recipes.torch(beta2_decay=0.8), ValueError, "beta2_decay must be .*, got 0.8. .*use -0.8"),
        (lambda: recipes.torch(eps=1e-30), ValueError, "eps must be a pair"),  # type: ignore[arg-type]
        (lambda: recipes.torch(maximize=True), ValueError, "Pass maximize=True to adafactor_torch.Adafactor"),
        (lambda: recipes.optax(lr=0.1), TypeError, "optax calls it learning_rate"),  # type: ignore[call-arg]
        (lambda: recipes.optax(decay_rate=-0.8), ValueError, "decay_rate must be at least 0, got -0.8. .*use 0.8"),
        (lambda: recipes.optax(weight_decay_mask=True), ValueError, "Pass it to adafactor_jax.adafactor"),  # type: ignore[arg-type]
    ],
)
def test_the_originals_vocabularies_refuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_starting_point_as_it_runs() -> None:
    default = recipes.adafactor_pytorch()
    assert default.beta2 == schedules.adam_decay(0.999) and default.beta1 == schedules.adam_decay(0.9)
    assert default.debias and default.momentum_of == "grad" and not default.amsgrad
    assert default.factoring == factoring.as_matrix and default.relative_step and default.lr == 1e-2
    constant = recipes.adafactor_pytorch(non_constant_decay=False)
    assert constant.beta2 == 0.999 and constant.amsgrad
    # A float is section 7.1's decay in whatever form it is given, a whole number stays what it is.
    halves: list[Any] = [0.5, np.float32(0.5), np.array(0.5), jnp.asarray(0.5)]
    for half in halves:
        assert recipes.adafactor_pytorch(beta1=half).beta1 == schedules.adam_decay(0.5)
    assert recipes.adafactor_pytorch(beta1=0.0).beta1 is None and recipes.adafactor_pytorch(beta1=0).beta1 is None
    assert recipes.adafactor_pytorch(enable_factorization=False).factoring == factoring.no_factoring
    both = [recipes.adafactor_pytorch(cliping_threshold=0.5), recipes.adafactor_pytorch(clipping_threshold=0.5)]
    assert both[0] == both[1]
    # A number and a function for lr are both multiplied by the parameter scale; in the parent a number is not.
    for lr in (0.1, lambda t: 0.1 / t):
        assert recipes.adafactor_pytorch(lr=lr).multiply_by_parameter_scale
        assert recipes.adafactor_pytorch_parent(lr=lr).multiply_by_parameter_scale == callable(lr)
    # The piecewise schedule counts only without lr, and only with both of its arguments.
    piecewise: dict[str, Any] = {"lr_decay_step": (3,), "lr_decay_factor": 0.5}
    assert recipes.adafactor_pytorch(lr=0.1, **piecewise) == recipes.adafactor_pytorch(lr=0.1)
    assert recipes.adafactor_pytorch(lr_decay_step=(3,)) == default


def test_torch_and_optax_defaults() -> None:
    assert recipes.torch() == Recipe(eps1=None, eps1_mode="floor", weight_decay_by="lr", state_dtype="param")
    assert recipes.torch(foreach=True) == recipes.torch()
    optax = recipes.optax()
    assert optax.lr == 1.0 and not optax.relative_step and optax.factoring == factoring.largest_two(128)
    assert recipes.optax(learning_rate=abs).lr == schedules.zero_based(abs)
    assert recipes.optax(weight_decay_rate=abs).weight_decay == schedules.zero_based(abs)
    assert recipes.torch(d=float("inf")).effective().clipping_threshold is None


@pytest.mark.parametrize(
    "fields",
    [{"lr": lambda t: -1.0}, {"beta2": lambda t: 1.5}, {"beta1": lambda t: NAN}, {"weight_decay": lambda t: None}],
)
def test_a_function_out_of_range_is_refused_when_it_is_given(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(fields))}\(1\) must be .*, got .*is called with t = 1, 2"):
        Recipe(**fields)


def test_a_power_of_the_learning_rate_has_one_spelling() -> None:
    by = [Recipe(weight_decay=0.1, weight_decay_by=by).weight_decay_by for by in (0, 1.0, 2, "step")]
    assert by == ["one", "lr", 2, "step"]
    with pytest.raises(ValueError, match=r"weight_decay_by must be one of .*, got None. A number is the power of the"):
        Recipe(weight_decay_by=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_decay_by must be at least 0, got -1"):
        Recipe(weight_decay_by=-1)
    assert Recipe(multiply_by_parameter_scale=np.False_).multiply_by_parameter_scale is False  # type: ignore[arg-type]


def test_fields_without_effect_do_not_make_another_algorithm() -> None:
    idle = Recipe(
        momentum_of="step", debias=True, momentum_dtype="float16", momentum_rounding="use", weight_decay_by="lr"
    )
    assert idle != Recipe() and idle.effective() == Recipe() == Recipe().effective()
    assert replace(idle, beta1=0.9).effective() != replace(Recipe(), beta1=0.9).effective()
    unscaled = Recipe(multiply_by_parameter_scale=False)
    assert replace(unscaled, eps2=1.0, max_parameter_scale=2.0).effective() == unscaled
    for used in ({"weight_decay": 0.1, "weight_decay_by": "lr"}, {"eps2": 1.0}, {"clipping_threshold": 2.0}):
        assert Recipe(**used).effective() == Recipe(**used) != Recipe()
