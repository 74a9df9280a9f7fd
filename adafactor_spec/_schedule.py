"""What a schedule is, and the checks of whatever stands in place of one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import check_number, check_step, keep, plain_number, refusal, remedy_for_array, shown

_FIRST = "t = 1 is the first update."

Number: TypeAlias = Any  # a Python or NumPy number, or a JAX array or tracer without axes


class Schedule:
    """A function of the step that also knows its complement.

    The second moment is mixed with weights beta and 1 - beta. Late in training beta is within a few float32 ulp of 1,
    and a difference taken in float32 is wrong by 1e-4 at t = 20,000: a decay rate therefore gives 1 - beta directly.
    """

    def __call__(self, t: Number) -> Number:
        """The value at step `t`, t = 1 at the first update."""
        raise NotImplementedError

    def complement(self, t: Number) -> Number:
        """1 - value at step `t`."""
        return 1.0 - self(t)


ScalarOrSchedule: TypeAlias = float | Callable[[Number], Number]


@dataclass(frozen=True)
class constant(Schedule):
    """The same number at every step."""

    value: Number

    def __post_init__(self) -> None:
        keep(self, value=check_number("value", self.value))

    def __call__(self, t: Number) -> Number:
        """The number, whatever `t` is."""
        return self.value


@dataclass(frozen=True)
class function(Schedule):
    """A plain Python function of t, taken as a schedule. Its complement is the difference 1 - f(t)."""

    of_t: Callable[[Number], Number]

    def __post_init__(self) -> None:
        if not callable(self.of_t):
            raise refusal("of_t", "a function of t", self.of_t, "Give a number as it is.")

    def __call__(self, t: Number) -> Number:
        """`of_t(t)`."""
        return self.of_t(t)


def as_schedule(value: ScalarOrSchedule) -> Schedule:
    """A number, a plain function of t or a schedule, as a schedule."""
    if isinstance(value, Schedule):
        return value
    return function(value) if callable(value) else constant(value)


def bias_correction(beta: ScalarOrSchedule, t: Number) -> Number:
    """1 - beta_t^t, from the complement of beta_t and without a difference of nearly equal numbers."""
    rest = as_schedule(beta).complement(t)
    xp = namespace(t, rest)
    inside = xp.where(rest < 1.0, rest, 0.5)  # the logarithm of beta_t = 0 must not be taken, even if it is not used
    return xp.where(rest < 1.0, -xp.expm1(t * xp.log1p(-inside)), 1.0)


def check_boundaries(argument: str, boundaries: object) -> tuple[int, ...]:
    """Steps in any order as a tuple in the order of time, one as often as it is there; anything else is refused."""
    return tuple(
        sorted(check_step(argument, step, at_least=1, remedy=_FIRST) for step in values_in(argument, boundaries))
    )


def values_in(argument: str, steps: Any) -> list[Any]:
    """What a collection of steps holds; what is none is refused."""
    # A generator could be read only once, and a dict says nothing of its values.
    is_collection = isinstance(steps, Collection) or hasattr(type(steps), "__array_namespace__")
    try:
        if is_collection and not isinstance(steps, str | bytes | Mapping) and getattr(steps, "shape", None) != ():
            return list(steps)
    except Exception as error:  # whatever somebody else's class raises
        raise refusal(argument, "a sequence of steps", steps) from error
    remedy = f"Write ({shown(steps)},)." if plain_number(steps) is not None else ""
    raise refusal(argument, "a sequence of steps", steps, remedy)


def check_schedule(argument: str, value: object, remedy: str = "", **bounds: Any) -> Any:
    """The function of t as it is, or the number as a plain one; refused is anything else, and a number out of range.

    A function is looked at here, where it is built, and not in a traced step: its value at t = 1 stands for all of
    them. The bounds are those of `errors.check_number`.
    """
    if isinstance(value, type):
        raise refusal(argument, "a number or a schedule", value, f"Call it: {value.__name__}(...).")
    if callable(value):
        try:
            first = value(1)
        except Exception as error:
            why = str(error) or type(error).__name__
            raise refusal(argument, "a function of the step", value, f"{why}.") from error
        check_number(f"{argument}(1)", first, remedy=f"{argument} is called with t = 1, 2, ...", **bounds)
        return value
    if plain_number(value) is None:
        must = "a number, a schedule or a function of t"
        raise refusal(argument, must, value, remedy_for_array(value) or remedy)
    return check_number(argument, value, remedy=remedy, **bounds)


def namespace(*numbers: Number) -> Any:
    """JAX's functions where one of the numbers is JAX's (a traced learning rate at t = 1, say), else NumPy's."""
    spaces = [number.__array_namespace__() for number in numbers if hasattr(number, "__array_namespace__")]
    return next((space for space in spaces if space is not np), np)
