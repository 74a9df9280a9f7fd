from .._recipe import Recipe
from ..errors import refuse_unknown_keywords
from ..schedules import power_decay
from ._arguments import (
    ORIGINAL,
    check_decay,
    check_eps1,
    check_exponent,
    check_flag,
    check_pair,
    check_range,
    not_a_recipes,
)


@refuse_unknown_keywords(
    {"betas": "torch's Adafactor has no first moment.", "beta1": "Use adafactor_torch with beta1."}
)
def torch(
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
) -> Recipe:
    """torch.optim.Adafactor.

    What to know of the original: the step size is min(lr, t^-1/2) * max(eps[1], RMS(p)), and the scale cannot be
    switched off; the decay is lr * weight_decay, not that minimum; eps[0] is a floor under V and its normaliser and not
    an addition. Its eps[0]=None is the machine epsilon of the first parameter of a group, whatever the others are:
    here it is that of each parameter's own dtype.

    Args:
        lr: learning rate, a number.
        beta2_decay: minus the exponent of beta2_t = 1 - t^beta2_decay.
        eps: (floor, smallest parameter scale).
        d: clipping threshold, at least 1; inf is off.
        weight_decay: times lr.
        foreach: accepted and ignored, it does not change what is computed.
        maximize: belongs to the optimizer: adafactor_torch.Adafactor(..., maximize=True).

    Source: torch 2.13.0, torch/optim/_adafactor.py.
    """
    eps1, eps2 = check_pair("eps", eps, "(floor or None, smallest scale)")
    maximize = check_flag("maximize", maximize)
    not_a_recipes("maximize", maximize, False, "Pass maximize=True to adafactor_torch.Adafactor.")
    return Recipe(
        lr=check_range("lr", lr, ORIGINAL, at_least=0, remedy="Its tensor form is not supported: give the number."),
        relative_step=True,
        eps2=check_range("eps[1]", eps2, ORIGINAL, at_least=0),
        beta2=power_decay(check_exponent("beta2_decay", beta2_decay, ORIGINAL, minus=True)),
        eps1=None if eps1 is None else check_eps1("eps[0]", eps1, refused=True),
        eps1_mode="floor",
        clipping_threshold=check_range("d", d, ORIGINAL, at_least=1, infinite=True),
        weight_decay=check_decay("weight_decay", weight_decay, ORIGINAL),
        weight_decay_by="lr",
        state_dtype="param",
    )
