"""`adafactor lint`: what a call in an original's words does, what of it has no effect, and the equivalent call here."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import adafactor_jax
from adafactor_parity import lint
from adafactor_parity._lint.code import expression
from adafactor_parity._lint.constructors import usual_name
from adafactor_spec import Recipe, recipes, replace
from adafactor_torch._param_groups import recipe_of

SETTINGS = json.loads((Path(__file__).parent / "vectors" / "settings.json").read_text())["implementations"]

# original: (a call as people write it, the same arguments for the recipe function)
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("recipes.paper()", {}),
    "adafactor_pytorch": (
        "adafactor.AdaFactor(model.parameters(), 0.02, 0.8, weight_decay=0.05, cliping_threshold=float('inf'))",
        {"lr": 0.02, "beta1": 0.8, "weight_decay": 0.05, "cliping_threshold": math.inf},
    ),
    "adafactor_pytorch_parent": ("recipes.adafactor_pytorch_parent(lr=1e-3)", {"lr": 1e-3}),
    "tensor2tensor": (
        "tensor2tensor.utils.adafactor.AdafactorOptimizer(False, 1e-3, beta1=0.9)",
        {"multiply_by_parameter_scale": False, "learning_rate": 1e-3, "beta1": 0.9},
    ),
    "mesh_tensorflow": (
        "mtf.optimize.AdafactorOptimizer(learning_rate=0.01, min_dim_size_to_factor=2)",
        {"learning_rate": 0.01, "min_dim_size_to_factor": 2},
    ),
    "flax": ("flax.optim.Adafactor(1e-3, beta1=0.9)", {"learning_rate": 1e-3, "beta1": 0.9}),
    "t5x": (
        "adafactor.Adafactor(learning_rate=1e-3, factor_map={'weight': (FactorDim.BATCH, FactorDim.NONE), "
        "'.*': (adafactor.FactorDim.NONE,)})",
        {"learning_rate": 1e-3, "factor_map": {"weight": ("BATCH", "NONE"), ".*": ("NONE",)}},
    ),
    "optax": (
        "optax.adafactor(1e-3, momentum=0.9, dtype_momentum=jnp.bfloat16, weight_decay_rate=1e-4)",
        {"learning_rate": 1e-3, "momentum": 0.9, "dtype_momentum": "bfloat16", "weight_decay_rate": 1e-4},
    ),
    "big_vision": ("big_vision.scale_by_adafactor(beta2_cap=0.95)", {"beta2_cap": 0.95}),
    "praxis": (
        "praxis.optimizers.ShardedAdafactor(decay_method='adam', decay_adam=0.98, beta1=0.9, "
        "quantized_dtype=jnp.bfloat16)",
        {"decay_method": "adam", "decay_adam": 0.98, "beta1": 0.9, "quantized_dtype": "bfloat16"},
    ),
    "fairseq": (
        "fairseq.optim.adafactor.Adafactor(params, lr=1e-3, scale_parameter=False, relative_step=False)",
        {"lr": 1e-3, "scale_parameter": False, "relative_step": False},
    ),
    "transformers": (
        "transformers.Adafactor(\n    [p for p in model.parameters()],\n    lr=1e-3,\n    eps=(1e-30, 1e-2),\n"
        "    relative_step=False,\n)",
        {"lr": 1e-3, "eps": (1e-30, 1e-2), "relative_step": False},
    ),
    "kohya": ("recipes.kohya(warmup_init=True)", {"warmup_init": True}),
    "colossalai": ("colossalai.nn.optimizer.Adafactor(params, weight_decay=0.1)", {"weight_decay": 0.1}),
    "torch": ("torch.optim.Adafactor(params=p, lr=1e-1, weight_decay=0.1)", {"lr": 0.1, "weight_decay": 0.1}),
    "keras": (
        "opt = keras.optimizers.Adafactor(0.1, weight_decay=0.1),",
        {"learning_rate": 0.1, "weight_decay": 0.1},
    ),
    "timm": ("timm.optim.Adafactor(params, betas=(0.9, 0.99))", {"betas": (0.9, 0.99)}),
    "timm_big_vision": (
        "self.opt: Optimizer = timm.optim.AdafactorBigVision(params, 1e-3, momentum_dtype=torch.half)",
        {"lr": 1e-3, "momentum_dtype": "float16"},
    ),
    "pytorch_optimizer": (
        "pytorch_optimizer.AdaFactor(params, betas=(None, 0.99), weight_decay=0.1, weight_decouple=False)",
        {"betas": (None, 0.99), "weight_decay": 0.1, "weight_decouple": False},
    ),
}


def run(code: str) -> dict[str, Any]:
    """The names that a printed program leaves behind."""
    names: dict[str, Any] = {"model": torch.nn.Linear(5, 3)}
    exec(compile(code, "printed", "exec"), names)
    return names


def with_lr(recipe: Recipe) -> Recipe:
    """A recipe without a learning rate of its own gets the printed one."""
    return replace(recipe, lr=1e-3) if recipe.lr is None else recipe


def after_three_steps(tx: optax.GradientTransformation) -> Any:
    random = np.random.default_rng(0)
    shapes = {"weight": (20, 130), "bias": (7,)}
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    state = tx.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), p.dtype), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def test_every_original_has_a_call() -> None:
    assert tuple(CALLS) == recipes.ORIGINALS


@pytest.mark.parametrize("name", recipes.ORIGINALS)
def test_a_call_becomes_the_recipe_and_code_that_runs(name: str) -> None:
    text, arguments = CALLS[name]
    expected = recipes.function(name)(**arguments)
    found = lint(text)
    assert found.reproduced, found.refused
    assert (found.recipe_name, found.recipe, found.arguments) == (name, expected, arguments)
    assert found.source and (found.quirks or name == "adafactor_pytorch_parent")
    in_jax = after_three_steps(adafactor_jax.adafactor(recipe=with_lr(expected)))
    for way in ("by_recipe", "by_fields"):
        (group,) = run(getattr(found.code["torch"], way))["optimizer"].param_groups
        assert recipe_of(group).effective() == with_lr(expected).effective()
        printed = after_three_steps(run(getattr(found.code["jax"], way))["tx"])
        assert jax.tree.all(jax.tree.map(np.array_equal, in_jax, printed))
    assert run(str(found.code["torch"])).keys() >= {"optimizer", "model"}


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_by_its_own_name(name: str) -> None:
    found = lint(f"adafactor_spec.recipes.{name}()")
    if name == "praxis":
        assert found.refused is not None and "decay_method" in found.refused
        return
    assert found.recipe == recipes.resolve(name)
    assert not found.without_effect and not found.as_by_default
    assert f'recipe="{name}"' in found.code["torch"].by_recipe
    (group,) = run(found.code["torch"].by_fields)["optimizer"].param_groups
    assert recipe_of(group) == with_lr(recipes.resolve(name))


def recorded_calls() -> list[Any]:
    cases = []
    for name, implementation in SETTINGS.items():
        for setting, how in implementation["settings"].items():
            values = {argument: math.inf if value == "inf" else value for argument, value in how["kwargs"].items()}
            if not any(isinstance(value, str) and ") = " in value for value in values.values()):  # a function
                cases.append(pytest.param(name, setting, values, id=f"{name}-{setting}"))
    return cases


@pytest.mark.parametrize(("name", "setting", "values"), recorded_calls())
def test_recorded_arguments_are_read_and_said_again(name: str, setting: str, values: dict[str, Any]) -> None:
    arguments = ", ".join(f"{argument}={expression(value)}" for argument, value in values.items())
    found = lint(f"{usual_name(name)}({arguments})", original=name)
    if SETTINGS[name]["settings"][setting].get("unsupported"):
        with pytest.raises(ValueError, match=re.escape(str(found.refused))):
            recipes.function(name)(**values)
        return
    expected = recipes.function(name)(**values)
    assert found.recipe == expected
    for way in ("by_recipe", "by_fields"):
        (group,) = run(getattr(found.code["torch"], way))["optimizer"].param_groups
        assert recipe_of(group).effective() == with_lr(expected).effective()


# ------------------------------------------------------------------------------------------------- no effect


@pytest.mark.parametrize(
    ("text", "without_effect"),
    [
        ("keras.optimizers.Adafactor(relative_step=False)", {"relative_step": False}),
        ("keras.optimizers.Adafactor(relative_step=True)", {"relative_step": True}),
        ("timm.optim.Adafactor(p, betas=(0.9, 0.999))", {"betas[1]": 0.999}),
        ("timm.optim.Adafactor(p, lr=1e-3, scale_parameter=False)", {"scale_parameter": False}),
        ("pytorch_optimizer.AdaFactor(p, lr=5e-4)", {"lr": 5e-4}),
        ("pytorch_optimizer.AdaFactor(p, lr=1e-3)", {"lr": 1e-3}),  # its default, and yet not used
        ("pytorch_optimizer.AdaFactor(p, lr=5e-4, relative_step=False)", {}),
        ("pytorch_optimizer.AdaFactor(p, betas=(0.9, 0.99))", {}),
        ("colossalai.nn.optimizer.Adafactor(p, lr=1e-3)", {"lr": 1e-3}),
        ("adafactor.AdaFactor(p, ams_grad=False)", {"ams_grad": False}),
        ("adafactor.AdaFactor(p, ams_grad=False, non_constant_decay=False)", {}),
        ("adafactor.AdaFactor(p, lr_decay_step=[3, 10])", {"lr_decay_step": [3, 10]}),
        ("adafactor.AdaFactor(p, lr_decay_step=[3, 10], lr_decay_factor=0.5)", {}),
        (
            "adafactor.AdaFactor(p, lr=1e-3, lr_decay_step=[3, 10], lr_decay_factor=0.5)",
            {"lr_decay_step": [3, 10], "lr_decay_factor": 0.5},
        ),
        ("torch.optim.Adafactor(p, foreach=True)", {"foreach": True}),
        ("torch.optim.Adafactor(p, eps=(None, 1e-2))", {}),
        ("optax.adafactor(1e-3, dtype_momentum=jnp.bfloat16)", {"dtype_momentum": "bfloat16"}),
        ("optax.adafactor(1e-3, momentum=0.9, dtype_momentum=jnp.bfloat16)", {}),
        ("optax.adafactor(1e-3, weight_decay_mask={'w': True})", {"weight_decay_mask": {"w": True}}),
        ("transformers.Adafactor(p, scale_parameter=False, eps=(1e-30, 1e-2))", {"eps[1]": 1e-2}),
        ("transformers.Adafactor(p, scale_parameter=False, eps=(1e-20, 1e-3))", {"eps[1]": 1e-3}),
        ("t5x.adafactor.Adafactor(1e-3, logical_factor_rules='standard')", {}),  # with the model's logical axes it has
    ],
)
def test_what_has_no_effect_is_found(text: str, without_effect: dict[str, Any]) -> None:
    found = lint(text)
    assert found.reproduced, found.refused
    assert found.without_effect == without_effect
    for name in without_effect:
        assert f"{name}=" not in found.code["jax"].by_recipe


def test_what_only_says_the_default_is_told_apart() -> None:
    found = lint("optax.adafactor(learning_rate=1.0, clipping_threshold=1.0, decay_rate=0.7)")
    assert found.as_by_default == {"learning_rate": 1.0, "clipping_threshold": 1.0}
    assert not found.without_effect
    assert "recipes.optax(decay_rate=0.7)" in found.code["jax"].by_recipe


def test_what_belongs_to_the_optimizer_is_carried_over() -> None:
    found = lint("torch.optim.Adafactor(p, lr=0.1, maximize=True)")
    assert run(found.code["torch"].by_recipe)["optimizer"].param_groups[0]["maximize"] is True
    tx = optax.chain(optax.scale(-1.0), adafactor_jax.adafactor(recipe=recipes.torch(lr=0.1)))
    for way in (found.code["jax"].by_recipe, found.code["jax"].by_fields):
        printed = after_three_steps(run(way)["tx"])
        assert jax.tree.all(jax.tree.map(np.array_equal, after_three_steps(tx), printed))
    assert "maximize" in " ".join(found.remarks)
    mask = {"weight": True, "bias": False}
    found = lint(f"optax.adafactor(0.1, weight_decay_rate=0.1, weight_decay_mask={mask})")
    recipe = recipes.optax(0.1, weight_decay_rate=0.1)
    wanted = after_three_steps(adafactor_jax.adafactor(recipe=recipe, weight_decay_mask=mask))
    assert jax.tree.all(jax.tree.map(np.array_equal, wanted, after_three_steps(run(found.code["jax"].by_recipe)["tx"])))
    assert "parameter groups" in " ".join(found.remarks)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("transformers.Adafactor(lr=1e-4, relative_step=True)", ["lr must be None", "transformers refuses both"]),
        ("transformers.Adafactor(p, relative_step=False)", ["lr must be a number"]),
        (
            "transformers.Adafactor(p, betas=args.betas)",
            ["transformers.Adafactor has no argument 'betas'", "Use beta1"],
        ),
        ("fairseq.optim.adafactor.Adafactor(p, lr=1e-3, relative_step=False)", ["not reproduced"]),
        ("pytorch_optimizer.AdaFactor(p, ams_bound=True)", ["ams_bound must be False"]),
        ("torch.optim.Adafactor(p, 1e-2, lr=3)", ["lr is given twice, by position as 1e-2 and by name"]),
        ("torch.optim.Adafactor(p, params=q)", ["params is given twice"]),
        ("optax.adafactor(1,2,3,4,5,6,7,8,9,10,11,12,13)", ["12 arguments by position, got 13"]),
        ("torch.optim.Adafactor(p, beta2_decay=0.8)", ["beta2_decay must be"]),
        ("torch.optim.Adafactor(p, lr='fast')", ["lr must be a number, got 'fast'"]),
        ("torch.optim.Adafactor(p, eps=1e-8)", ["eps must be a pair"]),
    ],
)
def test_what_an_original_refuses_is_refused_with_the_reason(text: str, words: list[str]) -> None:
    found = lint(text)
    assert not found.reproduced
    assert found.recipe is None and not found.code
    assert found.refused is not None
    for word in words:
        assert word in found.refused
