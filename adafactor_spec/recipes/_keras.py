import math

from .._recipe import Recipe
from ..errors import is_number, plain_number, refuse_unknown_keywords
from ..schedules import ScalarOrSchedule, check_schedule, power_decay
from ._arguments import (
    check_decay,
    check_eps1,
    check_exponent,
    check_flags,
    check_scale,
    check_threshold,
    of_count,
    original_refuses,
    unsupported,
)


@refuse_unknown_keywords({"lr": "keras calls it learning_rate.", "beta_1": "keras' Adafactor has no first moment."})
def keras(
    learning_rate: ScalarOrSchedule = 0.001,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3,
    clip_threshold: float = 1.0,
    relative_step: bool = True,
    weight_decay: float | None = None,
    clipnorm: None = None,
    clipvalue: None = None,
    global_clipnorm: None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: None = None,
    gradient_accumulation_steps: None = None,
    name: str | None = None,
) -> Recipe:
    """keras.optimizers.Adafactor.

    What to know of the original: its documentation lets relative_step=False switch the cap by t^-1/2 off; the code
    applies min(learning_rate, t^-1/2) either way, so the argument has no effect. The parameter scale cannot be switched
    off. The decay, learning_rate * weight_decay, comes before the step, and RMS(p) is taken of the decayed parameter.
    It keeps a reconstructed second moment of full size beside the factors, so it saves no memory; here it is not kept.

    Args:
        learning_rate: a number, or a schedule of keras' iterations (0 at the first update).
        beta_2_decay: minus the exponent of beta2_t = 1 - t^beta_2_decay.
        epsilon_1: added to g^2.
        epsilon_2: smallest parameter scale.
        clip_threshold: of RMS(u); inf and negative ones are off.
        relative_step: no effect.
        weight_decay: times learning_rate; None is off.
        clipnorm, clipvalue, global_clipnorm: must be None; one of them may be 0 or negative, which is off.
        loss_scale_factor: must be None or 1.
        gradient_accumulation_steps: must be None or 0.
        use_ema: must be False.
        ema_momentum, ema_overwrite_frequency, name: no effect.

    Source: keras 3.15.1, keras/src/optimizers/adafactor.py and base_optimizer.py.
    """
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    given = [argument for argument, value in clips.items() if value is not None]
    if len(given) > 1:
        raise original_refuses(given[1], f"None with {given[0]}", clips[given[1]], "keras takes one of them.")
    off = {argument: None if _is_number(value, at_most=0) else value for argument, value in clips.items()}
    factor = None if _is_number(loss_scale_factor, at_least=1, at_most=1) else loss_scale_factor
    steps = None if _is_number(gradient_accumulation_steps, at_least=0, at_most=0) else gradient_accumulation_steps
    if _is_number(steps, at_most=2) and not _is_number(steps, at_least=2):
        must = "None or a number of steps, at least 2"
        raise original_refuses("gradient_accumulation_steps", must, steps, "keras refuses it.")
    around = {**off, "loss_scale_factor": factor, "gradient_accumulation_steps": steps}
    why = "It works on the gradient before Adafactor sees it."
    remedy = "Do it before the optimizer: optax.clip_by_global_norm, optax.MultiSteps; torch.nn.utils.clip_grad_norm_."
    for argument, value in around.items():
        unsupported(argument, value, None, why, remedy)
    _, use_ema = check_flags(relative_step=relative_step, use_ema=use_ema)
    ema = "Use optax.ema or torch.optim.swa_utils.AveragedModel."
    unsupported("use_ema", use_ema, False, "An average of the weights is no part of the definition.", ema)
    return Recipe(
        lr=check_schedule("learning_rate", of_count("learning_rate", learning_rate), at_least=0),
        relative_step=True,
        eps2=check_scale("epsilon_2", epsilon_2),
        beta2=power_decay(check_exponent("beta_2_decay", beta_2_decay, minus=True)),
        eps1=check_eps1("epsilon_1", epsilon_1),
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=False),
        weight_decay=0.0 if weight_decay is None else check_decay("weight_decay", weight_decay),
        weight_decay_by="lr",
        decay_before_scale=True,
        state_dtype="param",
    )


def _is_number(value: object, *, at_least: float = -math.inf, at_most: float = math.inf) -> bool:
    number = plain_number(value)
    return is_number(number) and at_least <= number <= at_most
