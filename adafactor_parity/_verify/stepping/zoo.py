"""The tensors that are stepped, their gradients, and the settings of every recipe."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafactor_spec import Recipe, dtypes, recipes, replace, schedules

Array = NDArray[np.float64]
Arrays = dict[str, Array]

STEPS = 20
LR = 1e-2  # where an original has no learning rate, or 1: then every step is as large as the whole weight
ZERO_STEP = 8  # all gradients of this step are zero; t = 1 is the first update

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "vector": (7,),
    "long vector": (300,),
    "row": (1, 5),
    "column": (5, 1),
    "empty vector": (0,),
    "empty matrix": (0, 5),
    "uneven": (37, 19),
    "tall": (200, 3),
    "wide": (3, 200),
    "large": (130, 140),  # both axes above 128, where optax begins to factor
    "cube": (6, 6, 6),  # equal axes: which two are factored shows
    "rank 3": (9, 5, 7),
    "conv kernel": (32, 8, 3, 3),
    "rank 5": (5, 4, 3, 2, 6),
}
# Tensors that are stepped with every recipe in every dtype; with the others it is all pairs, see `tensors`.
CORE = ("vector", "large", "rank 3")
# For a quick run: what is left out differs from one of these in size only, and each tensor costs compilation time.
QUICK = ("scalar", "vector", "row", "empty matrix", "large", "rank 3", "conv kernel", "rank 5")
# Standard deviation of the initial parameter; 0.05 where not listed. 0 and 1e-5 lie below eps2 = 1e-3.
PARAM_SCALE = {"scalar": 0.5, "vector": 0.0, "row": 1e-5, "column": 2.0}
# Powers of ten by which whole gradients differ from step to step. float16 ends at 65504 and has lost half of its
# digits at 1e-5.
DECADES = {"float16": 6}
FULL_DECADES = 12


@dataclass(frozen=True)
class Setting:
    """A recipe and the label under which it is reported; `name` is that of the recipe."""

    name: str
    label: str
    recipe: Recipe


def tensors(setting: Setting, dtype: str, among: Sequence[str], quick: bool = False) -> tuple[str, ...]:
    """Names of the tensors that are stepped with a setting in a dtype, where the run steps in the dtypes `among`.

    JAX compiles a program for each tensor, recipe and dtype, and that is where most of the time goes. So the tensors of
    `CORE` meet every recipe in every dtype, and each of the others meets every recipe in one dtype, which is another
    one from recipe to recipe: all pairs of tensor, recipe and dtype are stepped, and not all triples.
    """
    if quick:
        return QUICK
    turn = zlib.crc32(setting.label.encode())
    return tuple(name for i, name in enumerate(SHAPES) if name in CORE or among[(turn + i) % len(among)] == dtype)


def settings(names: Sequence[str], defaults_only: bool = False) -> tuple[Setting, ...]:
    """The recipes of these names with their defaults, each followed by settings that reach its other modes."""
    found = {name: list(_of(name)) for name in names}
    return tuple(setting for of in found.values() for setting in (of[:1] if defaults_only else of))


def trained(names: Sequence[str]) -> Setting:
    """The setting that the transformer is trained with: "paper" where that is asked for, else the first recipe."""
    return next(_of("paper" if "paper" in names else names[0]))


def _of(name: str) -> Iterator[Setting]:
    """The original's defaults, with what it has no default for, and settings that reach its other modes."""
    kwargs = _NEEDED.get(name, {})
    given = any(isinstance(value, float) for value in kwargs.values())
    yield Setting(name, f"{name}, lr={LR}" if given else name, recipes.function(name)(**kwargs))
    for what, more in _MORE.get(name, {}).items():
        yield Setting(name, f"{name}, {what}", recipes.function(name)(**kwargs | more))
    if name == "paper":
        piecewise = schedules.piecewise_constant(1e-2, (3, 10), 0.5)
        yield Setting(name, "paper, piecewise lr", replace(recipes.paper(), lr=piecewise))


# T5X refuses parameters of more than two axes without a rule, also in the trained transformer.
_AXES: dict[str, tuple[str, ...] | str] = {
    "cube": ("ROW", "BATCH", "COLUMN"),
    "rank 3": ("BATCH", "NONE", "NONE"),
    "conv kernel": ("COLUMN", "ROW", "ROW", "ROW"),
    "rank 5": ("BATCH", "ROW", "COLUMN", "COLUMN", "ROW"),
    "qkv": ("BATCH", "ROW", "COLUMN"),
    ".*": "HEURISTIC_RULE",
}
_LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "cube": ("embed", "layers", "mlp"),
    "rank 3": ("layers", "embed", "layer_norm_scale"),
    "conv kernel": ("mlp", "embed", "embed", "embed"),
    "rank 5": ("layers", "embed", "heads", "kv", "embed"),
    ".*qkv": ("stack", "embed", "joined_kv"),
    "scalar": (),
    ".*(vector|scale|bias)": ("embed",),
    ".*": ("embed", "mlp"),
}
# What an original has no default for, or none that can be stepped.
_NEEDED: dict[str, dict[str, Any]] = {
    "optax": {"learning_rate": LR},
    "flax": {"learning_rate": LR},
    "t5x": {"learning_rate": LR, "factor_map": _AXES},
    "big_vision": {"lr": LR},
    "praxis": {"learning_rate_fn": LR, "decay_method": "pow", "decay_pow": 0.8},
    "timm_big_vision": {"lr": LR},
    "algoperf": {"learning_rate": LR},
    **{
        variant: {"param_logical_axes": _LOGICAL_AXES}
        for variant in ("t5x_pretrain", "t5x_finetune", "t5x_finetune_from_checkpoint", "t5x_moe")
    },
}
_MORE: dict[str, dict[str, dict[str, Any]]] = {
    "adafactor_pytorch": {
        "AMSGrad": {"non_constant_decay": False},
        "piecewise lr": {"lr_decay_step": (3, 10), "lr_decay_factor": 0.5},
    },
    "adafactor_pytorch_parent": {"float lr": {"lr": 1e-3, "beta1": 0.0, "weight_decay": 0.1}},
    "t5x": {"momentum, decay": {"beta1": 0.9, "weight_decay_rate": 0.1, "weight_decay_rate_lr_exponent": 1.5}},
    "optax": {"momentum": {"min_dim_size_to_factor": 2, "momentum": 0.9, "weight_decay_rate": 1e-3}},
    "transformers": {"momentum, decay": {"beta1": 0.9, "weight_decay": 0.1}},
    "torch": {"weight_decay": {"weight_decay": 0.1}},
    "keras": {"weight_decay": {"weight_decay": 0.1}},
    "pytorch_optimizer": {"L2": {"weight_decay": 0.1, "weight_decouple": False}},
}


def parameters(names: Sequence[str], dtype: str, seed: int) -> Arrays:
    """Initial parameters by name of the shape: float64 arrays whose values fit `dtype`."""
    return {
        name: dtypes.round_to(_rng(seed, name, 0).standard_normal(SHAPES[name]) * PARAM_SCALE.get(name, 0.05), dtype)
        for name in names
    }


def gradients(names: Sequence[str], dtype: str, seed: int, steps: int = STEPS) -> Iterator[Arrays]:
    """The gradients of each step by name, float64 arrays whose values fit `dtype`.

    Whole gradients differ by `DECADES` from step to step, both ends included, and by two decades across the
    axes together, so that rows differ from columns and clipping is sometimes active and sometimes not.
    """
    half = DECADES.get(dtype, FULL_DECADES) / 2
    sizes = {name: _sizes(seed, name, half, steps) for name in names}
    profiles = {name: _profile(seed, name) for name in names}
    for t in range(1, steps + 1):
        yield {
            name: dtypes.round_to(
                _rng(seed, name, 2, t).standard_normal(SHAPES[name]) * (profiles[name] * sizes[name][t - 1]), dtype
            )
            for name in names
        }


def _sizes(seed: int, name: str, half: float, steps: int) -> Array:
    rng = _rng(seed, name, 1)
    exponents = rng.uniform(-half, half, steps)
    live = [t for t in range(steps) if t != ZERO_STEP - 1]
    ends = rng.permutation(live)[:2]
    exponents[ends] = [half, -half][: len(ends)]
    sizes = 10.0**exponents
    sizes[ZERO_STEP - 1 : ZERO_STEP] = 0.0
    return sizes


def _profile(seed: int, name: str) -> Array:
    rng, shape = _rng(seed, name, 3), SHAPES[name]
    profile = np.ones(shape)
    for axis, length in enumerate(shape):
        weights = 10.0 ** rng.uniform(-2 / len(shape), 0, length)
        profile = profile * weights.reshape([length if a == axis else 1 for a in range(len(shape))])
    return profile


def _rng(seed: int, name: str, *more: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(SHAPES).index(name), *more])
