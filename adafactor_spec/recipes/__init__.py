"""Named recipes: each published Adafactor in its own vocabulary, and settings of them that people use.

A function here takes the arguments that the original's constructor takes, with its names, its defaults and its
refusals, and returns a `Recipe`. A name alone means the original's defaults.

Where an original calls a function of the step, it is called as the original does it: with t = 1, 2, ... or, where the
docstring says so, with a count from 0.
"""

from collections.abc import Callable
from typing import Any

from .._recipe import Recipe
from ..errors import nearest, plain_text, refusal
from ._adafactor_pytorch import adafactor_pytorch, adafactor_pytorch_parent
from ._big_vision import big_vision
from ._fairseq import colossalai, fairseq, kohya, transformers
from ._keras import keras
from ._mesh_tensorflow import mesh_tensorflow, tensor2tensor
from ._optax import optax
from ._paper import paper
from ._praxis import praxis
from ._pytorch_optimizer import pytorch_optimizer
from ._t5x import flax, t5x
from ._timm import timm, timm_big_vision
from ._torch import torch
from ._variants import (
    algoperf,
    big_vision_cappa,
    big_vision_vit_g,
    hf_t5,
    hf_trainer,
    kohya_finetune,
    onetrainer,
    t5x_finetune,
    t5x_finetune_from_checkpoint,
    t5x_moe,
    t5x_pretrain,
)

ORIGINALS = (
    "paper",
    "adafactor_pytorch",
    "adafactor_pytorch_parent",
    "tensor2tensor",
    "mesh_tensorflow",
    "flax",
    "t5x",
    "optax",
    "big_vision",
    "praxis",
    "fairseq",
    "transformers",
    "kohya",
    "colossalai",
    "torch",
    "keras",
    "timm",
    "timm_big_vision",
    "pytorch_optimizer",
)
VARIANTS = (
    "t5x_pretrain",
    "t5x_finetune",
    "t5x_finetune_from_checkpoint",
    "t5x_moe",
    "big_vision_vit_g",
    "big_vision_cappa",
    "hf_t5",
    "hf_trainer",
    "onetrainer",
    "kohya_finetune",
    "algoperf",
)
NAMES = ORIGINALS + VARIANTS

# What an original has no usable default for, where its recipe is to be shown or run without arguments.
_SHOWN_WITH: dict[str, dict[str, Any]] = {"praxis": {"decay_method": "pow", "decay_pow": 0.8}}


def resolve(recipe: str | Recipe) -> Recipe:
    """The recipe of that name with the original's defaults, or the recipe itself.

    Raises:
        ValueError: there is no recipe of that name, and the nearest one is named; or the original cannot be built
            without arguments.
    """
    return recipe if isinstance(recipe, Recipe) else function(recipe)()


def shown(name: str) -> Recipe:
    """The recipe of that name for tables and trial runs: with what the original has no default for."""
    return function(name)(**_SHOWN_WITH.get(name, {}))


def function(name: str) -> Callable[..., Recipe]:
    """The function of that name.

    Raises:
        ValueError: there is none; the nearest one is named.
    """
    word = plain_text(name)
    if word not in NAMES:
        remedy = nearest(word, NAMES) or "Call a function of adafactor_spec.recipes for one with arguments."
        raise refusal("recipe", f"a Recipe or one of {', '.join(NAMES)}", name, remedy)
    found: Callable[..., Recipe] = globals()[word]
    return found


__all__ = [
    "NAMES",
    "ORIGINALS",
    "VARIANTS",
    "adafactor_pytorch",
    "adafactor_pytorch_parent",
    "algoperf",
    "big_vision",
    "big_vision_cappa",
    "big_vision_vit_g",
    "colossalai",
    "fairseq",
    "flax",
    "function",
    "hf_t5",
    "hf_trainer",
    "keras",
    "kohya",
    "kohya_finetune",
    "mesh_tensorflow",
    "onetrainer",
    "optax",
    "paper",
    "praxis",
    "pytorch_optimizer",
    "resolve",
    "shown",
    "t5x",
    "t5x_finetune",
    "t5x_finetune_from_checkpoint",
    "t5x_moe",
    "t5x_pretrain",
    "tensor2tensor",
    "timm",
    "timm_big_vision",
    "torch",
    "transformers",
]
