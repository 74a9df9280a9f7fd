from collections.abc import Sequence
from typing import Any

from .._recipe import Recipe
from ..errors import check_flag, check_number, refusal, refuse_unknown_keywords
from ..factoring import as_matrix, no_factoring
from ..schedules import (
    ScalarOrSchedule,
    adam_decay,
    at_least,
    check_boundaries,
    check_schedule,
    inverse_sqrt,
    piecewise_constant,
)
from ._arguments import check_flags, check_optional, is_off

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
    lr_decay_step: Sequence[int] | None = None,
    lr_decay_factor: float | None = None,
    *,
    clipping_threshold: float | None = None,
) -> Recipe:
    """AndyLeezard/adafactor-pytorch, the starting point of this project.

    Its piecewise schedule is reproduced as it runs: only without `lr` and with both `lr_decay_*`, and then
    lr_t = max(1e-2, t^-1/2 * lr_decay_factor^k), k boundaries passed, so never below 1e-2. In every other case the
    original ignores `lr_decay_*`, and so does this. A decay by a factor at chosen steps over any learning rate, without
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
        cliping_threshold, clipping_threshold: of RMS(u), 1 where neither is given; inf is off. The first is the
            original's spelling.
        non_constant_decay: section 7.1's decay for a float beta.
        enable_factorization: factor everything with at least two axes, more of them reshaped to a matrix.
        ams_grad: running maximum of V.
        weight_decay: times alpha_t.
        lr_decay_step: steps from which the factor applies once more.
        lr_decay_factor: positive.

    Source: AndyLeezard/adafactor-pytorch at 9522411, adafactor.py.
    """
    factor = check_optional("lr_decay_factor", lr_decay_factor, above=0)
    steps = None if lr_decay_step is None else check_boundaries("lr_decay_step", lr_decay_step)
    if lr is None and steps is not None and factor is not None:
        lr = at_least(piecewise_constant(inverse_sqrt(), steps, factor), 1e-2)
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
    remedy = "inf switches clipping off."
    checked = [check_number(name, value, above=0, infinite=True, remedy=remedy) for name, value in given.items()]
    non_constant_decay, ams_grad = check_flags(non_constant_decay=non_constant_decay, ams_grad=ams_grad)
    enable_factorization = check_flag("enable_factorization", enable_factorization)
    is_without = is_off(check_schedule("beta1", beta1, at_least=0, below=1))
    return Recipe(
        lr=1e-2 if lr is None else lr,
        relative_step=lr is None,
        multiply_by_parameter_scale=scaled,
        eps2=eps2,
        beta2=_decay("beta2", beta2, non_constant_decay),
        factoring=as_matrix if enable_factorization else no_factoring,
        eps1=eps1,
        amsgrad=ams_grad and not non_constant_decay,
        clipping_threshold=checked[0] if checked else 1.0,
        beta1=None if is_without else _decay("beta1", beta1, non_constant_decay),
        momentum_of="grad",
        debias=True,
        weight_decay=check_number("weight_decay", weight_decay, at_least=0),
        weight_decay_by="step",
    )


def _decay(name: str, beta: Any, non_constant: bool) -> Any:
    """A float becomes section 7.1's decay; an integer and a function stay what they are, as in the original."""
    plain = check_schedule(name, beta, at_least=0, below=1)
    return adam_decay(plain) if non_constant and isinstance(plain, float) else plain
