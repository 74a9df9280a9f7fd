"""Compares two runs tensor by tensor and step by step: how far they are apart, at which element."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .budgets import Budget, ulp
from .zoo import SHAPES, Array, Arrays


@dataclass(frozen=True)
class Deviation:
    """The worst element of one tensor after one step. `relative` and `ulp` are infinite where either run is not finite.

    Both are taken at the largest element that the tensor had up to then: a parameter that has moved through zero
    keeps the rounding errors of its larger past.
    """

    tensor: str
    step: int
    element: tuple[int, ...]
    relative: float
    ulp: float

    def where(self) -> str:
        """`shape (37, 19) (uneven), step 3, element (0, 1)`."""
        return f"shape {SHAPES[self.tensor]} ({self.tensor}), step {self.step}, element {self.element}"


class Comparison:
    """The deviations of one pair of runs, collected step by step."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self.deviations: list[Deviation] = []

    def add(self, step: int, values: Arrays, reference: Arrays, largest: dict[str, float]) -> None:
        """Compare all tensors after `step`."""
        for name, value in values.items():
            if value.size:
                self.deviations.append(_deviation(name, step, value, reference[name], largest[name], self._dtype))

    def worst(self) -> Deviation:
        """The largest relative deviation."""
        return max(self.deviations, key=lambda d: d.relative)

    def worst_per_step(self) -> list[float]:
        """The largest relative deviation after each step."""
        return [max(group) for group in _by_step(self.deviations)]

    def first_beyond(self, budget: Budget) -> Deviation | None:
        """The worst of the first step at which a deviation is over the budget, or None."""
        beyond = [d for d in self.deviations if not budget.allows(d.relative, d.ulp)]
        first = [d for d in beyond if d.step == beyond[0].step]
        return max(first, key=lambda d: d.relative, default=None)


def _deviation(name: str, step: int, value: Array, reference: Array, largest: float, dtype: str) -> Deviation:
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.abs(value - reference)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    element = np.unravel_index(int(np.argmax(difference)), difference.shape)
    worst = float(difference[element])
    at = tuple(int(index) for index in element)
    if worst == 0.0:
        return Deviation(name, step, at, 0.0, 0.0)
    if largest == 0.0 or not np.isfinite(largest):
        return Deviation(name, step, at, float("inf"), float("inf"))
    return Deviation(name, step, at, worst / largest, worst / float(ulp(largest, dtype)))


def _by_step(deviations: Iterable[Deviation]) -> Iterable[list[float]]:
    steps: dict[int, list[float]] = {}
    for deviation in deviations:
        steps.setdefault(deviation.step, []).append(deviation.relative)
    return steps.values()
