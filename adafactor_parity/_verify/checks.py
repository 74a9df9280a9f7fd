"""Compares the training runs and the learning rate schedule with their limits. Stepping is judged by `budgets.py`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .piecewise import PiecewiseRun
from .stepping import budgets
from .training.corpus import Corpus
from .training.train import Trained

# Before this many steps a transformer with the paper's step size has hardly learned which characters are frequent.
LEARNED_AFTER = 200


@dataclass(frozen=True)
class Check:
    """A figure and its limit; `passed` is None where it is shown but not judged, and `detail` says why or where."""

    name: str
    measured: float
    limit: float
    passed: bool | None
    detail: str


def of_training(run: Trained, corpus: Corpus, entropy: float) -> list[Check]:
    """The checks of one training run; `entropy` is that of single characters in the held-out text."""
    return [*_agreement(run), *(_learned(run, corpus, entropy) if run.dtype == "float32" else ())]


def of_piecewise(run: PiecewiseRun) -> Check:
    """The learning rate in force against the schedule."""
    worst = run.worst()
    return Check(
        "piecewise-constant learning rate in force, from the schedule",
        worst,
        budgets.SCHEDULE_RELATIVE,
        worst <= budgets.SCHEDULE_RELATIVE,
        f"relative, worst of {len(run.scheduled)} steps, both frameworks",
    )


def failed(checks: Sequence[Check]) -> list[str]:
    """One line for each check that failed."""
    return [f"{c.name}: {c.measured:.3g}, limit {c.limit:g} ({c.detail})" for c in checks if c.passed is False]


def _agreement(run: Trained) -> list[Check]:
    label = f"{run.setting.label}, {run.dtype} training"
    if run.dtype == "float64":
        judged = run.drift[: budgets.FLOAT64_WEIGHTS_STEPS]
        step, worst = max(enumerate(judged, start=1), key=lambda pair: pair[1].relative)
        where = f"relative, shape {worst.shape} ({worst.parameter}), step {step}, element {worst.element}"
        limit = budgets.FLOAT64_WEIGHTS
        return [Check(f"{label}: weights, JAX from torch", worst.relative, limit, worst.relative <= limit, where)]
    gaps = run.loss_gaps()[: budgets.FLOAT32_LOSS_STEPS]
    gaps = [gap if math.isfinite(gap) else math.inf for gap in gaps]
    worst_gap = max(gaps)
    limit = budgets.FLOAT32_LOSS
    where = f"nats per character, step {gaps.index(worst_gap) + 1}"
    return [Check(f"{label}: losses, JAX from torch", worst_gap, limit, worst_gap <= limit, where)]


def _learned(run: Trained, corpus: Corpus, entropy: float) -> list[Check]:
    judged = run.steps >= LEARNED_AFTER and corpus.is_default and run.setting.name == "paper"
    reason = "nats per character; the limit is the entropy of single characters"
    if not judged:
        reason += f"; judged from {LEARNED_AFTER} steps on, for the default text and the paper's recipe"
    found = []
    for framework, curves in (("JAX", run.jax), ("torch", run.torch)):
        last = curves.validation[-1]
        passed = last < entropy if judged else None
        found.append(Check(f"{framework}: validation loss after {run.steps} steps", last, entropy, passed, reason))
    return found
