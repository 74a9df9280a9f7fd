from typing import Any

from .._recipe import Recipe
from ..dtypes import name_of
from ..errors import is_number, refuse_unknown_keywords
from ..factoring import largest_two, leading_or_last_two
from ..schedules import ScalarOrSchedule, linear_warmup, power_decay
from ._arguments import (
    ORIGINAL,
    check_beta1,
    check_cap,
    check_decay,
    check_eps1,
    check_exponent,
    check_flags,
    check_items,
    check_lr,
    check_min_dim,
    check_offset,
    check_optional_lr,
    check_scale,
    check_threshold,
    not_reproduced,
    original_refuses,
)

_CAUTION = ("The mask of cautious optimizers is no part of the definition.", "Leave caution out.")


@refuse_unknown_keywords(
    {"relative_step": "timm's is relative when no lr is given.", "beta1": "Use betas=(beta1, 0.999)."}
)
def timm(
    lr: ScalarOrSchedule | None = None,
    eps: float = 1e-30,
    eps_scale: float = 1e-3,
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    betas: tuple[float, float] | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    warmup_init: bool = False,
    min_dim_size_to_factor: int = 16,
    caution: bool = False,
) -> Recipe:
    """timm.optim.Adafactor.

    What to know of the original: an lr that is given switches off both the relative step and the parameter scale, so
    scale_parameter matters only without one. Of betas only the first is used. Axes 0 and 1 of a convolution are
    factored if both are longer than min_dim_size_to_factor (not equal to it), else the last two if both are.

    Args:
        lr: a number or a function of t; None for the relative step min(1e-2, t^-1/2).
        eps: added to g^2.
        eps_scale: smallest parameter scale.
        clip_threshold: of RMS(u); inf and negative ones are off.
        decay_rate: minus the exponent of beta2_t = 1 - t^decay_rate.
        betas: (decay of an average of the step, no effect), the second may be left out; None is off.
        weight_decay: times the step size, the scale included.
        scale_parameter: multiply by max(eps_scale, RMS(p)), without an lr only.
        warmup_init: the relative step grows from 1e-6: min(1e-6 t, t^-1/2).
        min_dim_size_to_factor: exclusive.
        caution: must be False, unless betas is None, where it has no effect.

    Source: timm 1.0.31, timm/optim/adafactor.py.
    """
    flags = check_flags(scale_parameter=scale_parameter, warmup_init=warmup_init, caution=caution)
    scale_parameter, warmup_init, caution = flags
    lr = check_optional_lr("lr", lr)
    if lr is not None and warmup_init:
        remedy = "timm refuses both together: leave warmup_init out, and warm lr up with a schedule."
        raise original_refuses("warmup_init", "False with an lr", warmup_init, remedy)
    beta1 = None if betas is None else check_items("betas", betas, "that begins with beta1", least=1)[0]
    beta1 = check_beta1("betas[0]", beta1)
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor, exclusive=True)
    if caution and beta1 is not None:
        raise not_reproduced("caution", "False with betas", caution, *_CAUTION)
    relative = linear_warmup(1.0, steps=1_000_000) if warmup_init else 1e-2
    return Recipe(
        lr=relative if lr is None else lr,
        relative_step=lr is None,
        multiply_by_parameter_scale=lr is None and scale_parameter,
        eps2=check_scale("eps_scale", eps_scale),
        beta2=power_decay(check_exponent("decay_rate", decay_rate, minus=True)),
        factoring=leading_or_last_two(min_dim),
        eps1=check_eps1("eps", eps),
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=False),
        beta1=beta1,
        momentum_of="step",
        weight_decay=check_decay("weight_decay", weight_decay),
        weight_decay_by="step",
    )


@refuse_unknown_keywords({"betas": "Use momentum and beta2_cap.", "beta1": "Use momentum."})
def timm_big_vision(
    lr: ScalarOrSchedule = 1.0,
    min_dim_size_to_factor: int = 16,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    beta2_cap: float = 0.999,
    momentum: float | None = 0.9,
    momentum_dtype: Any = "bfloat16",
    eps: float | None = None,
    weight_decay: float = 0.0,
    clipping_threshold: float | None = None,
    unscaled_wd: bool = False,
    caution: bool = False,
    corrected_weight_decay: bool = False,
) -> Recipe:
    """timm.optim.AdafactorBigVision, timm 1.0.31.

    What to know of the original: momentum averages the update, before the learning rate, and a bfloat16 momentum is
    applied as it was rounded. The decay is weight_decay times lr, or times nothing with unscaled_wd; with
    corrected_weight_decay lr_t^2 / lr and lr_t / lr stand in their places, where lr is the constructor's argument, the
    peak, and lr_t the value in force. timm 1.0.29 took a wrong mean in most matrices, clipped upside down and ignored
    decay_offset; that is not reproduced.

    Args:
        lr: a number, the peak where a schedule goes on from it; or a function of t.
        min_dim_size_to_factor: inclusive; the two largest axes, of equally long ones the last.
        decay_rate: exponent of beta2_t = min(beta2_cap, 1 - t^-decay_rate).
        decay_offset: subtracted from t in beta2_t, which is 0 until t exceeds it.
        beta2_cap: beta2 never exceeds it; more than 1 is 1.
        momentum: decay of an average of the update, None is off.
        momentum_dtype: its storage dtype.
        eps: added to g^2; None is 1e-30. (The original's 1e-7 for float16 gradients has to be given.)
        weight_decay: see above.
        clipping_threshold: of RMS(u), None and negative ones are off.
        unscaled_wd: the decay is not multiplied by lr.
        caution: must be False, unless momentum is None, where it has no effect.
        corrected_weight_decay: needs a positive number for lr. The recipe's field weight_decay is then
            weight_decay / lr: a parameter group that overrides it has to divide, too, or names a recipe of its own.

    Source: timm 1.0.31, timm/optim/adafactor_bv.py.
    """
    flags = check_flags(unscaled_wd=unscaled_wd, caution=caution, corrected_weight_decay=corrected_weight_decay)
    unscaled_wd, caution, corrected_weight_decay = flags
    lr = check_lr("lr", lr, ORIGINAL)
    exponent = check_exponent("decay_rate", decay_rate, minus=False)
    offset = check_offset("decay_offset", decay_offset)
    cap = check_cap("beta2_cap", beta2_cap)
    weight_decay = check_decay("weight_decay", weight_decay, ORIGINAL)
    if caution and momentum is not None:
        raise not_reproduced("caution", "False with a momentum", caution, *_CAUTION)
    by: Any = "one" if unscaled_wd else "lr"
    if corrected_weight_decay:
        if not is_number(lr) or lr <= 0:
            remedy = "Give the peak here and the schedule to the optimizer, adafactor(learning_rate=..., recipe=...)."
            raise original_refuses("lr", "a positive number with corrected_weight_decay=True", lr, remedy)
        weight_decay, by = weight_decay / lr, "lr" if unscaled_wd else 2
    return Recipe(
        lr=lr,
        relative_step=False,
        multiply_by_parameter_scale=False,
        beta2=power_decay(exponent, cap=cap, offset=offset),
        factoring=largest_two(check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)),
        eps1=1e-30 if eps is None else check_eps1("eps", eps),
        clipping_threshold=check_threshold("clipping_threshold", clipping_threshold, optional=True),
        beta1=check_beta1("momentum", momentum),
        momentum_of="update",
        momentum_dtype=name_of(momentum_dtype, "momentum_dtype"),
        momentum_rounding="use",
        weight_decay=weight_decay,
        weight_decay_by=by,
        state_dtype="param",
    )
