from typing import Any, Literal

from .._recipe import Recipe
from ..dtypes import name_of
from ..errors import refuse_unknown_keywords
from ..schedules import ScalarOrSchedule, linear_warmup, power_decay
from ._arguments import (
    ORIGINAL,
    check_beta1,
    check_decay,
    check_eps1,
    check_exponent,
    check_flags,
    check_optional_lr,
    check_pair,
    check_range,
    check_threshold,
    not_a_recipes,
    original_refuses,
    unsupported,
)


@refuse_unknown_keywords({"eps": "Use eps1 and eps2.", "beta1": "Use betas=(beta1, 0.999).", "beta2": "Use betas."})
def pytorch_optimizer(
    lr: ScalarOrSchedule | None = 1e-3,
    betas: tuple[float | None, float] = (0.9, 0.999),
    decay_rate: float = -0.8,
    weight_decay: float = 0.0,
    weight_decouple: bool = True,
    fixed_decay: bool = False,
    clip_threshold: float = 1.0,
    ams_bound: bool = False,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    momentum_dtype: Any = "bfloat16",
    foreach: bool | None = None,
    maximize: bool = False,
    cautious: bool = False,
) -> Recipe:
    """pytorch_optimizer.AdaFactor, version 4.1.

    What to know of the original: relative_step=True is the default, and then lr has no effect: the step size is
    min(1e-2, t^-1/2) * max(eps2, RMS(p)). betas[1] is a cap on beta2_t, not a constant. Momentum is on by default, of
    the finished step, in bfloat16, and applied as it was rounded. The decay is weight_decay times the whole step size,
    or times nothing with fixed_decay. ams_bound takes a fourth root with a wrong correction and is refused here.
    Version 3.9 clipped upside down and overwrote its column statistics; that is not reproduced.

    Args:
        lr: a number or a function of t, used with relative_step=False only.
        betas: (decay of an average of the step or None for off, cap of beta2).
        decay_rate: minus the exponent of beta2_t = min(betas[1], 1 - t^decay_rate).
        weight_decay: see above.
        weight_decouple: False adds weight_decay * p to the gradient (L2).
        fixed_decay: the decay is not multiplied by the step size.
        clip_threshold: of RMS(u); inf and negative ones are off.
        ams_bound: must be False.
        scale_parameter: multiply by max(eps2, RMS(p)).
        relative_step: the step size of the paper instead of lr.
        warmup_init: the relative step grows from 1e-6: min(1e-6 t, t^-1/2); no effect with relative_step=False.
        eps1: added to g^2; with a float16 momentum the original takes 1e-7 whatever is given, and so does this.
        eps2: smallest parameter scale.
        momentum_dtype: storage dtype of the momentum.
        foreach: no effect.
        maximize: belongs to the optimizer: adafactor_torch.Adafactor(..., maximize=True).
        cautious: must be False.

    Source: pytorch_optimizer 4.1.0, pytorch_optimizer/optimizer/adafactor.py.
    """
    flags = {"weight_decouple": weight_decouple, "fixed_decay": fixed_decay, "ams_bound": ams_bound}
    flags |= {"scale_parameter": scale_parameter, "relative_step": relative_step, "warmup_init": warmup_init}
    plain = check_flags(**flags, cautious=cautious, maximize=maximize)
    weight_decouple, fixed_decay, ams_bound, scale_parameter, relative_step, warmup_init, cautious, maximize = plain
    why = "The original takes the root of a root and divides by 1 - beta2_t."
    unsupported("ams_bound", ams_bound, False, why, "amsgrad=True in the optimizer is the usual running maximum.")
    why = "The mask of cautious optimizers is no part of the definition."
    unsupported("cautious", cautious, False, why, "Leave cautious out.")
    not_a_recipes("maximize", maximize, False, "Pass maximize=True to adafactor_torch.Adafactor.")
    lr = check_optional_lr("lr", lr, ORIGINAL)
    if lr is None and not relative_step:
        raise original_refuses("lr", "a number with relative_step=False", lr, "It fails without one: give lr.")
    beta1, cap = check_pair("betas", betas, "(beta1 or None, cap of beta2)")
    beta1 = check_beta1("betas[0]", beta1, ORIGINAL)
    cap = check_range("betas[1]", cap, ORIGINAL, at_least=0, below=1)
    exponent = check_exponent("decay_rate", decay_rate, minus=True)
    eps1 = check_eps1("eps1", eps1, refused=True)
    dtype = name_of(momentum_dtype, "momentum_dtype")
    relative = linear_warmup(1.0, steps=1_000_000) if warmup_init else 1e-2
    by: Literal["step", "one", "grad"] = "grad" if not weight_decouple else "one" if fixed_decay else "step"
    return Recipe(
        lr=relative if relative_step or lr is None else lr,
        relative_step=relative_step,
        multiply_by_parameter_scale=scale_parameter,
        eps2=check_range("eps2", eps2, ORIGINAL, at_least=0),
        beta2=power_decay(exponent, cap=cap),
        eps1=1e-7 if dtype == "float16" else eps1,
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=False),
        beta1=beta1,
        momentum_of="step",
        momentum_dtype=dtype,
        momentum_rounding="use",
        weight_decay=check_decay("weight_decay", weight_decay, ORIGINAL),
        weight_decay_by=by,
        state_dtype="param",
    )
