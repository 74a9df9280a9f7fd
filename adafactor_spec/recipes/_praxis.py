from collections.abc import Mapping, Sequence
from typing import Any

from .._names import per_name
from .._recipe import Recipe
from ..dtypes import name_of, spelled
from ..errors import check_choice, is_number, plain_number, plain_text, refusal, refuse_unknown_keywords
from ..factoring import largest_two, last_two, limited, no_factoring
from ..schedules import ScalarOrSchedule, adam_decay, power_decay
from ._arguments import (
    NO_AVERAGE,
    ORIGINAL,
    check_beta1,
    check_decay,
    check_eps1,
    check_flags,
    check_min_dim,
    check_range,
    check_scale,
    check_threshold,
    is_off,
    not_reproduced,
    of_count,
    original_refuses,
    pairs_of,
    unsupported,
)

_INTEGERS = ("int8", "int16")


@refuse_unknown_keywords(
    {
        "lr": "Use learning_rate_fn.",
        "learning_rate": "Use learning_rate_fn.",
        "epsilon1": "Use epsilon1_grad_sq_reg.",
        "epsilon2": "Use epsilon2_param_scale_reg.",
        "clipping_threshold": "Use clip_threshold.",
    }
)
def praxis(
    learning_rate_fn: ScalarOrSchedule | None = None,
    weight_decay: float | Mapping[str, float] | None = None,
    layerwise_adaptation: bool = False,
    exclude_from_layerwise_adaptation: Sequence[str] | None = None,
    decay_method: str = "",
    decay_adam: float = 0.0,
    decay_pow: float = 0.0,
    beta1: float = 0.0,
    clip_threshold: float | None = 1.0,
    factored: bool = True,
    epsilon1_grad_sq_reg: float = 1e-30,
    quantized_dtype: Any = "int8",
    respect_skip_lp_regularization: bool = False,
    per_var_learning_summary: bool = False,
    sort_factored_second_moment_dims: bool = False,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = False,
    epsilon2_param_scale_reg: float = 1e-3,
    maybe_inf_to_nan: bool = True,
    name: str = "",
) -> Recipe:
    """praxis' ShardedAdafactor. (praxis.Adafactor is optax's: use `optax`.)

    What to know of the original: decay_method has no usable default, and the momentum is an int8 by default, which is
    refused here: give quantized_dtype. The parameter scale is off by default, and the decay follows the learning rate
    without it. With sort_factored_second_moment_dims a tensor of more than two axes may be divided by a mean over the
    wrong axis; such shapes are refused. Infinities in the gradient become NaN there and stay infinities here.

    Args:
        learning_rate_fn: a function of the step that counts from 0, or a number; None: the optimizer must be given one.
        weight_decay: times the learning rate: a number, or {regular expression that a name begins with: number}, of
            which the last that fits counts; None is off.
        layerwise_adaptation: must be False.
        decay_method: "pow" for beta2_t = 1 - t^-decay_pow, "adam" for section 7.1's decay of decay_adam.
        decay_adam, decay_pow: see decay_method.
        beta1: decay of an average of the step, 0 and None are off.
        clip_threshold: of RMS(u), None and negative ones are off.
        factored: False keeps the second moment whole.
        epsilon1_grad_sq_reg: added to g^2.
        quantized_dtype: storage dtype of the momentum: bfloat16, float32 or (here) float64 where there is a momentum.
        respect_skip_lp_regularization: must be False with a weight_decay, as the original asserts.
        sort_factored_second_moment_dims: factor the two largest axes, the first of equally long ones; else the
            last two.
        min_dim_size_to_factor: only with sort_factored_second_moment_dims.
        multiply_by_parameter_scale: multiply by max(epsilon2_param_scale_reg, RMS(p)).
        epsilon2_param_scale_reg: smallest parameter scale.
        exclude_from_layerwise_adaptation, per_var_learning_summary, maybe_inf_to_nan, name: no effect.

    Source: google/praxis at feeaff1, praxis/optimizers.py.
    """
    layerwise_adaptation, factored, respect_skip_lp_regularization, by_size, scales = check_flags(
        layerwise_adaptation=layerwise_adaptation,
        factored=factored,
        respect_skip_lp_regularization=respect_skip_lp_regularization,
        sort_factored_second_moment_dims=sort_factored_second_moment_dims,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
    )
    lamb = "LAMB's ratio is no part of the definition."
    unsupported("layerwise_adaptation", layerwise_adaptation, False, lamb, "Use optax.scale_by_trust_ratio.")
    decay = _weight_decay(weight_decay)
    if respect_skip_lp_regularization and not is_off(decay) and decay != per_name({}, default=0.0):
        remedy = "The original asserts it: give weight_decay by name, or a weight_decay_mask."
        must = "False with a weight_decay"
        raise original_refuses("respect_skip_lp_regularization", must, respect_skip_lp_regularization, remedy)
    remedy = "The original has no default: give decay_method='pow' with decay_pow=0.8, or 'adam' with decay_adam."
    if plain_text(decay_method) == "":
        raise original_refuses("decay_method", "'pow' or 'adam'", decay_method, remedy)
    beta2: ScalarOrSchedule
    if check_choice("decay_method", decay_method, ("pow", "adam")) == "adam":
        why = ORIGINAL if _is_not_positive(decay_adam) else NO_AVERAGE
        beta2 = adam_decay(check_range("decay_adam", decay_adam, why, above=0, below=1))
    else:
        beta2 = power_decay(check_range("decay_pow", decay_pow, ORIGINAL, above=0, remedy="0.8 in the paper."))
    average = check_beta1("beta1", beta1, remedy="0 switches the first moment off.")
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    sorted_or_last = limited(largest_two(min_dim, ties="first"), rows_last=True) if by_size else last_two
    return Recipe(
        lr=of_count("learning_rate_fn", learning_rate_fn),
        relative_step=False,
        multiply_by_parameter_scale=scales,
        eps2=check_scale("epsilon2_param_scale_reg", epsilon2_param_scale_reg),
        beta2=beta2,
        factoring=sorted_or_last if factored else no_factoring,
        eps1=check_eps1("epsilon1_grad_sq_reg", epsilon1_grad_sq_reg),
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=True),
        beta1=None if is_off(average) else average,
        momentum_of="step",
        momentum_dtype=_momentum_dtype(quantized_dtype, averages=not is_off(average)),
        weight_decay=decay,
        weight_decay_by="lr",
    )


def _is_not_positive(number: Any) -> bool:
    plain = plain_number(number)
    return is_number(plain) and plain <= 0


def _momentum_dtype(dtype: Any, *, averages: bool) -> str | None:
    name = spelled(dtype)
    if name in _INTEGERS and averages:
        why = "A momentum in integers has a scale for each column."
        must = "'bfloat16' or 'float32' where beta1 is not 0"
        raise not_reproduced("quantized_dtype", must, name, why, "Give 'bfloat16'.")
    if name in _INTEGERS:
        return None
    named = name_of(dtype, "quantized_dtype")
    if named == "float16":
        raise refusal("quantized_dtype", "one of int8, int16, bfloat16, float32, float64", dtype)
    return named if averages else None


def _weight_decay(weight_decay: float | Mapping[str, float] | None) -> Any:
    if not isinstance(weight_decay, Mapping):
        return 0.0 if weight_decay is None else check_decay("weight_decay", weight_decay)
    pairs = pairs_of("weight_decay", weight_decay)
    checked = {pattern: check_decay("weight_decay", value) for pattern, value in pairs.items()}
    return per_name({rf"\A(?:{pattern})": value for pattern, value in reversed(checked.items())}, default=0.0)
