"""JAX and torch against the oracle, and against each other: any recipe, any gradients, float64 and float32."""

from typing import Any

import jax
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

from adafactor_parity import Budget, JaxRunner, OracleRunner, TorchRunner, budget, ulp
from adafactor_spec import Recipe
from parity_tests.profiles import examples
from parity_tests.random_recipes import any_recipe, problems

EXAMPLES = settings(max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def deviations(
    recipe: Recipe, problem: Any, dtype: str, *, plain: bool = False
) -> tuple[dict[str, tuple[float, float]], Budget]:
    """For each pair the worst deviation, relative to the tensor's largest element and in ulp there; and the budget.

    `plain` takes torch's plain path, which is made of the kernels.
    """
    params, grads = problem
    runners: dict[str, Any] = {
        "oracle": OracleRunner(recipe, params, dtype),
        "yardstick": OracleRunner(recipe, params, dtype, compute=np.float64 if dtype == "float64" else np.float32),
        "jax": JaxRunner(recipe, params, dtype, jax.devices("cpu")[0]),
        "torch": TorchRunner(recipe, params, dtype, torch.device("cpu"), plain=plain),
    }
    largest = {name: float(np.max(np.abs(p), initial=0.0)) for name, p in params.items()}
    pairs = [("yardstick", "oracle"), ("jax", "oracle"), ("torch", "oracle"), ("jax", "torch")]
    worst = {f"{one} from {other}": (0.0, 0.0) for one, other in pairs}
    for grad in grads:
        with np.errstate(over="ignore", under="ignore"):
            for runner in runners.values():
                runner.step(grad)
        values = {which: runner.params() for which, runner in runners.items()}
        for name, value in values["oracle"].items():
            if not value.size:
                continue
            assert np.all(np.isfinite(value))
            largest[name] = max(largest[name], float(np.max(np.abs(value))))
            for one, other in pairs if largest[name] else []:
                apart = float(np.max(np.abs(values[one][name] - values[other][name])))
                apart = apart if np.isfinite(apart) else float("inf")
                found = (apart / largest[name], apart / float(ulp(largest[name], dtype)))
                worst[f"{one} from {other}"] = max(worst[f"{one} from {other}"], found)
    return worst, budget(dtype, worst.pop("yardstick from oracle")[0])


@EXAMPLES
@given(any_recipe(), problems())
def test_float64(recipe: Recipe, problem: Any) -> None:
    with jax.disable_jit():  # a new recipe is a new program: compiling it takes longer than running it
        worst, allowed = deviations(recipe, problem, "float64")
    assert all(allowed.allows(*found) for found in worst.values()), (worst, allowed)


@EXAMPLES
@given(any_recipe(), problems())
def test_float32(recipe: Recipe, problem: Any) -> None:
    with jax.disable_jit():
        worst, allowed = deviations(recipe, problem, "float32")
    assert all(allowed.allows(*found) for found in worst.values()), (worst, allowed)


@settings(max_examples=examples(6))
@given(any_recipe(), problems())
def test_compiled(recipe: Recipe, problem: Any) -> None:
    worst, allowed = deviations(recipe, problem, "float64")
    assert all(allowed.allows(*found) for found in worst.values()), (worst, allowed)
