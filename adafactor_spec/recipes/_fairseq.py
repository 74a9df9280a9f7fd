from collections.abc import Sequence

from .._recipe import Recipe
from ..errors import refuse_unknown_keywords
from ..schedules import ScalarOrSchedule, linear_warmup, power_decay, product
from ._arguments import (
    check_beta1,
    check_decay,
    check_eps1,
    check_exponent,
    check_flag,
    check_flags,
    check_items,
    check_optional_lr,
    check_scale,
    check_threshold,
    not_reproduced,
    original_refuses,
)

_REMEDIES = {
    "betas": "Use beta1; there is no beta2 but decay_rate.",
    "beta2": "Use decay_rate.",
    "eps1": "Use eps=(eps1, eps2).",
    "eps2": "Use eps=(eps1, eps2).",
    "learning_rate": "Use lr.",
    "clipping_threshold": "Use clip_threshold.",
}


@refuse_unknown_keywords(_REMEDIES)
def transformers(
    lr: ScalarOrSchedule | None = None,
    eps: Sequence[float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Recipe:
    """transformers.Adafactor.

    What to know of the original: relative_step=True, the default, takes no lr: the step size is then
    min(1e-2, t^-1/2), or min(1e-6 t, t^-1/2) with warmup_init, and with scale_parameter times max(eps[1], RMS(p)). With
    relative_step=False and scale_parameter=True the lr that you give is multiplied by that scale as well; only
    scale_parameter=False makes it the step itself. The decay follows the whole step size; momentum averages the
    finished step.

    Args:
        lr: a number or a function of t, only with relative_step=False.
        eps: (added to g^2, smallest parameter scale); what follows has no effect, nor has the second one without
            scale_parameter.
        clip_threshold: of RMS(u); inf and negative ones are off.
        decay_rate: minus the exponent of beta2_t = 1 - t^decay_rate.
        beta1: decay of an average of the step, None is off.
        weight_decay: times the step size, the scale included.
        scale_parameter: multiply by max(eps[1], RMS(p)).
        relative_step: the step size of the paper instead of lr.
        warmup_init: the relative step grows from 1e-6; needs relative_step.

    Source: transformers 5.23.0, src/transformers/optimization.py.
    """
    return _recipe(
        "transformers",
        lr,
        eps,
        clip_threshold,
        decay_rate,
        beta1,
        weight_decay,
        scale_parameter,
        relative_step,
        warmup_init,
    )


@refuse_unknown_keywords(_REMEDIES)
def kohya(
    lr: ScalarOrSchedule | None = None,
    eps: Sequence[float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Recipe:
    """transformers.Adafactor as kohya's sd-scripts patches it for a fused backward pass.

    What to know of the original: the arithmetic and the arguments are those of `transformers`, one parameter at a time.
    What the patch adds is the rounding: bfloat16 parameters are written back with stochastic rounding. A recipe does
    not say how a parameter is rounded.

    Args:
        lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter, relative_step, warmup_init: as in
            `transformers`.

    Source: kohya-ss/sd-scripts at 48d368f, library/adafactor_fused.py.
    """
    return transformers(
        lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter, relative_step, warmup_init
    )


@refuse_unknown_keywords(_REMEDIES)
def fairseq(
    lr: ScalarOrSchedule | None = None,
    eps: Sequence[float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Recipe:
    """fairseq's Adafactor.

    What to know of the original: as `transformers`, which was made from it, but it writes the scaled step size back as
    the learning rate. With scale_parameter=True and relative_step=False the next parameter and the next step multiply
    it again, so that it shrinks towards 0; that setting is refused here.

    Args:
        lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter, relative_step, warmup_init: as in
            `transformers`.

    Source: facebookresearch/fairseq at 3d262bb, fairseq/optim/adafactor.py.
    """
    recipe = _recipe(
        "fairseq", lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter, relative_step, warmup_init
    )
    if recipe.multiply_by_parameter_scale and not recipe.relative_step:
        why = "The original multiplies its lr by RMS(p) again with every parameter and step."
        remedy = "Use scale_parameter=False, or recipes.transformers, which scales once."
        raise not_reproduced("scale_parameter", "False with relative_step=False", scale_parameter, why, remedy)
    return recipe


@refuse_unknown_keywords(_REMEDIES)
def colossalai(
    lr: ScalarOrSchedule | None = None,
    eps: Sequence[float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Recipe:
    """ColossalAI's Adafactor.

    What to know of the original: the constructor sets lr to None whatever is given, so it has no effect, and
    relative_step=False fails at the first step. RMS(p) is never computed: scale_parameter=True multiplies the relative
    step by the constant eps[1], which makes it at most 1e-5 by default, however large the weights are. Its distributed
    form adds up column statistics over another process group than the one that shards them; that is not reproduced.

    Args:
        lr: no effect.
        eps: (added to g^2, the constant in place of the parameter scale).
        scale_parameter: multiply by eps[1].
        relative_step: must be True.
        clip_threshold, decay_rate, beta1, weight_decay, warmup_init: as in `transformers`.

    Source: hpcaitech/ColossalAI at 4f9953b, colossalai/nn/optimizer/adafactor.py.
    """
    if not check_flag("relative_step", relative_step):
        why = "The original sets lr to None and fails at its first step."
        raise original_refuses("relative_step", "True", relative_step, f"{why} recipes.transformers takes an lr.")
    recipe = _recipe(
        "ColossalAI",
        None,
        eps,
        clip_threshold,
        decay_rate,
        beta1,
        weight_decay,
        scale_parameter,
        relative_step,
        warmup_init,
    )
    fields = vars(recipe) | {"multiply_by_parameter_scale": False}
    if recipe.multiply_by_parameter_scale:
        fields |= {"lr": product(recipe.eps2, recipe.rho), "relative_step": False}
    return Recipe(**fields)


def _base(warmup_init: bool) -> ScalarOrSchedule:
    return linear_warmup(1.0, steps=1_000_000) if warmup_init else 1e-2


def _recipe(
    original: str,
    lr: ScalarOrSchedule | None,
    eps: Sequence[float],
    clip_threshold: float,
    decay_rate: float,
    beta1: float | None,
    weight_decay: float,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
) -> Recipe:
    flags = check_flags(scale_parameter=scale_parameter, relative_step=relative_step, warmup_init=warmup_init)
    scale_parameter, relative_step, warmup_init = flags
    if lr is not None and relative_step:
        remedy = f"{original} refuses both together: add relative_step=False to use this lr, or leave lr out."
        raise original_refuses("lr", "None with relative_step=True", lr, remedy)
    if lr is None and not relative_step:
        remedy = f"{original} fails at its first step without one: give lr."
        raise original_refuses("lr", "a number with relative_step=False", lr, remedy)
    lr = check_optional_lr("lr", lr)
    if warmup_init and not relative_step:
        remedy = f"{original} refuses both together: leave warmup_init out, and warm lr up with a schedule."
        raise original_refuses("warmup_init", "False with relative_step=False", warmup_init, remedy)
    what = "of what is added to g^2 and the smallest parameter scale"
    eps1, *scale = check_items("eps", eps, what, least=2 if scale_parameter else 1)
    return Recipe(
        lr=_base(warmup_init) if lr is None else lr,
        relative_step=relative_step,
        multiply_by_parameter_scale=scale_parameter,
        eps2=check_scale("eps[1]", scale[0]) if scale_parameter else 1e-3,
        beta2=power_decay(check_exponent("decay_rate", decay_rate, minus=True)),
        eps1=check_eps1("eps[0]", eps1),
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=False),
        beta1=check_beta1("beta1", beta1),
        momentum_of="step",
        weight_decay=check_decay("weight_decay", weight_decay),
        weight_decay_by="step",
    )
