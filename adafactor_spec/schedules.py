"""Numbers that depend on the step: learning rates, decay rates of the moments, weight decay.

A schedule is data: a frozen dataclass that can be compared, printed (its text builds it again) and pickled.
Calling it with the step `t` gives its value; **t = 1 at the first update**. `t` is a Python or NumPy number on the
host, or an array or tracer that has the array API (`t.__array_namespace__()`), as JAX's have, so the same formula
runs on the host and inside a compiled step.

Wherever a schedule is taken, a number or a plain Python function of `t` is taken as well.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ._schedule import (
    Number,
    ScalarOrSchedule,
    Schedule,
    as_schedule,
    bias_correction,
    check_boundaries,
    check_schedule,
    constant,
    function,
    namespace,
)
from .errors import check_number, check_step, keep, refusal

__all__ = [
    "Number",
    "ScalarOrSchedule",
    "Schedule",
    "adam_decay",
    "as_schedule",
    "at_least",
    "bias_correction",
    "check_boundaries",
    "check_schedule",
    "constant",
    "cosine_decay",
    "function",
    "inverse_sqrt",
    "linear_cooldown",
    "linear_warmup",
    "piecewise_constant",
    "power",
    "power_decay",
    "product",
    "relative_step",
    "zero_based",
]


@dataclass(frozen=True)
class zero_based(Schedule):
    """A schedule that counts from 0 at the first update, as optax's do: `f(t - 1)`."""

    of_count: Callable[[Number], Number]

    def __post_init__(self) -> None:
        if not callable(self.of_count):
            raise refusal("of_count", "a function of the count", self.of_count, "Give a number as it is.")

    def __call__(self, t: Number) -> Number:
        """`of_count(t - 1)`."""
        return self.of_count(t - 1)


@dataclass(frozen=True)
class power_decay(Schedule):
    """beta_t = min(cap, 1 - (t - offset)^-exponent): section 7.2 of the paper, where exponent = 0.8.

    Args:
        exponent: at least 0; 0.8 in the paper. transformers, torch and keras write it with a minus sign.
        cap: beta never exceeds it, in [0, 1]; big_vision uses 0.999.
        offset: the step from which a fine-tuning run counts. Up to and including t = offset + 1 beta is 0.
    """

    exponent: float = 0.8
    cap: float = 1.0
    offset: int = 0

    def __post_init__(self) -> None:
        flip = "transformers, torch and keras write the exponent with the opposite sign: use 0.8 for their -0.8."
        keep(
            self,
            exponent=check_number("exponent", self.exponent, at_least=0, remedy=flip),
            cap=check_number("cap", self.cap, at_least=0, at_most=1),
            offset=check_step("offset", self.offset),
        )

    def __call__(self, t: Number) -> Number:
        """beta_t."""
        return 1.0 - self.complement(t)

    def complement(self, t: Number) -> Number:
        """1 - beta_t = max(1 - cap, (t - offset)^-exponent), without a difference."""
        xp = namespace(t)
        # A difference of whole numbers, which near the offset is small; a sum might be more than an int32 can be.
        since = xp.maximum(t - (self.offset if self.offset > 0 else float(self.offset)), 1.0)
        return xp.maximum(since**-self.exponent, 1.0 - self.cap)


@dataclass(frozen=True)
class adam_decay(Schedule):
    """beta_t = b (1 - b^(t-1)) / (1 - b^t): section 7.1 of the paper, Adam's bias correction as a decay rate."""

    b: float

    def __post_init__(self) -> None:
        keep(self, b=check_number("b", self.b, at_least=0, below=1, traced=False))

    def __call__(self, t: Number) -> Number:
        """beta_t, 0 at t = 1."""
        return 1.0 - self.complement(t)

    def complement(self, t: Number) -> Number:
        """1 - beta_t = (1 - b) / (1 - b^t)."""
        if self.b == 0:
            return 1.0
        xp = namespace(t)
        # expm1, because 1 - b^t is a difference of nearly equal numbers for small t and b near 1.
        return xp.minimum((1.0 - self.b) / -xp.expm1(t * math.log(self.b)), 1.0)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """max(t, flat_until)^-1/2.

    T5's pretraining, whose count starts at 0, is `zero_based(inverse_sqrt(10_000))`.
    """

    flat_until: float = 1

    def __post_init__(self) -> None:
        keep(self, flat_until=check_number("flat_until", self.flat_until, at_least=1, traced=False))

    def __call__(self, t: Number) -> Number:
        """max(t, flat_until)^-1/2."""
        return namespace(t).maximum(t, float(self.flat_until)) ** -0.5


@dataclass(frozen=True)
class relative_step(Schedule):
    """min(base_t, t^-1/2): the relative step size of the paper, where base = 1e-2."""

    base: ScalarOrSchedule = 1e-2

    def __post_init__(self) -> None:
        keep(self, base=check_schedule("base", self.base, at_least=0))

    def __call__(self, t: Number) -> Number:
        """min(base_t, t^-1/2)."""
        base = as_schedule(self.base)(t)
        return namespace(t, base).minimum(base, t**-0.5)


@dataclass(frozen=True)
class linear_warmup(Schedule):
    """base_t * min(1, t / steps).

    fairseq's and transformers' `warmup_init` is `relative_step(linear_warmup(1.0, steps=1_000_000))`:
    min(1e-6 t, t^-1/2).
    """

    base: ScalarOrSchedule
    steps: int

    def __post_init__(self) -> None:
        keep(self, base=check_schedule("base", self.base, at_least=0), steps=check_step("steps", self.steps, above=0))

    def __call__(self, t: Number) -> Number:
        """base_t * min(1, t / steps)."""
        return as_schedule(self.base)(t) * namespace(t).minimum(t / self.steps, 1.0)


@dataclass(frozen=True)
class linear_cooldown(Schedule):
    """base_t * clip((end - t) / steps, 0, 1): down to 0 in the last `steps` steps before `end`."""

    base: ScalarOrSchedule
    steps: int
    end: int

    def __post_init__(self) -> None:
        keep(
            self,
            base=check_schedule("base", self.base, at_least=0),
            steps=check_step("steps", self.steps, above=0),
            end=check_step("end", self.end, above=0),
        )

    def __call__(self, t: Number) -> Number:
        """base_t * clip((end - t) / steps, 0, 1)."""
        return as_schedule(self.base)(t) * namespace(t).clip((self.end - t) / self.steps, 0.0, 1.0)


@dataclass(frozen=True)
class cosine_decay(Schedule):
    """base_t * (1 + cos(pi * progress)) / 2, progress = clip((t - start) / (end - start), 0, 1)."""

    base: ScalarOrSchedule
    start: int
    end: int

    def __post_init__(self) -> None:
        keep(
            self,
            base=check_schedule("base", self.base, at_least=0),
            start=check_step("start", self.start, at_least=0),
        )
        keep(self, end=check_step("end", self.end, above=self.start))

    def __call__(self, t: Number) -> Number:
        """base_t * (1 + cos(pi * progress)) / 2."""
        xp = namespace(t)
        progress = xp.clip((t - self.start) / (self.end - self.start), 0.0, 1.0)
        return as_schedule(self.base)(t) * (1.0 + xp.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class piecewise_constant(Schedule):
    """base_t, multiplied by `factor` once for each boundary <= t.

    Args:
        base: any number or schedule.
        boundaries: steps in any order; one that stands twice counts twice. Epochs become steps by the number of updates
            in one: epoch e (0 is the first) begins at t = e * steps_per_epoch + 1.
        factor: at least 0.
    """

    base: ScalarOrSchedule
    boundaries: Collection[int]
    factor: float

    def __post_init__(self) -> None:
        keep(
            self,
            base=check_schedule("base", self.base, at_least=0),
            boundaries=check_boundaries("boundaries", self.boundaries),
            factor=check_number("factor", self.factor, at_least=0),
        )

    def __call__(self, t: Number) -> Number:
        """base_t * factor^(number of boundaries <= t)."""
        value = as_schedule(self.base)(t)
        where = namespace(t, value).where
        for boundary in self.boundaries:
            value = where(t >= boundary, value * self.factor, value)[()]  # NumPy's where makes an array of a number
        return value


@dataclass(frozen=True)
class at_least(Schedule):
    """max(base_t, floor)."""

    base: ScalarOrSchedule
    floor: float

    def __post_init__(self) -> None:
        keep(
            self,
            base=check_schedule("base", self.base, at_least=0),
            floor=check_number("floor", self.floor, at_least=0),
        )

    def __call__(self, t: Number) -> Number:
        """max(base_t, floor)."""
        base = as_schedule(self.base)(t)
        return namespace(t, base).maximum(base, self.floor)


@dataclass(frozen=True)
class product(Schedule):
    """first_t * second_t."""

    first: ScalarOrSchedule
    second: ScalarOrSchedule

    def __post_init__(self) -> None:
        keep(self, first=check_schedule("first", self.first), second=check_schedule("second", self.second))

    def __call__(self, t: Number) -> Number:
        """first_t * second_t."""
        return as_schedule(self.first)(t) * as_schedule(self.second)(t)


@dataclass(frozen=True)
class power(Schedule):
    """base_t^exponent."""

    base: ScalarOrSchedule
    exponent: float

    def __post_init__(self) -> None:
        keep(
            self,
            base=check_schedule("base", self.base, at_least=0),
            exponent=check_number("exponent", self.exponent, at_least=0),
        )

    def __call__(self, t: Number) -> Number:
        """base_t^exponent."""
        return as_schedule(self.base)(t) ** self.exponent
