"""The oracle, JAX and torch against recorded runs of the originals, in float64."""

from collections.abc import Callable
from dataclasses import replace as replaced
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import adafactor_jax
import adafactor_torch
from adafactor_spec import Recipe, factoring, oracle, recipes, replace
from parity_tests import recorded
from parity_tests.recorded import Array, Run, Setting

# The figure for 20 steps, relative to the largest element. The originals and we differ by rounding only: the
# worst is an original's own 1 - 0.999^t, formed as a difference and therefore known to 1e-13.
FLOAT64 = 1e-12

Params = dict[str, Array]
States = dict[str, dict[str, Array]]
ALL = [setting for name in recorded.implementations() for setting in recorded.settings(name)]


def recipe_of(setting: Setting) -> Recipe:
    recipe: Recipe = getattr(recipes, setting.implementation)(**setting.arguments())
    return recipe


def run_oracle(
    setting: Setting, params: Params, grads: dict[str, Array], note: Callable[[int, Params], None]
) -> States:
    recipe = recipe_of(setting)
    states = {name: oracle.init(recipe, p) for name, p in params.items()}
    for t in range(1, recorded.STEPS + 1):
        now = replace(recipe, lr=setting.external_lr(t)) if setting.external_lr else recipe
        for name in params:
            if t == setting.late_step:
                states[name] = replaced(states[name], step=setting.late_finished)
            grad = -grads[name][t - 1] if setting.maximize else grads[name][t - 1]
            params[name], states[name] = oracle.step(now, params[name], grad, states[name])
        note(t, params)
    return {name: _present(vars(state)) for name, state in states.items()}


def run_jax(setting: Setting, params: Params, grads: dict[str, Array], note: Callable[[int, Params], None]) -> States:
    with jax.enable_x64(True):
        recipe = recipe_of(setting)
        tx = adafactor_jax.adafactor(recipe=replace(recipe, lr=setting.external_lr) if setting.external_lr else recipe)

        @jax.jit
        def step(values: Any, state: Any, g: Any) -> tuple[Any, Any]:
            updates, state = tx.update(g, state, values)
            return optax.apply_updates(values, updates), state

        values: Any = {name: jnp.asarray(p) for name, p in params.items()}
        state = tx.init(values)
        for t in range(1, recorded.STEPS + 1):
            if t == setting.late_step:
                state = state._replace(count=jnp.asarray(setting.late_finished, jnp.int32))
            sign = -1.0 if setting.maximize else 1.0
            values, state = step(values, state, {name: jnp.asarray(sign * g[t - 1]) for name, g in grads.items()})
            note(t, {name: np.asarray(value) for name, value in values.items()})
        entries = ("v_row", "v_col", "v", "v_max", "m")
        return {
            name: _present({entry: optax.tree_utils.tree_get(state, entry, {}).get(name) for entry in entries})
            for name in params
        }


def run_torch(setting: Setting, params: Params, grads: dict[str, Array], note: Callable[[int, Params], None]) -> States:
    values = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer = adafactor_torch.Adafactor(values.values(), recipe=recipe_of(setting), maximize=setting.maximize)
    for t in range(1, recorded.STEPS + 1):
        if t == setting.late_step:
            for value in values.values():
                optimizer.state[value]["step"].fill_(setting.late_finished)
        if setting.external_lr:
            optimizer.param_groups[0]["lr"] = setting.external_lr(t)
        for name, value in values.items():
            value.grad = torch.tensor(grads[name][t - 1])
        optimizer.step()
        note(t, {name: value.detach().numpy() for name, value in values.items()})
    return {name: _present(optimizer.state[value]) for name, value in values.items()}


RUNNERS = {"oracle": run_oracle, "jax": run_jax, "torch": run_torch}


def deviations(
    setting: Setting, runner: Callable[..., States], shapes: Any = tuple(recorded.SHAPES)
) -> dict[str, float]:
    """The worst deviation of each recorded tensor: "mat4x6 t=3", "mat4x6 v_row"."""
    runs = {run.shape: run for run in recorded.runs(setting) if run.shape in shapes}
    inputs = {shape: recorded.inputs(shape) for shape in runs}
    found: dict[str, float] = {}

    def note(t: int, params: Params) -> None:
        for shape, value in params.items():
            if t in recorded.RECORDED:
                found[f"{shape} t={t}"] = recorded.deviation(value, runs[shape].params[t])

    params = {shape: param for shape, (param, _) in inputs.items()}
    states = runner(setting, params, {shape: grads for shape, (_, grads) in inputs.items()}, note)
    for shape, run in runs.items():
        for tensor, packed in run.state.items():
            found[f"{shape} {tensor}"] = recorded.deviation(_as_recorded(setting, run, tensor, states[shape]), packed)
    return found


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("setting", ALL, ids=lambda setting: f"{setting.implementation}-{setting.name}")
def test_recorded_runs(setting: Setting, runner: str) -> None:
    found = deviations(setting, RUNNERS[runner])
    worst = max(found, key=lambda where: found[where])
    assert found[worst] <= FLOAT64, f"{worst}: {found[worst]:.3g} of the largest element, allowed {FLOAT64}"


def test_every_recorded_run_is_here() -> None:
    counts = {name: sum(len(recorded.runs(s)) for s in recorded.settings(name)) for name in recorded.implementations()}
    assert counts == {
        "paper": 14, "adafactor_pytorch": 195, "adafactor_pytorch_parent": 195, "torch": 169, "optax": 195
    }  # fmt: skip


def test_inputs_are_those_that_were_recorded() -> None:
    with np.load(recorded.HERE / "inputs.npz") as stored:
        for name in recorded.SHAPES:
            param, grads = recorded.inputs(name)
            np.testing.assert_array_equal(recorded.pack(param), stored[f"{name}/param"])
            np.testing.assert_array_equal([recorded.pack(g) for g in grads], stored[f"{name}/grads"])


def _present(state: Any) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in state.items() if value is not None}


def _as_recorded(setting: Setting, run: Run, tensor: str, state: dict[str, Array]) -> Array:
    """Our state as the original keeps it: its sums instead of means, its axes, its idea of which factor is the row."""
    recipe = recipe_of(setting)
    plan = factoring.plan(recipe.factoring, recorded.SHAPES[run.shape], "")
    kind = setting.state_names[tensor].split(",")[0].split()[0]
    kind = {"running": "v_max"}.get(kind, kind)
    value = state[kind]
    if setting.implementation == "optax" and plan.factored:
        largest = max((*plan.rows, *plan.cols), key=lambda axis: (plan.shape[axis], axis))
        if largest in plan.rows:  # optax's v_row is the factor without the largest axis
            value = state[{"v_row": "v_col", "v_col": "v_row"}.get(kind, kind)]
    if "number of rows" in setting.state_names[tensor]:
        value = value * plan.matrix_shape[0]
    if "number of columns" in setting.state_names[tensor]:
        value = value * plan.matrix_shape[1]
    return value.reshape(run.state_shapes[tensor])
