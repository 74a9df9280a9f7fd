"""Random constructor arguments of each original, in its own words: every argument that its recipe takes.

An argument is left out as often as it is given, so that defaults are tried as well. Values that are not drawn, because
the recipe refuses them on purpose or the original does not survive them:

* timm, timm_big_vision: `caution=True` with a momentum. pytorch_optimizer: `ams_bound=True`, `cautious=True`.
* keras: `clipnorm`, `clipvalue`, `global_clipnorm`, `loss_scale_factor`, `gradient_accumulation_steps`, `use_ema=True`:
  they work around the optimizer.
* optax: a positive `decay_offset`, which gives NaN in a fresh run, and `clipping_threshold=0`, which gives no step.
* torch: `lr` as a tensor, of which the recipe wants the number.
* All: 0 for what is added to g^2. The originals then give NaN for a gradient of zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Random = np.random.Generator
Arguments = dict[str, Any]
INF = float("inf")


@dataclass(frozen=True)
class Decay:
    """A learning-rate schedule: base / (1 + rate * count), count = 0 at the first update."""

    base: float
    rate: float

    def __call__(self, count: Any) -> Any:
        return self.base / (1.0 + self.rate * count)


def chosen(rng: Random, values: Sequence[Any]) -> Any:
    """One of the values; a function among them draws."""
    value = values[int(rng.integers(len(values)))]
    return value(rng) if callable(value) else value


def log_uniform(low: float, high: float) -> Callable[[Random], float]:
    """Draws between two powers of ten."""
    return lambda rng: float(10.0 ** rng.uniform(low, high))


def uniform(low: float, high: float) -> Callable[[Random], float]:
    return lambda rng: float(rng.uniform(low, high))


def given(rng: Random, values: Mapping[str, Sequence[Any]]) -> Arguments:
    """Some of the arguments, each with one of its values."""
    return {name: chosen(rng, choices) for name, choices in values.items() if rng.random() < 0.5}


FLAG = (False, True)
LR = (0.0, 1e-3, log_uniform(-4, -1))  # larger ones times RMS(p) make the weights overflow
ANY_LR = (*LR, 1.0)
EPS1 = (1e-30, log_uniform(-20, -1))
FLOOR = (None, log_uniform(-15, -1))  # its square must be a float32 for the original to survive a zero gradient
EPS2 = (0.0, 1e-3, log_uniform(-6, 0))
ANY_EPS2 = (*EPS2, -1e-3)
CLIP = (1.0, INF, -1.0, log_uniform(-1, 1))
TRUTH = (*FLAG, 0, 1)
EXPONENT = (0.8, 0.0, 1.0, uniform(0.3, 1.2))
MINUS_EXPONENT = (-0.8, 0.0, -1.0, lambda rng: -float(rng.uniform(0.3, 1.2)))
BETA1 = (None, 0.0, 0.9, uniform(0.0, 0.99))
DECAY = (0.0, log_uniform(-4, -0.5))
MIN_DIM = (0, 1, 2, 3, 4, 5, 7, 2.5, -3)


def torch(rng: Random) -> Arguments:
    return given(
        rng,
        {
            "lr": ANY_LR,
            "beta2_decay": MINUS_EXPONENT,
            "eps": (lambda r: (chosen(r, FLOOR), chosen(r, EPS2)),),
            "d": (1.0, INF, uniform(1.0, 4.0)),
            "weight_decay": DECAY,
            "foreach": (None, *FLAG),
        },
    )


def transformers(rng: Random) -> Arguments:
    kwargs = given(
        rng,
        {
            "eps": (lambda r: (chosen(r, EPS1), chosen(r, ANY_EPS2), *((0.5,) if r.random() < 0.2 else ())),),
            "clip_threshold": CLIP,
            "decay_rate": MINUS_EXPONENT,
            "beta1": BETA1,
            "weight_decay": DECAY,
            "scale_parameter": TRUTH,
            "relative_step": TRUTH,
        },
    )
    if kwargs.get("relative_step", True):  # lr and warmup_init exclude each other, in the original too
        return kwargs | given(rng, {"warmup_init": FLAG})
    return kwargs | {"lr": chosen(rng, LR)} | given(rng, {"warmup_init": (False,)})


def timm(rng: Random) -> Arguments:
    kwargs = given(
        rng,
        {
            "lr": (None, *LR),
            "eps": EPS1,
            "eps_scale": ANY_EPS2,
            "clip_threshold": CLIP,
            "decay_rate": MINUS_EXPONENT,
            "betas": (None, lambda r: (chosen(r, BETA1), chosen(r, (0.999, 0.5))), lambda r: [chosen(r, BETA1)]),
            "weight_decay": DECAY,
            "scale_parameter": FLAG,
            "min_dim_size_to_factor": MIN_DIM,
        },
    )
    averages = (kwargs.get("betas") or (None,))[0] is not None
    relative = kwargs.get("lr") is None
    return kwargs | given(
        rng, {"caution": (False,) if averages else FLAG, "warmup_init": FLAG if relative else (False,)}
    )


def timm_big_vision(rng: Random) -> Arguments:
    kwargs = given(
        rng,
        {
            "lr": ANY_LR,
            "min_dim_size_to_factor": MIN_DIM,
            "decay_rate": EXPONENT,
            "decay_offset": (0, 1, 3, -2, -1000),
            "beta2_cap": (0.999, 0.0, 0.5, 1.0, 1.5),
            "momentum": BETA1,
            "eps": (None, *EPS1),
            "weight_decay": DECAY,
            "clipping_threshold": (None, *CLIP),
            "unscaled_wd": FLAG,
        },
    )
    kwargs["momentum_dtype"] = chosen(rng, ("float32", "bfloat16", "float16"))
    off = "momentum" in kwargs and kwargs["momentum"] is None
    corrected = FLAG if kwargs.get("lr", 1.0) > 0 else (False,)
    return kwargs | given(rng, {"caution": FLAG if off else (False,), "corrected_weight_decay": corrected})


def pytorch_optimizer(rng: Random) -> Arguments:
    kwargs = given(
        rng,
        {
            "betas": (lambda r: (chosen(r, BETA1), chosen(r, (0.999, 0.0, 0.5))),),
            "decay_rate": MINUS_EXPONENT,
            "weight_decay": DECAY,
            "weight_decouple": FLAG,
            "fixed_decay": FLAG,
            "clip_threshold": CLIP,
            "ams_bound": (False,),
            "scale_parameter": FLAG,
            "relative_step": FLAG,
            "warmup_init": FLAG,
            "eps1": EPS1,
            "eps2": EPS2,
            "foreach": (None, *FLAG),
            "cautious": (False,),
        },
    )
    kwargs["momentum_dtype"] = chosen(rng, ("float32", "bfloat16", "float16"))
    return kwargs | given(rng, {"lr": (None, *LR) if kwargs.get("relative_step", True) else LR})


def optax(rng: Random) -> Arguments:
    return given(
        rng,
        {
            "learning_rate": (None, *ANY_LR, lambda r: Decay(float(10.0 ** r.uniform(-4, 0)), float(r.uniform(0, 2)))),
            "min_dim_size_to_factor": MIN_DIM,
            "decay_rate": EXPONENT,
            "decay_offset": (0, -1, -3),
            "multiply_by_parameter_scale": TRUTH,
            "clipping_threshold": (None, *CLIP),
            "momentum": BETA1,
            "dtype_momentum": (None, "float32", "bfloat16", "float16"),
            "weight_decay_rate": (None, *DECAY),
            "eps": EPS1,
            "factored": TRUTH,
        },
    )


def keras(rng: Random) -> Arguments:
    return given(
        rng,
        {
            "learning_rate": (*ANY_LR, lambda r: Decay(float(10.0 ** r.uniform(-4, 0)), float(r.uniform(0, 2)))),
            "beta_2_decay": MINUS_EXPONENT,
            "epsilon_1": EPS1,
            "epsilon_2": ANY_EPS2,
            "clip_threshold": CLIP,
            "relative_step": FLAG,
            "weight_decay": (None, *DECAY),
            "use_ema": (False,),
            "ema_momentum": (0.99, 0.5),
            "ema_overwrite_frequency": (None, 2),
            "name": (None, "another"),
        },
    )
