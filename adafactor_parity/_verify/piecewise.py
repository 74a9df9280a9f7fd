"""Measures a piecewise-constant learning rate in both frameworks, by how far it moves a matrix at every step."""

from dataclasses import dataclass

import jax
import numpy as np
import torch

from adafactor_spec import recipes, replace, schedules

from .stepping.runners import JaxRunner, TorchRunner
from .stepping.zoo import Array

BASE = 1e-2
BOUNDARIES = (10, 20, 30)
FACTOR = 0.5
STEPS = 40


@dataclass(frozen=True)
class PiecewiseRun:
    """The learning rate after each step: as scheduled, as torch's `group["lr"]` says, and as the weights moved."""

    scheduled: list[float]
    torch_group: list[float]
    torch_measured: list[float]
    jax_measured: list[float]

    def worst(self) -> float:
        """The largest distance of any of them from the schedule, relative."""
        seen = np.array([self.torch_group, self.torch_measured, self.jax_measured])
        worst = float(np.max(np.abs(seen / np.array(self.scheduled) - 1)))
        return worst if np.isfinite(worst) else float("inf")


def run_piecewise() -> PiecewiseRun:
    """Step one small matrix for `STEPS` steps on the CPU, in float64.

    Every gradient is the same and |gradient| has rank one, so its factored estimate is exact and the update is lr times
    its sign: the distance that the weights move is the learning rate. The parameter scale is off for that reason.
    """
    schedule = schedules.piecewise_constant(BASE, BOUNDARIES, FACTOR)
    recipe = replace(recipes.paper(), lr=schedule, multiply_by_parameter_scale=False)
    params, grads = {"matrix": np.ones((6, 4))}, {"matrix": _gradient()}
    ours = JaxRunner(recipe, params, "float64", jax.devices("cpu")[0])
    theirs = TorchRunner(recipe, params, "float64", torch.device("cpu"))
    found = PiecewiseRun([], [], [], [])
    for t in range(1, STEPS + 1):
        before = ours.params()["matrix"], theirs.params()["matrix"]
        ours.step(grads)
        theirs.step(grads)
        found.scheduled.append(float(schedule(t)))
        found.torch_group.append(theirs.learning_rate())
        found.jax_measured.append(_moved(before[0], ours.params()["matrix"]))
        found.torch_measured.append(_moved(before[1], theirs.params()["matrix"]))
    return found


def _gradient() -> Array:
    sign = np.where(np.indices((6, 4)).sum(axis=0) % 2, 1.0, -1.0)
    return sign * np.outer(np.arange(1.0, 7.0), np.arange(1.0, 5.0))


def _moved(before: Array, after: Array) -> float:
    return float(np.sqrt(np.mean((after - before) ** 2)))
