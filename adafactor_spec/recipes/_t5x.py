from collections.abc import Mapping, Sequence
from typing import Any

from .._names import per_name
from .._recipe import Recipe
from ..dtypes import name_of
from ..errors import is_number, plain_number, refuse_unknown_keywords, shown
from ..factoring import Rule, largest_two, no_factoring
from ..schedules import ScalarOrSchedule, power_decay
from ._arguments import (
    GROWS,
    attribute,
    check_beta1,
    check_eps1,
    check_exponent,
    check_flag,
    check_flags,
    check_min_dim,
    check_offset,
    check_optional,
    check_range,
    check_scale,
    check_threshold,
    is_off,
    of_count,
    pairs_of,
    unsupported,
)
from ._t5x_factoring import factoring_of

_REMEDIES = {
    "lr": "Use learning_rate.",
    "eps": "Use epsilon1 and epsilon2.",
    "decay_offset": "Use step_offset.",
    "momentum": "Use beta1.",
    "weight_decay": "Use weight_decay_rate.",
}


@refuse_unknown_keywords(_REMEDIES)
def flax(
    learning_rate: ScalarOrSchedule | None = None,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    dtype_momentum: Any = "float32",
) -> Recipe:
    """flax.optim.Adafactor, the one before flax left its optimizers to optax.

    What to know of the original: it has no default learning rate. The decay is not multiplied by the learning rate.
    Momentum averages the finished step; a bfloat16 momentum is multiplied by beta1 in bfloat16, where 0.9 is 0.8984. A
    fresh run with a positive step_offset gives NaN there, and beta2 = 0 up to the offset here.

    Args:
        learning_rate: a number, or a function of the step that counts from 0; None: the optimizer must be given one.
        factored: False keeps the second moment whole.
        multiply_by_parameter_scale: multiply by max(epsilon2, RMS(p)).
        beta1: decay of an average of the step, None is off.
        decay_rate: exponent of beta2_t = 1 - t^-decay_rate.
        step_offset: subtracted from t in beta2_t.
        clipping_threshold: of RMS(u), None and negative ones are off.
        weight_decay_rate: times p, not times the learning rate; None is off.
        min_dim_size_to_factor: factor where the second largest axis has at least this many elements.
        epsilon1: added to g^2.
        epsilon2: smallest parameter scale.
        dtype_momentum: storage dtype of the momentum, None is float32.

    Source: google/flax at 47418b3, flax/optim/adafactor.py.
    """
    factored, scaled = check_flags(factored=factored, multiply_by_parameter_scale=multiply_by_parameter_scale)
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    return _recipe(
        learning_rate,
        factoring=largest_two(min_dim) if factored else no_factoring,
        scaled=scaled,
        beta1=beta1,
        decay_rate=decay_rate,
        step_offset=step_offset,
        clipping_threshold=clipping_threshold,
        weight_decay_rate=weight_decay_rate,
        epsilon1=epsilon1,
        epsilon2=epsilon2,
        dtype_momentum=dtype_momentum,
    )


@refuse_unknown_keywords(_REMEDIES)
def t5x(
    learning_rate: ScalarOrSchedule | None = None,
    factored: bool = True,
    multiply_by_parameter_scale: bool | Any = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    dtype_momentum: Any = "float32",
    factor_map: Any = None,
    logical_factor_rules: Mapping[str, Any] | str | None = None,
    weight_decay_rate_lr_exponent: float | None = None,
    global_norm_clip_threshold: None = None,
    max_parameter_scale: float | None = None,
    skip_nan_updates: bool = False,
    *,
    param_logical_axes: Mapping[str, Sequence[str]] | None = None,
) -> Recipe:
    """t5x.adafactor.Adafactor.

    What to know of the original: as `flax`, with a role for every axis: ROW, COLUMN, BATCH (factors, RMS(p) and RMS(u)
    per index of it) or NONE. Several axes may be rows or columns. A rule for at most two axes without BATCH is ignored:
    those are factored by size, as in flax. More than two axes need a rule, and are refused without one.

    With weight_decay_rate_lr_exponent e the decay is weight_decay_rate (1 where it is None or 0) times lr^e. A size-1
    batch axis and a missing one are the same.

    Args:
        learning_rate: a number, or a function of the step that counts from 0; None: the optimizer must be given one.
        factored: False keeps the second moment whole, RMS(p) and RMS(u) over the whole tensor.
        multiply_by_parameter_scale: a bool, or one for each pattern: an HParamMap, pairs (regular expression, bool) or
            a dict; the first pattern found in a name decides, and a name that none is found in is refused.
        beta1, decay_rate, step_offset, clipping_threshold, weight_decay_rate, min_dim_size_to_factor, epsilon1,
            epsilon2, dtype_momentum: as in `flax`.
        factor_map: the roles of the axes by name: an HParamMap, pairs (regular expression, roles) or a dict. In place
            of the roles None is not factored, and "HEURISTIC_RULE" by size.
        logical_factor_rules: {logical axis: role}, or "standard" or "moe" for T5X's own. They need
            `param_logical_axes` and then come before factor_map.
        weight_decay_rate_lr_exponent: see above.
        global_norm_clip_threshold: must be None, or 0 or negative, which is off.
        max_parameter_scale: largest parameter scale, also where epsilon2 is larger.
        skip_nan_updates: must be False.
        param_logical_axes: what T5X's set_param_axes is given: {regular expression for a whole name: logical axes}.

    Source: google-research/t5x at cc342d4, t5x/adafactor.py; t5x/contrib/moe/adafactor_utils.py for "moe".
    """
    factored, skip_nan_updates = check_flags(factored=factored, skip_nan_updates=skip_nan_updates)
    scaled: Any = multiply_by_parameter_scale
    if isinstance(attribute(scaled, "_rules"), Mapping | list | tuple):
        pairs = pairs_of("multiply_by_parameter_scale", scaled)
        scaled = per_name(
            {name: check_flag(f"multiply_by_parameter_scale[{shown(name)}]", own) for name, own in pairs.items()}
        )
    else:
        scaled = check_flag("multiply_by_parameter_scale", scaled)
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    grows = "With a negative one the original's decay grows as the learning rate falls, beyond all bounds at 0."
    exponent = check_optional("weight_decay_rate_lr_exponent", weight_decay_rate_lr_exponent, grows, at_least=0)
    decay = check_optional("weight_decay_rate", weight_decay_rate, GROWS, at_least=0)
    clip = "optax.clip_by_global_norm or torch.nn.utils.clip_grad_norm_ before the step does it."
    norm = plain_number(global_norm_clip_threshold)
    off = global_norm_clip_threshold is None or (is_number(norm) and norm <= 0)
    unsupported(
        "global_norm_clip_threshold", None if off else global_norm_clip_threshold, None, "It couples parameters.", clip
    )
    why = "Skipping single NaN elements is no part of the definition."
    unsupported("skip_nan_updates", skip_nan_updates, False, why, "optax.apply_if_finite skips whole steps.")
    factoring = factoring_of(factored, factor_map, logical_factor_rules, param_logical_axes, min_dim)
    follows_lr = not is_off(exponent)
    return _recipe(
        learning_rate,
        factoring=factoring,
        scaled=scaled,
        beta1=beta1,
        decay_rate=decay_rate,
        step_offset=step_offset,
        clipping_threshold=clipping_threshold,
        weight_decay_rate=1.0 if follows_lr and is_off(decay) else decay,
        weight_decay_by=exponent if follows_lr else "one",
        epsilon1=epsilon1,
        epsilon2=epsilon2,
        max_parameter_scale=max_parameter_scale,
        dtype_momentum=dtype_momentum,
    )


def _recipe(
    learning_rate: ScalarOrSchedule | None,
    *,
    factoring: Rule,
    scaled: bool | per_name,
    beta1: float | None,
    decay_rate: float,
    step_offset: int,
    clipping_threshold: float | None,
    weight_decay_rate: float | None,
    epsilon1: float,
    epsilon2: float,
    dtype_momentum: Any,
    weight_decay_by: Any = "one",
    max_parameter_scale: float | None = None,
) -> Recipe:
    exponent = check_exponent("decay_rate", decay_rate, minus=False)
    decay = check_optional("weight_decay_rate", weight_decay_rate, GROWS, at_least=0)
    least, most = check_scale("epsilon2", epsilon2), max_parameter_scale
    if most is not None:
        why = "The original multiplies every step by it where RMS(p) is larger."
        most = check_range("max_parameter_scale", most, why, above=0)
        if is_number(least) and is_number(most):  # the original takes the smaller one last
            least = min(least, most)
    return Recipe(
        lr=of_count("learning_rate", learning_rate),
        relative_step=False,
        multiply_by_parameter_scale=scaled,
        eps2=least,
        max_parameter_scale=most,
        beta2=power_decay(exponent, offset=check_offset("step_offset", step_offset)),
        factoring=factoring,
        eps1=check_eps1("epsilon1", epsilon1),
        clipping_threshold=check_threshold("clipping_threshold", clipping_threshold, optional=True),
        beta1=check_beta1("beta1", beta1),
        momentum_of="step",
        momentum_dtype="float32" if dtype_momentum is None else name_of(dtype_momentum, "dtype_momentum"),
        momentum_rounding="decay",
        weight_decay=0.0 if decay is None else decay,
        weight_decay_by=weight_decay_by,
    )
