"""Interleaved rounds and what is computed from their times."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and the quartiles around it."""

    lower: float
    median: float
    upper: float


def interleaved(
    timed: Mapping[str, Callable[[], float]], rounds: int, seed: int, advance: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """What each of `timed` returned in each round. A round calls every one of them once, in an order drawn anew.

    So whatever else slows the machine down meets all of them alike, and none always follows the same other.
    """
    rng = random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name in rng.sample(list(timed), len(timed)):
            found[name].append(timed[name]())
        advance()
    return found


def spread(values: Sequence[float]) -> Spread:
    """The quartiles of `values`, which are at least one."""
    return Spread(*(float(x) for x in np.quantile(values, (0.25, 0.5, 0.75))))


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The quartiles of the ratios within each round: both of a pair met the machine in the same state."""
    return spread([mine / other for mine, other in zip(values, baseline, strict=True)])


def bytes_to_move(parameter_bytes: int, state_bytes: int) -> int:
    """Bytes that one step of Adafactor reads and writes when nothing stays in a cache between its three phases.

    Statistics read g and p, norm reads g, apply reads g and p and writes p: 6 numbers per parameter, g being of the
    parameter's dtype. The state, of full size only where there is a momentum, is read once and written once.
    """
    return 6 * parameter_bytes + 2 * state_bytes
