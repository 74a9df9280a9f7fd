"""Checks each field of a recipe. Every check returns a plain value, and that is what the recipe stores."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import dtypes
from ._names import mapped
from .errors import check_choice, check_flag, check_number, is_number, plain_number
from .factoring import check_rule
from .schedules import check_schedule, constant

Check = Callable[[str, Any], Any]  # of a field's name and a value

# The second moment of a zero gradient is eps1: it must survive being stored in float32. As a float32, so that an array
# of that dtype is one.
SMALLEST_EPS1 = float(np.float32(1e-37))


def plain_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe as plain values; one that is out of range is refused by its name."""
    return {field: _CHECKS[field](field, value) for field, value in given.items()}


def _number(**bounds: Any) -> Check:
    return lambda field, value: check_number(field, value, **bounds)


def _schedule(**bounds: Any) -> Check:
    return lambda field, value: check_schedule(field, value, **bounds)


def _choice(*choices: str | None) -> Check:
    return lambda field, value: check_choice(field, value, choices)


def _optional(check: Check) -> Check:
    return lambda field, value: None if value is None else check(field, value)


def _rule(field: str, value: Any) -> Any:
    check_rule(field, value)
    return value


def _dtype(field: str, value: Any) -> str:
    return dtypes.name_of(value, field)


def _scales(field: str, value: Any) -> Any:
    return mapped(value, lambda own: check_flag(field, own))


def _weight_decay(field: str, value: Any) -> Any:
    def plain(own: Any) -> Any:
        decay = check_schedule(field, own, at_least=0)
        # What a step consists of must not depend on the value of an array, because that may be another one when the
        # recipe is made again in a trace: a 0 in it is not the number by which `Recipe.decays` knows that there is no
        # decay.
        is_array = not isinstance(own, int | float | np.generic | np.ndarray)
        return constant(0.0) if is_array and is_number(decay) and decay == 0 else decay

    return 0.0 if value is None else mapped(value, plain)


def _weight_decay_by(field: str, value: Any) -> Any:
    if plain_number(value) is None:
        remedy = "A number is the power of the learning rate that the decay follows."
        return check_choice(field, value, ("step", "lr", "one", "grad"), remedy)
    power = check_number(field, value, at_least=0)
    return ("lr" if power else "one") if is_number(power) and power in (0, 1) else power


_CHECKS: dict[str, Check] = {
    "lr": _optional(_schedule(at_least=0)),
    "relative_step": check_flag,
    "multiply_by_parameter_scale": _scales,
    "eps2": _number(at_least=0),
    "max_parameter_scale": _optional(_number(above=0)),
    "beta2": _schedule(at_least=0, below=1),
    "factoring": _rule,
    "eps1": _optional(_number(at_least=SMALLEST_EPS1, remedy="Use a tiny number such as 1e-30.")),
    "eps1_mode": _choice("add", "floor"),
    "amsgrad": check_flag,
    "clipping_threshold": _optional(_number(above=0, infinite=True, remedy="None switches clipping off.")),
    "beta1": _optional(_schedule(at_least=0, below=1, remedy="None switches the first moment off.")),
    "momentum_of": _choice("grad", "update", "step"),
    "debias": check_flag,
    "momentum_dtype": _optional(_dtype),
    "momentum_rounding": _choice("store", "use", "decay"),
    "weight_decay": _weight_decay,
    "weight_decay_by": _weight_decay_by,
    "decay_before_scale": check_flag,
    "state_dtype": _choice(None, "param"),
}
