"""JAX and torch against the oracle, and against each other: any recipe, any gradients, float64 and float32."""

from typing import Any

import jax
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

from adafactor_parity import Budget, JaxRunner, OracleRunner, TorchRunner, budget, ulp
from adafactor_spec import Recipe
from parity_tests.profiles import draws_many, examples
from parity_tests.random_recipes import any_recipe, problems

EXAMPLES = settings(
    max_examples=examples(8, 400), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
Problem = tuple[dict[str, Any], list[dict[str, Any]]]
Run = list[dict[str, Any]]  # the parameters after every step


def run(which: str, recipe: Recipe, problem: Problem, dtype: str, *, plain: bool = False) -> Run:
    """The parameters after every step of one implementation; `plain` takes torch's path that is made of its kernels."""
    params, grads = problem
    if which == "oracle":
        runner: Any = OracleRunner(recipe, params, dtype)
    elif which == "yardstick":
        runner = OracleRunner(recipe, params, dtype, compute=np.float64 if dtype == "float64" else np.float32)
    elif which == "jax":
        runner = JaxRunner(recipe, params, dtype, jax.devices("cpu")[0])
    else:
        runner = TorchRunner(recipe, params, dtype, torch.device("cpu"), plain=plain)
    values = []
    for grad in grads:
        with np.errstate(over="ignore", under="ignore"):
            runner.step(grad)
        values.append(runner.params())
    return values


def compared(runs: dict[str, Run], problem: Problem, dtype: str) -> tuple[dict[str, tuple[float, float]], Budget]:
    """For each pair the worst deviation, relative to the tensor's largest element and in ulp there; and the budget."""
    largest = {name: float(np.max(np.abs(p), initial=0.0)) for name, p in problem[0].items()}
    pairs = [("yardstick", "oracle"), ("jax", "oracle"), ("torch", "oracle"), ("jax", "torch")]
    worst = {f"{one} from {other}": (0.0, 0.0) for one, other in pairs}
    for step in range(len(problem[1])):
        values = {which: run[step] for which, run in runs.items()}
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


def agree(recipe: Recipe, problem: Problem, dtype: str) -> None:
    """Every pair is within the budget."""
    runs = {which: run(which, recipe, problem, dtype) for which in ("oracle", "yardstick", "jax", "torch")}
    worst, allowed = compared(runs, problem, dtype)
    assert all(allowed.allows(*found) for found in worst.values()), (worst, allowed)


# A new recipe is a new program, which takes seconds to compile. The operators of all recipes take a minute, once: many
# recipes are cheaper operator by operator.
BY_OPERATOR = draws_many()


@EXAMPLES
@given(any_recipe(), problems())
def test_float64(recipe: Recipe, problem: Any) -> None:
    with jax.disable_jit(BY_OPERATOR):
        agree(recipe, problem, "float64")


@EXAMPLES
@given(any_recipe(), problems())
def test_float32(recipe: Recipe, problem: Any) -> None:
    with jax.disable_jit(BY_OPERATOR):
        agree(recipe, problem, "float32")


@settings(max_examples=examples(2, 60))
@given(any_recipe(), problems())
def test_compiled(recipe: Recipe, problem: Any) -> None:
    agree(recipe, problem, "float64")
