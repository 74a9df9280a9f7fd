"""What an original takes, its recipe takes: numbers beyond the usual ones, flags by their truth, longer sequences.

What is still refused, either the original refuses, too, or it cannot be reproduced; the error says which.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle, recipes
from adafactor_spec.errors import NotReproduced, OriginalRefuses
from adafactor_torch import Adafactor

from .torch_runs import FLOAT64, values

INF, NAN = math.inf, math.nan
Arguments = dict[str, Any]

# (recipe, what is given, arguments that mean the same)
TAKEN: list[tuple[str, Arguments, Arguments]] = [
    # u / max(1, RMS(u) / d): a negative d makes it u / 1.
    *(
        (name, {argument: -0.5}, {argument: INF})
        for name, argument in {
            "adafactor_pytorch": "cliping_threshold",
            "adafactor_pytorch_parent": "clipping_threshold",
            "tensor2tensor": "clipping_threshold",
            "mesh_tensorflow": "clipping_threshold",
            "flax": "clipping_threshold",
            "t5x": "clipping_threshold",
            "optax": "clipping_threshold",
            "big_vision": "clipping_threshold",
            "praxis": "clip_threshold",
            "fairseq": "clip_threshold",
            "transformers": "clip_threshold",
            "kohya": "clip_threshold",
            "colossalai": "clip_threshold",
            "keras": "clip_threshold",
            "timm": "clip_threshold",
            "timm_big_vision": "clipping_threshold",
            "pytorch_optimizer": "clip_threshold",
        }.items()
    ),
    ("transformers", {"clip_threshold": -INF}, {"clip_threshold": INF}),
    ("big_vision", {"clipping_threshold": 0.0}, {"clipping_threshold": None}),
    # max(eps2, RMS(p)): a negative eps2 is as good as 0.
    *(
        (name, {argument: -1e-3}, {argument: 0.0})
        for name, argument in {
            "adafactor_pytorch": "eps2",
            "adafactor_pytorch_parent": "eps2",
            "tensor2tensor": "epsilon2",
            "mesh_tensorflow": "epsilon2",
            "flax": "epsilon2",
            "t5x": "epsilon2",
            "keras": "epsilon_2",
            "timm": "eps_scale",
        }.items()
    ),
    ("praxis", {"epsilon2_param_scale_reg": -1.0, "multiply_by_parameter_scale": 1},
     {"epsilon2_param_scale_reg": 0.0, "multiply_by_parameter_scale": True}),
    *(
        (name, {"eps": (1e-30, -1e-3)}, {"eps": (1e-30, 0.0)})
        for name in ("transformers", "fairseq", "kohya", "colossalai")
    ),
    # min(max(RMS(p), eps2), largest) is the largest where eps2 is larger.
    ("t5x", {"epsilon2": 0.1, "max_parameter_scale": 0.01}, {"epsilon2": 0.01, "max_parameter_scale": 0.01}),
    # beta2_t = min(cap, 1 - t^-x) is below 1 without a cap.
    ("big_vision", {"beta2_cap": 1.5}, {"beta2_cap": 1.0}),
    ("timm_big_vision", {"beta2_cap": 1.5}, {"beta2_cap": 1.0}),
    # Values that are taken by their places.
    *(
        (name, {"eps": eps}, {"eps": (1e-20, 1e-2)})
        for name in ("transformers", "fairseq", "kohya", "colossalai")
        for eps in ([1e-20, 1e-2], (1e-20, 1e-2, 7.0), np.array([1e-20, 1e-2]))
    ),
    ("transformers", {"eps": (1e-20,), "scale_parameter": False}, {"eps": (1e-20, 1e-3), "scale_parameter": False}),
    ("transformers", {"eps": (1e-20, "none"), "scale_parameter": False},
     {"eps": (1e-20, 1e-3), "scale_parameter": False}),
    *(("timm", {"betas": betas}, {"betas": (0.9, 0.999)}) for betas in ((0.9,), [0.9, 0.5, 0.1], np.array([0.9]))),
    # Flags are asked for their truth.
    *(
        (name, {argument: flag}, {argument: bool(flag)})
        for name, argument in {
            "adafactor_pytorch": "non_constant_decay",
            "adafactor_pytorch_parent": "enable_factorization",
            "tensor2tensor": "multiply_by_parameter_scale",
            "mesh_tensorflow": "factored",
            "flax": "multiply_by_parameter_scale",
            "t5x": "multiply_by_parameter_scale",
            "optax": "factored",
            "praxis": "sort_factored_second_moment_dims",
            "fairseq": "warmup_init",
            "transformers": "scale_parameter",
            "kohya": "scale_parameter",
            "colossalai": "scale_parameter",
            "keras": "relative_step",
            "timm": "warmup_init",
            "timm_big_vision": "corrected_weight_decay",
            "pytorch_optimizer": "fixed_decay",
        }.items()
        for flag in (0, 1, None, "yes", "", np.True_)
    ),
    # An axis is compared with the smallest size.
    ("optax", {"min_dim_size_to_factor": 3.5}, {"min_dim_size_to_factor": 4}),
    ("optax", {"min_dim_size_to_factor": -7}, {"min_dim_size_to_factor": 0}),
    ("timm", {"min_dim_size_to_factor": 3.5}, {"min_dim_size_to_factor": 3}),
    ("timm", {"min_dim_size_to_factor": -7}, {"min_dim_size_to_factor": -1}),
    ("big_vision", {"min_dim_size_to_factor": INF}, {"min_dim_size_to_factor": 2**63 - 1}),
    # What switches off what works around the optimizer.
    ("keras", {"clipnorm": 0.0, "gradient_accumulation_steps": 0, "loss_scale_factor": 1.0}, {}),
    ("keras", {"global_clipnorm": -1.0, "use_ema": None}, {}),
    ("t5x", {"global_norm_clip_threshold": -1.0}, {}),
    ("t5x", {"factor_map": {}}, {}),
    ("t5x", {"beta1": 0.9, "dtype_momentum": None}, {"beta1": 0.9, "dtype_momentum": "float32"}),
    ("mesh_tensorflow", {"beta1": None}, {"beta1": 0.0}),
    # The starting point looks at its steps only without lr, and only where both arguments are given.
    ("adafactor_pytorch", {"lr": 0.1, "lr_decay_step": "text", "lr_decay_factor": -2.0}, {"lr": 0.1}),
    ("adafactor_pytorch", {"lr_decay_factor": "text"}, {}),
    ("adafactor_pytorch", {"lr_decay_step": [9, 4], "lr_decay_factor": 0.5},
     {"lr_decay_step": (4, 9), "lr_decay_factor": 0.5}),
]  # fmt: skip

# The two kinds of what is left, and why the original is another matter.
REFUSED_BY_THE_ORIGINAL: list[tuple[str, Arguments, str]] = [
    ("adafactor_pytorch", {"cliping_threshold": 0}, "cliping_threshold"),  # RMS(u) / 0 of Python's numbers
    ("adafactor_pytorch", {"beta2": 1.0}, "beta2"),  # 0 / 0
    ("adafactor_pytorch_parent", {"beta1": 1.0}, "beta1"),
    ("torch", {"lr": -1.0}, "lr"),
    ("torch", {"beta2_decay": 0.8}, "beta2_decay"),
    ("torch", {"eps": (-1.0, 1e-3)}, r"eps\[0\]"),
    ("torch", {"eps": (None, -1e-3)}, r"eps\[1\]"),
    ("torch", {"d": -1.0}, "d"),
    ("torch", {"weight_decay": -0.1}, "weight_decay"),
    ("pytorch_optimizer", {"lr": -1.0}, "lr"),
    ("pytorch_optimizer", {"betas": (1.0, 0.999)}, r"betas\[0\]"),
    ("pytorch_optimizer", {"betas": (0.9, 1.0)}, r"betas\[1\]"),
    ("pytorch_optimizer", {"eps1": -1.0}, "eps1"),
    ("pytorch_optimizer", {"eps2": -1e-3}, "eps2"),
    ("pytorch_optimizer", {"weight_decay": -0.1}, "weight_decay"),
    ("timm_big_vision", {"lr": -1.0}, "lr"),
    ("timm_big_vision", {"weight_decay": -0.1}, "weight_decay"),
    ("timm_big_vision", {"lr": 0.0, "corrected_weight_decay": True}, "lr"),
    ("timm", {"betas": ()}, "betas"),
    ("transformers", {"eps": (1e-30,)}, "eps"),
    ("keras", {"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
    ("keras", {"clipnorm": 0.0, "clipvalue": 0.0}, "clipvalue"),
    ("praxis", {"decay_pow": 0.0}, "decay_pow"),
]
NOT_REPRODUCED: list[tuple[str, Arguments, str]] = [
    ("adafactor_pytorch", {"lr_decay_step": [4], "lr_decay_factor": -0.5}, "lr_decay_factor"),
    ("adafactor_pytorch", {"lr": -1.0}, "lr"),
    ("adafactor_pytorch", {"beta2": 1.5}, "beta2"),
    ("adafactor_pytorch", {"beta2": 1.0, "non_constant_decay": False}, "beta2"),
    ("transformers", {"lr": -1.0, "relative_step": False}, "lr"),
    ("transformers", {"clip_threshold": 0.0}, "clip_threshold"),
    ("transformers", {"clip_threshold": NAN}, "clip_threshold"),
    ("transformers", {"decay_rate": 0.8}, "decay_rate"),
    ("transformers", {"eps": (0.0, 1e-3)}, r"eps\[0\]"),
    ("transformers", {"beta1": 1.5}, "beta1"),
    ("transformers", {"weight_decay": -0.1}, "weight_decay"),
    ("optax", {"learning_rate": -1.0}, "learning_rate"),
    ("optax", {"clipping_threshold": 0.0}, "clipping_threshold"),
    ("optax", {"decay_offset": 0.5}, "decay_offset"),
    ("optax", {"weight_decay_rate": -0.1}, "weight_decay_rate"),
    ("t5x", {"weight_decay_rate_lr_exponent": -1.0}, "weight_decay_rate_lr_exponent"),
    ("t5x", {"max_parameter_scale": 0.0}, "max_parameter_scale"),
    ("t5x", {"global_norm_clip_threshold": 1.0}, "global_norm_clip_threshold"),
    ("big_vision", {"beta2_cap": -0.5}, "beta2_cap"),
    ("keras", {"clipnorm": 1.0}, "clipnorm"),
    ("keras", {"weight_decay": -0.1}, "weight_decay"),
    ("torch", {"eps": (0.0, 1e-3)}, r"eps\[0\]"),
    ("kohya_finetune", {"lr": -1.0}, "lr"),
    ("t5x_pretrain", {"base_learning_rate": -1.0}, "base_learning_rate"),
]


def built(name: str, given: Arguments) -> Recipe:
    around = {"decay_method": "pow", "decay_pow": 0.8} if name == "praxis" else {}
    return recipes.function(name)(**{**around, **given})


@pytest.mark.parametrize(("name", "given", "same"), TAKEN, ids=lambda x: str(x)[:60])
def test_what_the_original_takes(name: str, given: Arguments, same: Arguments) -> None:
    assert built(name, given).effective() == built(name, same).effective()


@pytest.mark.parametrize(("name", "given", "argument"), REFUSED_BY_THE_ORIGINAL, ids=str)
def test_what_the_original_refuses(name: str, given: Arguments, argument: str) -> None:
    with pytest.raises(OriginalRefuses, match=rf"^{argument} must be .*, got .*\.$"):
        built(name, given)


@pytest.mark.parametrize(("name", "given", "argument"), NOT_REPRODUCED, ids=str)
def test_what_cannot_be_reproduced(name: str, given: Arguments, argument: str) -> None:
    with pytest.raises(NotReproduced, match=rf"^{argument} must be .*, got .* not reproduced\."):
        built(name, given)


# --- The same in both frameworks ------------------------------------------------------------------------------------

STEPS = 12
RUN: dict[str, Recipe] = {
    "steps in any order": recipes.adafactor_pytorch(lr_decay_step=[9, 4], lr_decay_factor=0.5),
    "steps twice, early ones": recipes.adafactor_pytorch(lr_decay_step=[4, -2, 4, 2.5], lr_decay_factor=0.5),
    "no steps": recipes.adafactor_pytorch(lr_decay_step=[], lr_decay_factor=0.5),
    "a factor of 0": recipes.adafactor_pytorch(lr_decay_step=[3], lr_decay_factor=0.0),
    "no clipping": recipes.transformers(clip_threshold=-1.0),
    "no smallest scale": recipes.transformers(eps=(1e-30, -1.0)),
    "a constant scale": recipes.t5x(0.1, epsilon2=0.1, max_parameter_scale=0.01),
}


@pytest.mark.parametrize("case", RUN)
def test_both_frameworks_are_the_oracle(case: str) -> None:
    recipe, start = RUN[case], values((4, 6), 0)
    grads = [values((4, 6), t) for t in range(1, STEPS + 1)]
    p, state = start, oracle.init(recipe, start)
    tensor = torch.nn.Parameter(torch.tensor(start))
    optimizer = Adafactor([tensor], recipe=recipe)
    for g in grads:
        p, state = oracle.step(recipe, p, g, state)
        tensor.grad = torch.tensor(g)
        optimizer.step()
    with jax.enable_x64(True):
        tx, params = adafactor(recipe=recipe), jnp.asarray(start)
        update, held = jax.jit(tx.update), tx.init(params)
        for g in grads:
            updates, held = update(jnp.asarray(g), held, params)
            params = optax.apply_updates(params, updates)
        found = {"torch": tensor.detach().numpy(), "jax": np.asarray(params)}
    largest = np.max(np.abs(p))
    for name, x in found.items():
        assert np.max(np.abs(x - p)) <= FLOAT64 * largest, name
