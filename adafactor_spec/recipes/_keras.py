from typing import Any

from .._recipe import Recipe
from ..errors import check_number, refuse_unknown_keywords
from ..schedules import ScalarOrSchedule, check_schedule, power_decay
from ._arguments import NEGATIVE_EXPONENT, TINY, check_flags, check_threshold, of_count, unsupported


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
        clip_threshold: of RMS(u); inf is off.
        relative_step: no effect.
        weight_decay: times learning_rate; None is off.
        clipnorm, clipvalue, global_clipnorm, loss_scale_factor, gradient_accumulation_steps: must be None.
        use_ema: must be False.
        ema_momentum, ema_overwrite_frequency, name: no effect.

    Source: keras 3.15.1, keras/src/optimizers/adafactor.py and base_optimizer.py.
    """
    around: dict[str, Any] = {
        "clipnorm": clipnorm,
        "clipvalue": clipvalue,
        "global_clipnorm": global_clipnorm,
        "loss_scale_factor": loss_scale_factor,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
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
        eps2=check_number("epsilon_2", epsilon_2, at_least=0),
        beta2=power_decay(-check_number("beta_2_decay", beta_2_decay, at_most=0, remedy=NEGATIVE_EXPONENT)),
        eps1=check_number("epsilon_1", epsilon_1, **TINY),
        clipping_threshold=check_threshold("clip_threshold", clip_threshold, optional=False),
        weight_decay=0.0 if weight_decay is None else check_number("weight_decay", weight_decay, at_least=0),
        weight_decay_by="lr",
        decay_before_scale=True,
        state_dtype="param",
    )
