import math
from collections.abc import Collection
from typing import Any

from .._recipe import Recipe
from .._schedule import values_in
from ..errors import LAST_STEP, check_number, is_number, plain_number, refusal, refuse_unknown_keywords
from ..factoring import as_matrix, no_factoring
from ..schedules import (
    ScalarOrSchedule,
    Schedule,
    adam_decay,
    at_least,
    check_schedule,
    inverse_sqrt,
    piecewise_constant,
)
from ._arguments import (
    NO_AVERAGE,
    ORIGINAL,
    check_decay,
    check_eps1,
    check_flags,
    check_optional_lr,
    check_range,
    check_scale,
    check_threshold,
)

_REMEDIES = {"betas": "Use beta1 and beta2.", "eps": "Use eps1 and eps2.", "learning_rate": "Use lr."}


@refuse_unknown_keywords(_REMEDIES)
def adafactor_pytorch(
    lr: ScalarOrSchedule | None = None,
    beta1: ScalarOrSchedule = 0.9,
    beta2: ScalarOrSchedule = 0.999,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    cliping_threshold: float | None = None,
    non_constant_decay: bool = True,
    enable_factorization: bool = True,
    ams_grad: bool = True,
    weight_decay: float = 0.0,
    lr_decay_step: Collection[float] | None = None,
    lr_decay_factor: float | None = None,
    *,
    clipping_threshold: float | None = None,
) -> Recipe:
    """AndyLeezard/adafactor-pytorch, the starting point of this project.

    Its piecewise schedule is reproduced as it runs: only without `lr` and with both `lr_decay_*`, and then
    lr_t = max(1e-2, t^-1/2 * lr_decay_factor^k), k of the listed steps passed, so never below 1e-2. They may stand in
    any order, and one that stands twice counts twice. In every other case the original ignores `lr_decay_*`, whatever
    they are, and so does this. A decay by a factor at chosen steps over any learning rate, without
    that floor, is `lr=schedules.piecewise_constant(base, boundaries, factor)`.

    What else to know of the original: every lr, a number too, is multiplied by max(eps2, RMS(p)); a float beta with
    non_constant_decay=True is Adam's debiased decay, and the first moment is then debiased once more; ams_grad has an
    effect only with non_constant_decay=False. Its documentation allows a function for lr but its code refuses one:
    here it works. Its float32 overflow and the NaN of an all-zero first gradient are not reproduced.

    Args:
        lr: a number or a function of t; None for min(1e-2, t^-1/2) or the piecewise schedule.
        beta1, beta2: a number or a function of t; beta1=0 switches the first moment off.
        eps1: added to g^2.
        eps2: smallest parameter scale.
        cliping_threshold, clipping_threshold: of RMS(u), 1 where neither is given; inf and negative ones are off. The
            first is the original's spelling.
        non_constant_decay: section 7.1's decay for a float beta.
        enable_factorization: factor everything with at least two axes, more of them reshaped to a matrix.
        ams_grad: running maximum of V.
        weight_decay: times alpha_t.
        lr_decay_step: steps from which the factor applies once more; none at all is a schedule, too, max(1e-2, t^-1/2).
        lr_decay_factor: at least 0.

    Source: AndyLeezard/adafactor-pytorch at 9522411, adafactor.py.
    """
    if lr is None and lr_decay_step is not None and lr_decay_factor is not None:
        lr = _piecewise(lr_decay_step, lr_decay_factor)
    return _recipe(
        lr,
        True,
        beta1=beta1,
        beta2=beta2,
        eps1=eps1,
        eps2=eps2,
        thresholds={"cliping_threshold": cliping_threshold, "clipping_threshold": clipping_threshold},
        non_constant_decay=non_constant_decay,
        enable_factorization=enable_factorization,
        ams_grad=ams_grad,
        weight_decay=weight_decay,
    )


@refuse_unknown_keywords(_REMEDIES)
def adafactor_pytorch_parent(
    lr: ScalarOrSchedule | None = None,
    beta1: ScalarOrSchedule = 0.9,
    beta2: ScalarOrSchedule = 0.999,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    cliping_threshold: float | None = None,
    non_constant_decay: bool = True,
    enable_factorization: bool = True,
    ams_grad: bool = True,
    weight_decay: float = 0.0,
    *,
    clipping_threshold: float | None = None,
) -> Recipe:
    """DeadAt0m/adafactor-pytorch, which the starting point was forked from.

    As `adafactor_pytorch`, without its piecewise schedule, and a number for lr is absolute: it is not multiplied by the
    parameter scale. A function of t and None are.

    Source: DeadAt0m/adafactor-pytorch at 561e627, adafactor.py.
    """
    return _recipe(
        lr,
        lr is None or callable(lr),
        beta1=beta1,
        beta2=beta2,
        eps1=eps1,
        eps2=eps2,
        thresholds={"cliping_threshold": cliping_threshold, "clipping_threshold": clipping_threshold},
        non_constant_decay=non_constant_decay,
        enable_factorization=enable_factorization,
        ams_grad=ams_grad,
        weight_decay=weight_decay,
    )


def _recipe(
    lr: ScalarOrSchedule | None,
    scaled: bool,
    *,
    beta1: ScalarOrSchedule,
    beta2: ScalarOrSchedule,
    eps1: float,
    eps2: float,
    thresholds: dict[str, float | None],
    non_constant_decay: bool,
    enable_factorization: bool,
    ams_grad: bool,
    weight_decay: float,
) -> Recipe:
    given = {name: value for name, value in thresholds.items() if value is not None}
    if len(given) > 1:
        raise refusal("clipping_threshold", "given once", given, "Drop the original's spelling cliping_threshold.")
    checked = [check_threshold(name, value, optional=False, zero=ORIGINAL) for name, value in given.items()]
    non_constant_decay, ams_grad, enable_factorization = check_flags(
        non_constant_decay=non_constant_decay, ams_grad=ams_grad, enable_factorization=enable_factorization
    )
    first, second = (_decay(name, beta, non_constant_decay) for name, beta in {"beta1": beta1, "beta2": beta2}.items())
    without, lr = plain_number(beta1), check_optional_lr("lr", lr)
    return Recipe(
        lr=1e-2 if lr is None else lr,
        relative_step=lr is None,
        multiply_by_parameter_scale=scaled,
        eps2=check_scale("eps2", eps2),
        beta2=second,
        factoring=as_matrix if enable_factorization else no_factoring,
        eps1=check_eps1("eps1", eps1),
        amsgrad=ams_grad and not non_constant_decay,
        clipping_threshold=checked[0] if checked else 1.0,
        beta1=None if is_number(without) and without == 0 else first,
        momentum_of="grad",
        debias=True,
        weight_decay=check_decay("weight_decay", weight_decay),
        weight_decay_by="step",
    )


def _decay(name: str, beta: Any, non_constant: bool) -> Any:
    """A float becomes section 7.1's decay; an integer and a function stay what they are, as in the original."""
    number = plain_number(beta)
    divides_by_0 = non_constant and isinstance(number, float) and number == 1
    plain = check_range(name, beta, ORIGINAL if divides_by_0 else NO_AVERAGE, check_schedule, at_least=0, below=1)
    return adam_decay(plain) if non_constant and isinstance(plain, float) else plain


def _piecewise(steps: Any, factor: Any) -> Schedule:
    """max(1e-2, t^-1/2 * factor^k), k of the steps passed: of any numbers, as the original compares them to t."""
    numbers = [
        check_number("lr_decay_step", step, infinite=True, traced=False) for step in values_in("lr_decay_step", steps)
    ]
    first = [1 if step <= 1 else math.ceil(step) for step in numbers if step <= LAST_STEP]  # no run comes to the others
    why = "With a negative one the original's learning rate falls to its floor and comes back, by turns."
    factor = check_range("lr_decay_factor", factor, why, at_least=0)
    return at_least(piecewise_constant(inverse_sqrt(), first, factor), 1e-2)
