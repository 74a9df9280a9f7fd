"""The recipes take the arguments of the originals: names, defaults, refusals, and what has no effect."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import adafactor_jax
import adafactor_torch
from adafactor_spec import Recipe, errors, factoring, recipes, replace, schedules

NAN = float("nan")
NO: Any = np.False_
TWO: Any = np.ones(2)  # which is neither true nor false
WITHOUT_ARGUMENTS: Any = lambda: 1e-3  # noqa: E731 - keras takes such a function
# A bad value for every argument, by the original's name for it. `...`: any value is taken, the argument has no effect.
FAIRSEQ: dict[str, Any] = {
    "lr": 1e-3, "eps": 1e-30, "clip_threshold": None, "decay_rate": 0.8, "beta1": 1.5, "weight_decay": -0.1,
    "scale_parameter": TWO, "relative_step": TWO, "warmup_init": TWO,
}  # fmt: skip
TENSOR2TENSOR: dict[str, Any] = {
    "multiply_by_parameter_scale": TWO, "learning_rate": -1.0, "decay_rate": 1.5, "beta1": 1.0, "epsilon1": 0.0,
    "clipping_threshold": 0.0, "factored": TWO, "epsilon2": NAN,
}  # fmt: skip
FLAX: dict[str, Any] = {
    "learning_rate": -1.0, "factored": TWO, "multiply_by_parameter_scale": TWO, "beta1": 1.5, "decay_rate": -0.8,
    "step_offset": 0.5, "clipping_threshold": 0.0, "weight_decay_rate": -0.1, "min_dim_size_to_factor": "16",
    "epsilon1": 0.0, "epsilon2": NAN, "dtype_momentum": "int8",
}  # fmt: skip
BAD: dict[str, dict[str, Any]] = {
    "paper": {},
    "adafactor_pytorch": {
        "lr": -1.0, "beta1": 1.5, "beta2": NAN, "eps1": -1.0, "eps2": NAN, "cliping_threshold": 0.0,
        "clipping_threshold": "", "non_constant_decay": TWO, "enable_factorization": TWO, "ams_grad": TWO,
        "weight_decay": -0.1, "lr_decay_step": ..., "lr_decay_factor": ...,
    },
    "adafactor_pytorch_parent": {
        "lr": -1.0, "beta1": 1.5, "beta2": NAN, "eps1": -1.0, "eps2": NAN, "cliping_threshold": 0.0,
        "clipping_threshold": "", "non_constant_decay": TWO, "enable_factorization": TWO, "ams_grad": TWO,
        "weight_decay": -0.1,
    },
    "tensor2tensor": {
        **TENSOR2TENSOR, "simulated_quantize_bits": 8, "parameter_encoding": "noise", "use_locking": ..., "name": ...,
    },
    "mesh_tensorflow": {
        **TENSOR2TENSOR, "min_dim_size_to_factor": "16", "stacked_dim_names": ["d0"],
        "exclude_from_parameter_scale": "bias",
    },
    "flax": FLAX,
    "t5x": {
        **FLAX, "factor_map": 3, "logical_factor_rules": "standart", "weight_decay_rate_lr_exponent": -1.0,
        "global_norm_clip_threshold": 1.0, "max_parameter_scale": 0.0, "skip_nan_updates": True,
        "param_logical_axes": 3,
    },
    "optax": {
        "learning_rate": -1.0, "min_dim_size_to_factor": "16", "decay_rate": -0.8, "decay_offset": 0.5,
        "multiply_by_parameter_scale": TWO, "clipping_threshold": "", "momentum": 1.5, "dtype_momentum": "int8",
        "weight_decay_rate": -0.1, "eps": 0.0, "factored": TWO, "weight_decay_mask": True,
    },
    "big_vision": {
        "min_dim_size_to_factor": "16", "decay_rate": -0.8, "decay_offset": 0.5, "beta2_cap": -0.5,
        "clipping_threshold": NAN, "momentum": 1.5, "dtype_momentum": "int8", "eps": 0.0, "lr": lambda c: 0.1,
        "wd": -0.1, "wd_mults": [(".*", -1.0)], "schedule": lambda c: -1.0,
    },
    "praxis": {
        "learning_rate_fn": -1.0, "weight_decay": -0.1, "layerwise_adaptation": True,
        "exclude_from_layerwise_adaptation": ..., "decay_method": "power", "decay_adam": ..., "decay_pow": -0.8,
        "beta1": 1.0, "clip_threshold": 0.0, "factored": TWO, "epsilon1_grad_sq_reg": 0.0, "quantized_dtype": "int4",
        "respect_skip_lp_regularization": TWO, "per_var_learning_summary": ...,
        "sort_factored_second_moment_dims": TWO, "min_dim_size_to_factor": "16", "multiply_by_parameter_scale": TWO,
        "epsilon2_param_scale_reg": NAN, "maybe_inf_to_nan": ..., "name": ...,
    },
    "fairseq": FAIRSEQ,
    "transformers": FAIRSEQ,
    "kohya": FAIRSEQ,
    "colossalai": {**FAIRSEQ, "lr": ..., "relative_step": False},
    "torch": {
        "lr": NAN, "beta2_decay": 0.8, "eps": 1.0, "d": 0.5, "weight_decay": -0.1, "foreach": ..., "maximize": True,
    },
    "keras": {
        "learning_rate": -1.0, "beta_2_decay": 0.8, "epsilon_1": 0.0, "epsilon_2": NAN, "clip_threshold": None,
        "relative_step": TWO, "weight_decay": -0.1, "clipnorm": 1.0, "clipvalue": 1.0, "global_clipnorm": 1.0,
        "use_ema": True, "ema_momentum": ..., "ema_overwrite_frequency": ..., "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 2, "name": ...,
    },
    "timm": {
        "lr": -1.0, "eps": 0.0, "eps_scale": NAN, "clip_threshold": None, "decay_rate": 0.8, "betas": 0.9,
        "weight_decay": -0.1, "scale_parameter": TWO, "warmup_init": TWO, "min_dim_size_to_factor": NAN, "caution": TWO,
    },
    "timm_big_vision": {
        "lr": -1.0, "min_dim_size_to_factor": NAN, "decay_rate": -0.8, "decay_offset": 0.5, "beta2_cap": -0.5,
        "momentum": 1.0, "momentum_dtype": "int8", "eps": 0.0, "weight_decay": -0.1, "clipping_threshold": 0.0,
        "unscaled_wd": TWO, "caution": TWO, "corrected_weight_decay": TWO,
    },
    "pytorch_optimizer": {
        "lr": -1.0, "betas": (0.9, 1.0), "decay_rate": 0.8, "weight_decay": -0.1, "weight_decouple": TWO,
        "fixed_decay": TWO, "clip_threshold": None, "ams_bound": True, "scale_parameter": TWO, "relative_step": TWO,
        "warmup_init": TWO, "eps1": 0.0, "eps2": -1.0, "momentum_dtype": "int8", "foreach": ..., "maximize": True,
        "cautious": True,
    },
}  # fmt: skip


def around(recipe: str) -> dict[str, Any]:
    """What the original needs beside the argument in question."""
    return {"decay_method": "pow", "decay_pow": 0.8} if recipe == "praxis" else {}


@pytest.mark.parametrize("recipe", recipes.ORIGINALS)
def test_every_argument_is_looked_at(recipe: str) -> None:
    assert set(BAD[recipe]) == set(inspect.signature(getattr(recipes, recipe)).parameters)


@pytest.mark.parametrize(("recipe", "argument"), [(recipe, argument) for recipe in BAD for argument in BAD[recipe]])
def test_a_refusal_names_the_originals_argument(recipe: str, argument: str) -> None:
    build, bad = getattr(recipes, recipe), BAD[recipe][argument]
    if bad is ...:
        assert build(**around(recipe) | {argument: 3}) == build(**around(recipe))
    else:
        with pytest.raises(ValueError, match=rf"^{argument}\b.* must be .*, got"):
            build(**around(recipe) | {argument: bad})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: recipes.transformers(lr=1e-3),
            r"lr must be None with relative_step=True, got 0.001.*add relative_step=F",
        ),
        (lambda: recipes.transformers(relative_step=False), r"lr must be a number with relative_step=False, got None"),
        (
            lambda: recipes.transformers(lr=1.0, relative_step=False, warmup_init=True),
            r"warmup_init must be False with relative_step=False",
        ),
        (lambda: recipes.fairseq(lr=1.0, relative_step=False), r"scale_parameter must be False .*not reproduced"),
        (lambda: recipes.timm(lr=1.0, warmup_init=True), r"warmup_init must be False with an lr"),
        (lambda: recipes.timm(betas=(0.9, 0.999), caution=True), r"caution must be False with betas"),
        (lambda: recipes.timm_big_vision(lr=0.0, corrected_weight_decay=True), r"lr must be a positive number"),
        (
            lambda: recipes.timm_big_vision(lr=lambda t: 1.0, corrected_weight_decay=True),
            r"lr must be a positive number .*Give the peak here",
        ),
        (lambda: recipes.pytorch_optimizer(lr=None, relative_step=False), r"lr must be a number with relative_step"),
        (
            lambda: recipes.keras(WITHOUT_ARGUMENTS),
            r"learning_rate must be a function of the step, got .*takes 0 positional arguments",
        ),
        (lambda: recipes.big_vision(wd_mults={"(": 1.0}), r"wd_mults must be regular expressions, got '\('"),
        (lambda: recipes.big_vision_cappa(total_steps=100), "total_steps must be greater than 10000, got 100"),
        (lambda: recipes.kohya_finetune(warmup_steps=0), "warmup_steps must be at least 1, got 0"),
        (lambda: recipes.kohya_finetune(lr=-0.8), "^lr must be at least 0, got -0.8"),
        (lambda: recipes.algoperf(learning_rate="mo"), "^learning_rate must be a number, .*, got 'mo'"),  # type: ignore[arg-type]
        (lambda: recipes.keras(beta_2_decay=0.8), "beta_2_decay must be at most 0, got 0.8"),
        (lambda: recipes.colossalai(relative_step=NO), "relative_step must be True, got .*recipes.transformers"),
        (lambda: recipes.praxis(), r"decay_method must be 'pow' or 'adam', got ''"),
        (
            lambda: recipes.praxis(
                decay_method="pow", decay_pow=0.8, weight_decay=0.1, respect_skip_lp_regularization=True
            ),
            "respect_skip_lp_regularization must be False with a weight_decay, got True",
        ),
        (lambda: recipes.optax(weight_decay_mask=False), "weight_decay_mask must be None in a recipe, got False"),  # type: ignore[arg-type]
        (lambda: recipes.praxis(decay_method="adam"), r"decay_adam must be in \(0, 1\), got 0.0"),
        (
            lambda: recipes.praxis(decay_method="pow", decay_pow=0.8, beta1=0.9),
            r"quantized_dtype must be 'bfloat16' or 'float32' where beta1 is not 0, got 'int8'.*not reproduced",
        ),
    ],
)
def test_arguments_that_contradict_each_other(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (recipes.keras(relative_step=False), recipes.keras()),
        (recipes.timm(betas=(0.9, 0.5)), recipes.timm(betas=(0.9, 0.999))),
        (recipes.timm(lr=0.1, scale_parameter=False), recipes.timm(lr=0.1)),
        (recipes.timm(caution=True), recipes.timm()),
        (recipes.pytorch_optimizer(lr=0.5), recipes.pytorch_optimizer()),
        (recipes.colossalai(lr=0.5), recipes.colossalai()),
        (recipes.tensor2tensor(multiply_by_parameter_scale=NO),
         recipes.tensor2tensor(multiply_by_parameter_scale=False)),
        (recipes.praxis(decay_method="pow", decay_pow=0.8, quantized_dtype=np.int8),
         recipes.praxis(decay_method="pow", decay_pow=0.8)),
        (recipes.kohya(beta1=0.9), recipes.transformers(beta1=0.9)),
        (recipes.pytorch_optimizer(betas=(None, 0.9), momentum_dtype="float16", eps1=1e-7),
         recipes.pytorch_optimizer(betas=(None, 0.9), eps1=1e-7)),
        (recipes.optax(0.1, clipping_threshold=None), recipes.optax(0.1, clipping_threshold=float("inf"))),
        (recipes.tensor2tensor(), recipes.paper()),
        (recipes.fairseq(), recipes.transformers()),
        (recipes.t5x(0.1, weight_decay_rate_lr_exponent=0.0), recipes.t5x(0.1)),
        (recipes.t5x(0.1, weight_decay_rate=0.0, weight_decay_rate_lr_exponent=1.0),
         recipes.t5x(0.1, weight_decay_rate=1.0, weight_decay_rate_lr_exponent=1.0)),
    ],
)  # fmt: skip
def test_what_has_no_effect(one: Recipe, other: Recipe) -> None:
    assert one.effective() == other.effective()


def test_who_refuses_is_said() -> None:
    for call in (
        lambda: recipes.transformers(lr=1.0),
        lambda: recipes.praxis(),
        lambda: recipes.timm(lr=1.0, warmup_init=True),
        lambda: recipes.t5x(factored=False, factor_map={}),
    ):
        with pytest.raises(errors.OriginalRefuses):
            call()
    for call in (
        lambda: recipes.fairseq(lr=1.0, relative_step=False),
        lambda: recipes.pytorch_optimizer(ams_bound=True),
        lambda: recipes.timm(betas=(0.9, 0.9), caution=True),
        lambda: recipes.mesh_tensorflow(stacked_dim_names=["d0"]),
    ):
        with pytest.raises(errors.NotReproduced, match=r"It is not reproduced\."):
            call()


def test_a_recipe_without_a_learning_rate_must_be_given_one() -> None:
    params = [torch.nn.Parameter(torch.ones(3))]
    for name in ("t5x", "flax", "algoperf"):
        with pytest.raises(ValueError, match=r"learning_rate must be a number.*, got None. This recipe has no default"):
            adafactor_jax.adafactor(recipe=name)
        with pytest.raises(ValueError, match=r"lr must be a number.*, got None. This recipe has no default"):
            adafactor_torch.Adafactor(params, recipe=name)
        adafactor_jax.adafactor(0.1, recipe=name)
        assert adafactor_torch.Adafactor(params, lr=0.1, recipe=name).param_groups[0]["lr"] == 0.1
        groups = [{"params": params, "lr": 0.2}]
        assert adafactor_torch.Adafactor(groups, recipe=name).param_groups[0]["lr"] == 0.2
    with pytest.raises(ValueError, match="The original has no default"):
        recipes.t5x().at(1)


def test_the_variants_say_what_they_set() -> None:
    pretrain = recipes.t5x_pretrain()
    assert [pretrain.at(t).lr for t in (1, 10_001, 40_001)] == pytest.approx([0.01, 0.01, 0.005])
    assert pretrain.multiply_by_parameter_scale and recipes.t5x_finetune().lr == 1e-3
    assert recipes.t5x_finetune_from_checkpoint().beta2 == schedules.power_decay(0.8, offset=1_000_000)
    experts = recipes.t5x_moe(param_logical_axes={"wi": ("expert", "embed", "expert_mlp")})
    assert factoring.plan(experts.factoring, (8, 4, 6), "wi").batch == (0,)

    vit = recipes.big_vision_vit_g()
    assert [vit.at(t).lr for t in (1, 5_001, 10_001, 40_001, 975_001)] == pytest.approx(
        [0.0, 4e-4, 8e-4, 4e-4, 8e-4 * 0.5 / 97.5**0.5]
    )
    assert vit.at(10_001).weight_decay == pytest.approx(0.03 * 8e-4)
    cappa = recipes.big_vision_cappa()
    assert [cappa.at(t).lr for t in (1, 10_001, 188_251, 366_501)] == pytest.approx([0.0, 1e-3, 5e-4, 0.0], abs=1e-18)

    for variant in (recipes.hf_t5(), recipes.hf_trainer(), recipes.onetrainer(), recipes.kohya_finetune()):
        assert not variant.relative_step and not variant.multiply_by_parameter_scale and variant.beta1 is None
    assert [recipes.kohya_finetune().at(t).lr for t in (1, 51, 500)] == pytest.approx([0.0, 2e-7, 4e-7])
    algoperf = recipes.algoperf(0.1)
    assert algoperf.beta2 == schedules.adam_decay(0.99) and algoperf.beta1 == 0.9 and algoperf.momentum_of == "step"
    assert replace(algoperf, lr=None) == recipes.algoperf()
