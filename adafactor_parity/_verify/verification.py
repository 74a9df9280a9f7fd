"""The result of `verify`: all figures of a run, and their plain form for `report.json`."""

import math
from dataclasses import dataclass
from typing import Any

from adafactor_spec import to_plain

from .checks import Check, failed
from .options import Options
from .piecewise import BOUNDARIES, FACTOR, PiecewiseRun
from .stepping import budgets, zoo
from .stepping.deviation import Deviation
from .stepping.step_all import Stepped
from .training.corpus import Corpus
from .training.train import Curves, Trained


@dataclass(frozen=True)
class Verification:
    """Every figure of one run of `verify`; `plots` are PNG files by name."""

    options: Options
    stepped: list[Stepped]
    trained: list[Trained]
    piecewise: PiecewiseRun
    checks: list[Check]
    corpus: Corpus
    entropy: float
    versions: dict[str, str]
    machine: dict[str, str | int]
    devices: dict[str, str]
    plots: dict[str, bytes]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every deviation is within its budget and every check holds."""
        return not self.failures()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that were stepped, by name."""
        stepped = {name for row in self.stepped for name in row.tensors}
        return {name: shape for name, shape in zoo.SHAPES.items() if name in stepped}

    def failures(self) -> list[str]:
        """One line for each that is not: recipe, shape, step and element."""
        return [line for stepped in self.stepped for line in stepped.failures()] + failed(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as `report.json` has them. Numbers that are not finite become strings."""
        options = self.options
        plain = {
            "passed": self.passed,
            "failures": self.failures(),
            "command": options.command(),
            "seed": options.seed,
            "seconds": round(self.seconds, 2),
            "versions": self.versions,
            "machine": self.machine,
            "devices": self.devices,
            "text": {
                "source": self.corpus.source,
                "characters": self.corpus.characters,
                "vocabulary": self.corpus.vocabulary,
                "training_characters": int(self.corpus.train.size),
                "held_out_characters": int(self.corpus.held_out.size),
                "held_out_entropy_of_single_characters_nats": self.entropy,
            },
            "zoo": {"steps": zoo.STEPS, "zero_step": zoo.ZERO_STEP, "shapes": self.shapes},
            "stepping": [_stepped(stepped) for stepped in self.stepped],
            "training": [_trained(run) for run in self.trained],
            "piecewise": {"boundaries": BOUNDARIES, "factor": FACTOR, **vars(self.piecewise)},
            "checks": [vars(check) for check in self.checks],
        }
        finite: dict[str, Any] = _finite(plain)
        return finite


def _stepped(stepped: Stepped) -> dict[str, Any]:
    return {
        "recipe": stepped.setting.name,
        "setting": stepped.setting.label,
        "fields": {name: to_plain(value) for name, value in vars(stepped.setting.recipe).items()},
        "dtype": stepped.dtype,
        "tensors": stepped.tensors,
        "budget": {"relative": stepped.budget.relative, "ulp": _floor(stepped), "yardstick": stepped.budget.yardstick},
        "within_budget": not stepped.beyond,
        "worst": {pair: _deviation(worst) for pair, worst in stepped.worst.items()},
        "first_beyond_budget": {pair: _deviation(first) for pair, first in stepped.beyond.items()},
        "worst_per_step": stepped.per_step,
    }


def _floor(stepped: Stepped) -> float | None:
    return None if stepped.budget.yardstick is None else budgets.FLOOR_ULP


def _deviation(deviation: Deviation) -> dict[str, Any]:
    return {**vars(deviation), "shape": zoo.SHAPES[deviation.tensor]}


def _trained(run: Trained) -> dict[str, Any]:
    return {
        "recipe": run.setting.name,
        "setting": run.setting.label,
        "dtype": run.dtype,
        "steps": run.steps,
        "parameter_bytes": run.parameter_bytes,
        "jax": _curves(run.jax),
        "torch": _curves(run.torch),
        "loss_gap": run.loss_gaps(),
        "weight_drift": [vars(drift) for drift in run.drift],
        "learning_rate": run.learning_rate,
        "validated_after": run.validated_after,
    }


def _curves(curves: Curves) -> dict[str, Any]:
    return vars(curves)


def _finite(value: Any) -> Any:
    """Strict JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
