"""Steps one recipe in one dtype in the oracle, in JAX and in torch, and judges how far they are apart."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..devices import Devices
from . import zoo
from .budgets import Budget, budget, narrow_momentum
from .deviation import Comparison, Deviation
from .runners import JaxRunner, OracleRunner, Runner, TorchRunner
from .zoo import Setting

# Each name says whose distance from whom.
PAIRS = {
    "JAX from oracle": ("jax", "oracle"),
    "torch from oracle": ("torch", "oracle"),
    "JAX from torch": ("jax", "torch"),
}


@dataclass(frozen=True)
class Stepped:
    """One setting in one dtype: the worst deviation of each pair, and the first one over the budget if there is one.

    `per_step` also has the yardstick, where the dtype has one.
    """

    setting: Setting
    dtype: str
    tensors: tuple[str, ...]
    budget: Budget
    worst: dict[str, Deviation]
    per_step: dict[str, list[float]]
    beyond: dict[str, Deviation]

    def failures(self) -> list[str]:
        """One line for each pair that is beyond the budget: the recipe, and where it first went wrong."""
        recipe = f"recipe {self.setting.label}, {self.dtype}"
        return [
            f"{pair}: {recipe}, {first.where()}: {first.relative:.2g} of the largest element ({first.ulp:.3g} ulp), "
            f"budget {self.budget}"
            for pair, first in self.beyond.items()
        ]


def step_all(
    setting: Setting, dtype: str, tensors: tuple[str, ...], devices: Devices, seed: int, advance: Callable[[], None]
) -> Stepped:
    """Step these tensors of the zoo with one setting in one dtype. `advance` is called after every step."""
    params = zoo.parameters(tensors, dtype, seed)
    runners: dict[str, Runner] = {
        "oracle": OracleRunner(setting.recipe, params, dtype),
        "jax": JaxRunner(setting.recipe, params, dtype, devices.jax),
        "torch": TorchRunner(setting.recipe, params, dtype, devices.torch),
    }
    pairs = dict(PAIRS)
    if dtype != "float64":
        # In float32 optax adds the update itself, so that there is no difference to round.
        runners["yardstick"] = OracleRunner(setting.recipe, params, dtype, np.float32, by_addition=dtype != "float32")
        pairs["yardstick"] = ("yardstick", "oracle")
    comparisons = {pair: Comparison(dtype) for pair in pairs}
    largest = {name: _largest(value) for name, value in params.items()}
    for t, grads in enumerate(zoo.gradients(tensors, dtype, seed), start=1):
        for runner in runners.values():
            runner.step(grads)
        values = {name: runner.params() for name, runner in runners.items()}
        largest = {name: max(before, _largest(values["oracle"][name])) for name, before in largest.items()}
        for pair, (one, other) in pairs.items():
            comparisons[pair].add(t, values[one], values[other], largest)
        advance()
    per_step = {pair: comparison.worst_per_step() for pair, comparison in comparisons.items()}
    yardstick = comparisons.pop("yardstick", None)
    momentum = narrow_momentum(setting.recipe, dtype)
    allowed = budget(dtype, yardstick.worst().relative if yardstick else 0.0, momentum)
    beyond = {pair: comparison.first_beyond(allowed) for pair, comparison in comparisons.items()}
    return Stepped(
        setting,
        dtype,
        tensors,
        allowed,
        worst={pair: comparison.worst() for pair, comparison in comparisons.items()},
        per_step=per_step,
        beyond={pair: first for pair, first in beyond.items() if first is not None},
    )


def _largest(value: zoo.Array) -> float:
    return float(np.max(np.abs(value), initial=0.0))
