from typing import Any

from .._names import per_name
from .._recipe import Recipe
from ..dtypes import name_of
from ..errors import is_number, plain_number, refusal, refuse_unknown_keywords, shown
from ..factoring import largest_two
from ..schedules import ScalarOrSchedule, power_decay, product
from ._arguments import (
    CLIMBS,
    check_beta1,
    check_cap,
    check_decay,
    check_eps1,
    check_exponent,
    check_min_dim,
    check_offset,
    check_range,
    check_threshold,
    is_off,
    of_count,
    pairs_of,
)


@refuse_unknown_keywords({"learning_rate": "big_vision calls it lr.", "weight_decay": "big_vision calls it wd."})
def big_vision(
    min_dim_size_to_factor: int = 32,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    beta2_cap: float = 0.999,
    clipping_threshold: float | None = None,
    momentum: float | None = 0.9,
    dtype_momentum: Any = "bfloat16",
    eps: float = 1e-30,
    *,
    lr: float = 1.0,
    wd: float | None = None,
    wd_mults: Any = None,
    schedule: ScalarOrSchedule | None = None,
) -> Recipe:
    """big_vision's scale_by_adafactor, in the chain that its `make` builds.

    What to know of the original: momentum averages the update, before the learning rate; a bfloat16 momentum, the
    default, is multiplied by 0.9 in bfloat16, where it is 0.8984. There is no parameter scale and no clipping by
    default. p <- p - schedule_t * (lr * m + wd * p), where the schedule is relative, 1 at its peak: the decay follows
    the schedule but not lr. `make` decays parameters that end in /kernel only, unless wd_mults say otherwise.

    Args:
        min_dim_size_to_factor: factor where the second largest axis has at least this many elements.
        decay_rate: exponent of beta2_t = min(beta2_cap, 1 - t^-decay_rate).
        decay_offset: subtracted from t in beta2_t.
        beta2_cap: beta2 never exceeds it; more than 1 is 1.
        clipping_threshold: of RMS(u); None, 0 and negative ones are off.
        momentum: decay of an average of the update, None or 0 is off.
        dtype_momentum: its storage dtype, None is the parameter's.
        eps: added to g^2.
        lr: config.lr, the peak learning rate.
        wd: config.wd, times p and the schedule; None or 0 is off.
        wd_mults: config.wd_mults, pairs (regular expression for a whole name, factor), the first one counts and other
            parameters do not decay; None decays every parameter. `make`'s default is [(".*/kernel$", 1.0)].
        schedule: relative learning rate, a function of the count (0 first); None is 1.

    Source: google-research/big_vision at 0127fb6, big_vision/optax.py.
    """
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    exponent = check_exponent("decay_rate", decay_rate, minus=False)
    offset = check_offset("decay_offset", decay_offset)
    cap = check_cap("beta2_cap", beta2_cap)
    is_zero = is_number(given := plain_number(clipping_threshold)) and given == 0
    threshold = None if is_zero else check_threshold("clipping_threshold", clipping_threshold, optional=True)
    beta1 = check_beta1("momentum", momentum)
    eps = check_eps1("eps", eps)
    remedy = "It is the peak; the schedule goes into schedule=..."
    if callable(lr):
        raise refusal("lr", "a number", lr, remedy)
    lr = check_range("lr", lr, CLIMBS, at_least=0, remedy=remedy)
    decay = 0.0 if wd is None else check_decay("wd", wd)
    relative_lr = of_count("schedule", schedule)

    def relative(peak: Any) -> Any:
        """A number times the schedule."""
        if relative_lr is None or is_off(peak):
            return peak
        return product(peak, relative_lr) if callable(relative_lr) else peak * relative_lr

    weight_decay: ScalarOrSchedule | per_name = relative(decay)
    if wd_mults is not None:
        pairs = pairs_of("wd_mults", wd_mults)
        mults = {name: check_decay(f"wd_mults[{shown(name)}]", mult) for name, mult in pairs.items()}
        rules = {rf"\A(?:{pattern})\Z": relative(decay * mult) for pattern, mult in mults.items()}
        weight_decay = per_name(rules, default=0.0)
    return Recipe(
        lr=relative(lr),
        relative_step=False,
        multiply_by_parameter_scale=False,
        beta2=power_decay(exponent, cap=cap, offset=offset),
        factoring=largest_two(min_dim),
        eps1=eps,
        clipping_threshold=threshold,
        beta1=None if is_off(beta1) else beta1,
        momentum_of="update",
        momentum_dtype=None if dtype_momentum is None else name_of(dtype_momentum, "dtype_momentum"),
        momentum_rounding="decay",
        weight_decay=weight_decay,
        weight_decay_by="one",
        state_dtype="param",
    )
