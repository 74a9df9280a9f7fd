"""How far an optimizer may be from the oracle: named limits, each with its derivation. None was tuned to pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adafactor_spec import Recipe, dtypes

# float64. The oracle and a framework do the same operations, but a framework may add in another order and fuse. A mean
# of n squares then differs by at most n * 1.1e-16 (2e-12 for 18,200 elements if they were added one by one; both
# add in blocks or axis by axis, which costs tens of units instead), and a step of size 1e-2 hands on a hundredth of it.
# So 20 steps stay near 1e-14. The budget leaves two orders for platforms that add otherwise; what it must catch, a
# float32 constant anywhere in a float64 step, is 6e-8 and thus four orders above it.
FLOAT64_RELATIVE = 1e-12

# Below float64 the yardstick is the oracle itself, run in float32 and in float64 on the same values, the result rounded
# to the parameter's dtype in both. In 16 bits the float32 run also goes through optax's contract, by which an update is
# a number of the parameter's dtype that is added to it: exact for small steps, a second rounding for steps as large as
# the weight. The yardstick's distance is what the format costs one implementation, in the worst shape of the zoo. Two
# implementations may lie on opposite sides of the truth (a factor of 2), and each may add in an order twice as unlucky
# as NumPy's pairwise one (another factor of 2).
YARDSTICKS = 4

# An exact result near the middle between two neighbours may be rounded to either, also where the yardstick met no such
# case: one unit in the last place is always allowed.
FLOOR_ULP = 1.0

# A first moment that is stored in fewer bits than the arithmetic has: two runs that differ by a rounding error may
# store neighbours, and every further step then moves the parameter by averages that are one spacing apart. What has
# been moved in all is then off by at most one relative spacing of that dtype. The yardstick meets such ties by chance.
FLOOR_SPACINGS = 1.0

# Training, from the issue that this tool answers. Rounding differences grow while a model learns, because every update
# depends on all weights; where the growth ends cannot be derived, so these two hold over a stated number of steps.
# float64: 1.1e-16 may grow ten-million-fold. A float32 constant (6e-8) would begin above the budget.
FLOAT64_WEIGHTS = 1e-9
FLOAT64_WEIGHTS_STEPS = 100
# float32: a loss of about 2 nats has a unit in the last place of 2.4e-7; 1e-3 allows a growth of four thousand.
# A curve drawn over it at 1 % of its height would still look the same.
FLOAT32_LOSS = 1e-3
FLOAT32_LOSS_STEPS = 300

# A learning rate read off a move of that size in weights of size 1 is known to 1.1e-16 / lr. The smallest of that run
# is 1.25e-3, hence 1e-13; the rest is for the schedule's own arithmetic.
SCHEDULE_RELATIVE = 1e-12


@dataclass(frozen=True)
class Budget:
    """The largest deviation allowed, relative to the largest element; `FLOOR_ULP` is allowed besides.

    `yardstick` is the oracle's own float32-to-float64 distance, None where it is not used.
    """

    relative: float
    yardstick: float | None = None
    dtype: str = "float64"

    def allows(self, relative: float, ulp: float) -> bool:
        """Whether a deviation is within the budget. NaN never is."""
        return relative <= self.relative or (self.yardstick is not None and ulp <= FLOOR_ULP)

    def __str__(self) -> str:
        # One ulp is between half an epsilon and a whole one of the largest element.
        only_the_floor = self.yardstick is not None and self.relative < FLOOR_ULP * dtypes.epsilon(self.dtype) / 2
        return f"{FLOOR_ULP:g} ulp" if only_the_floor else f"{self.relative:.1e}"


def budget(dtype: str, yardstick: float, momentum_dtype: str | None = None) -> Budget:
    """The budget of a dtype, from the worst distance of the oracle in float32 from itself in float64.

    `momentum_dtype` is that of a first moment which is stored in fewer bits than the arithmetic has, else None.
    """
    if dtype == "float64":
        return Budget(FLOAT64_RELATIVE)
    spacing = 0.0 if momentum_dtype is None else FLOOR_SPACINGS * dtypes.epsilon(momentum_dtype)
    return Budget(max(YARDSTICKS * yardstick, spacing), yardstick, dtype)


def narrow_momentum(recipe: Recipe, dtype: str) -> str | None:
    """The dtype of the first moment of a parameter of `dtype`, if it has fewer bits than the arithmetic."""
    stored, compute = recipe.momentum_dtype_for(dtype), dtypes.at_least_float32(dtype)
    narrow = recipe.beta1 is not None and dtypes.epsilon(stored) > dtypes.epsilon(compute)
    return stored if narrow else None


def ulp(largest: Any, dtype: str) -> Any:
    """Spacing of `dtype` at `largest`, a number above zero or an array of them."""
    smallest = {"float64": -1022, "float16": -14}.get(dtype, -126)  # exponent below which the spacing stays
    exponent = np.maximum(np.frexp(largest)[1] - 1, smallest)
    return np.ldexp(dtypes.epsilon(dtype), exponent)
