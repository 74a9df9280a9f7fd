from typing import Any

from .._recipe import Recipe
from ..dtypes import name_of
from ..errors import refuse_unknown_keywords
from ..factoring import largest_two, no_factoring
from ..schedules import ScalarOrSchedule, power_decay
from ._arguments import (
    GROWS,
    check_beta1,
    check_eps1,
    check_exponent,
    check_flags,
    check_min_dim,
    check_offset,
    check_threshold,
    not_a_recipes,
    of_count,
)


@refuse_unknown_keywords({"lr": "optax calls it learning_rate.", "beta1": "optax calls it momentum."})
def optax(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: Any = "float32",
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: None = None,
) -> Recipe:
    """optax.adafactor.

    What to know of the original: learning_rate=None means no learning rate, so that a step is about as large as the
    whole parameter; a schedule is called with 0 at the first update; the decay is not multiplied by the learning rate;
    momentum averages the finished step. The original rounds beta2 to float32; a fresh run with a positive decay_offset
    gives NaN there, and beta2 = 0 up to the offset here.

    Args:
        learning_rate: a number, a schedule of optax's count (0 first), or None for 1.
        min_dim_size_to_factor: factor where the second largest axis has at least this many elements.
        decay_rate: exponent of beta2_t = 1 - t^-decay_rate.
        decay_offset: subtracted from t in beta2_t.
        multiply_by_parameter_scale: multiply by max(1e-3, RMS(p)).
        clipping_threshold: of RMS(u), None and negative ones are off.
        momentum: decay of an average of the step, None is off.
        dtype_momentum: its storage dtype, None is the parameter's; a 16-bit one is multiplied by the decay in 16 bits.
        weight_decay_rate: times p, not times the learning rate: a number or a schedule of optax's count; None is off.
        eps: added to g^2.
        factored: False keeps the second moment whole.
        weight_decay_mask: belongs to the optimizer: adafactor_jax.adafactor(..., weight_decay_mask=...).

    Source: optax 0.2.8, optax/_src/alias.py and optax/_src/factorized.py.
    """
    remedy = "Pass it to adafactor_jax.adafactor, or use parameter groups in torch."
    not_a_recipes("weight_decay_mask", weight_decay_mask, None, remedy)
    lr = of_count("learning_rate", learning_rate)
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    exponent = check_exponent("decay_rate", decay_rate, minus=False)
    offset = check_offset("decay_offset", decay_offset)
    scales, factored = check_flags(multiply_by_parameter_scale=multiply_by_parameter_scale, factored=factored)
    decay = of_count("weight_decay_rate", weight_decay_rate, GROWS)
    return Recipe(
        lr=1.0 if lr is None else lr,
        relative_step=False,
        multiply_by_parameter_scale=scales,
        beta2=power_decay(exponent, offset=offset),
        factoring=largest_two(min_dim) if factored else no_factoring,
        eps1=check_eps1("eps", eps),
        clipping_threshold=check_threshold("clipping_threshold", clipping_threshold, optional=True),
        beta1=check_beta1("momentum", momentum),
        momentum_of="step",
        momentum_dtype=None if dtype_momentum is None else name_of(dtype_momentum, "dtype_momentum"),
        momentum_rounding="decay",
        weight_decay=0.0 if decay is None else decay,
        weight_decay_by="one",
        state_dtype="param",
    )
