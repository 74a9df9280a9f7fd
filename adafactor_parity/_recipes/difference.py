"""Steps one sample matrix with two recipes, in NumPy, to show what the difference between them does."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adafactor_spec import Recipe, literal, oracle, recipes, replace

STEPS = 100
SHOWN = (1, 2, 5, 10, 20, 50, 100)
SHAPE = (192, 160)  # both axes long enough for every recipe to factor them
NAME = "encoder/layers_0/mlp/wi/kernel"
LR, SEED = 1e-2, 0
SAME = 1e-12  # relative; a step in float64 has an error of about 1e-15, and errors add up over `STEPS` of them


@dataclass(frozen=True)
class Difference:
    """Two recipes side by side.

    Attributes:
        names: of the two.
        fields: {field: (value in the first, in the second)} as text, for those that differ.
        without_effect: those of them that change nothing, because what they belong to is off in both.
        without_lr: names of those that have no learning rate of their own and were given `LR`.
        rms: RMS of the update p_(t-1) - p_t at every step, for each of the two.
        same: they are never further apart than rounding to float64 explains.
        apart: |p of the first - p of the second| over |p of the first - p at the start|; nan while the first stands.
    """

    names: tuple[str, str]
    fields: dict[str, tuple[str, str]]
    without_effect: tuple[str, ...]
    without_lr: tuple[str, ...]
    same: bool
    rms: tuple[list[float], list[float]]
    apart: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite is None."""
        return {
            "recipes": list(self.names),
            "fields": {field: list(pair) for field, pair in self.fields.items()},
            "without_effect": list(self.without_effect),
            "sample": {"shape": list(SHAPE), "steps": STEPS, "seed": SEED, "dtype": "float64"},
            "given_lr": dict.fromkeys(self.without_lr, LR),
            "same": self.same,
            "rms_of_update": [[_finite(x) for x in rms] for rms in self.rms],
            "apart_relative_to_way_of_first": [_finite(x) for x in self.apart],
        }


def difference(first: str, second: str) -> Difference:
    """Both recipes, with what the originals have no default for filled in, stepped on the sample matrix.

    Raises:
        ValueError: a recipe refuses the sample matrix.
    """
    given = [recipes.shown(name) for name in (first, second)]
    differing, effective = given[0].diff(given[1]), given[0].effective().diff(given[1].effective())
    runs = [list(_run(recipe if recipe.lr is not None else replace(recipe, lr=LR))) for recipe in given]
    start = sample()[0]
    rms = [[_size(before - after) for before, after in zip([start, *run], run, strict=False)] for run in runs]
    between = [_size(a - b) for a, b in zip(*runs, strict=True)]
    ways = [_size(a - start) for a in runs[0]]
    return Difference(
        names=(first, second),
        fields={field: (literal(a), literal(b)) for field, (a, b) in differing.items()},
        without_effect=tuple(field for field in differing if field not in effective),
        without_lr=tuple(dict.fromkeys(n for n, r in zip((first, second), given, strict=True) if r.lr is None)),
        rms=(rms[0], rms[1]),
        same=all(x <= SAME * way for x, way in zip(between, ways, strict=True)),
        apart=[_ratio(x, way) for x, way in zip(between, ways, strict=True)],
    )


def sample() -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The matrix and its gradients, one per step.

    A part of the gradient stays the same and the rest is noise; its rows and columns differ by up to two decades each,
    and its size goes up and down by half a decade in 50 steps.
    """
    rng = np.random.default_rng(SEED)
    param = 0.05 * rng.standard_normal(SHAPE)
    rows, columns = (10 ** rng.uniform(-1, 1, size) for size in SHAPE)
    scale = 1e-2 * rows[:, None] * columns
    stays = 0.5 * rng.standard_normal(SHAPE)

    def gradients() -> Iterator[np.ndarray]:
        for t in range(1, STEPS + 1):
            yield 10 ** (0.25 * math.sin(2 * math.pi * t / 50)) * scale * (stays + rng.standard_normal(SHAPE))

    return param, gradients()


def _run(recipe: Recipe) -> Iterator[np.ndarray]:
    param, gradients = sample()
    state = oracle.init(recipe, param, name=NAME)
    for gradient in gradients:
        param, state = oracle.step(recipe, param, gradient, state, name=NAME)
        yield param


def _size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
