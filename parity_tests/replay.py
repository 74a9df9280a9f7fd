"""The oracle, JAX and torch over the recorded runs: what the tests and the tables ask."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import adafactor_jax
import adafactor_torch
from adafactor_spec import Recipe, factoring, oracle, recipes, replace
from parity_tests import recorded
from parity_tests.recorded import Array, Run, Setting

# The figure is 1e-10 after 20 steps, relative to the largest element. The originals and we differ by rounding
# only: the worst is an original's own 1 - 0.999^t, formed as a difference and therefore known to 1e-13.
FLOAT64 = 1e-12
# The figure for originals that know float32 only. Two orders of the same arithmetic: 20 steps of some 50
# roundings of 6e-8, of which most cancel.
FLOAT32 = 1e-5
# The figure for a bfloat16 momentum. Where float32 rounding moves an average over a tie, the stored one is
# another bfloat16 number: one unit in its last place, 2^-8 of it or more.
BFLOAT16_MOMENTUM = 5e-3
TOLERANCES = {"float64": FLOAT64, "float32": FLOAT32, "bfloat16 momentum": BFLOAT16_MOMENTUM}

Params = dict[str, Array]
States = dict[str, dict[str, Array]]
Note = Callable[[int, Params], None]


def recipe_of(setting: Setting) -> Recipe:
    """The recipe, asked for in the original's words."""
    recipe: Recipe = getattr(recipes, setting.implementation)(**setting.arguments())
    return recipe


def kind_of(setting: Setting) -> str:
    """The arithmetic of a setting, a key of TOLERANCES."""
    recipe = recipe_of(setting)
    narrow = recipe.beta1 is not None and recipe.momentum_dtype == "bfloat16"
    return "bfloat16 momentum" if narrow else setting.dtype


def tolerance(setting: Setting) -> float:
    """The largest deviation that is rounding."""
    return TOLERANCES[kind_of(setting)]


def run_oracle(setting: Setting, params: Params, grads: Params, note: Note) -> States:
    recipe = recipe_of(setting)
    kind: dict[str, Any] = {"dtype": setting.dtype, "compute": np.dtype(setting.dtype).type}
    states = {name: oracle.init(recipe, p, name=name, **kind) for name, p in params.items()}
    for t in range(1, recorded.STEPS + 1):
        now = replace(recipe, lr=setting.external_lr(t)) if setting.external_lr else recipe
        for name in params:
            if t == setting.late_step:
                states[name] = replaced(states[name], step=setting.late_finished)
            grad = grads[name][t - 1]
            params[name], states[name] = oracle.step(now, params[name], grad, states[name], name=name, **kind)
        note(t, params)
    return {name: _present(vars(state)) for name, state in states.items()}


def run_jax(setting: Setting, params: Params, grads: Params, note: Note, *, compiled: bool = False) -> States:
    with jax.enable_x64(setting.dtype == "float64"):
        recipe = recipe_of(setting)
        # The originals' schedules from outside are functions of t: the one of this project's that is traced.
        recipe = replace(recipe, lr=setting.external_lr) if setting.external_lr else recipe
        tx, step = _jax_step(recipe, compiled or setting.dtype == "float32")
        values: Any = {name: jnp.asarray(p, setting.dtype) for name, p in params.items()}
        state = tx.init(values)
        for t in range(1, recorded.STEPS + 1):
            if t == setting.late_step:
                state = state._replace(count=jnp.asarray(setting.late_finished, jnp.int32))
            now = {name: jnp.asarray(g[t - 1], setting.dtype) for name, g in grads.items()}
            values, state = step(values, state, now)
            note(t, {name: np.asarray(value) for name, value in values.items()})
        entries = ("v_row", "v_col", "v", "v_max", "m")
        return {
            name: _present({entry: optax.tree_utils.tree_get(state, entry, {}).get(name) for entry in entries})
            for name in params
        }


@functools.lru_cache(maxsize=256)
def _jax_step(recipe: Recipe, compiled: bool) -> tuple[optax.GradientTransformationExtraArgs, Callable[..., Any]]:
    """The optimizer and a step of it. Originals that compute the same have equal recipes and share a program."""
    tx = adafactor_jax.adafactor(recipe=recipe)

    def step(values: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, values)
        return optax.apply_updates(values, updates), state

    return tx, jax.jit(step) if compiled else step


def run_torch(setting: Setting, params: Params, grads: Params, note: Note) -> States:
    dtype = getattr(torch, setting.dtype)
    values = {name: torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for name, p in params.items()}
    sign = -1.0 if setting.maximize else 1.0  # `grads` descend: the optimizer negates them again
    optimizer = adafactor_torch.Adafactor(values.items(), recipe=recipe_of(setting), maximize=setting.maximize)
    for t in range(1, recorded.STEPS + 1):
        if t == setting.late_step:
            for value in values.values():
                optimizer.state[value]["step"].fill_(setting.late_finished)
        if setting.external_lr:
            optimizer.param_groups[0]["lr"] = setting.external_lr(t)
        for name, value in values.items():
            value.grad = torch.tensor(sign * grads[name][t - 1], dtype=dtype)
        optimizer.step()
        note(t, {name: value.detach().numpy() for name, value in values.items()})
    return {
        name: _present({entry: x.double() for entry, x in optimizer.state[value].items()})
        for name, value in values.items()
    }


Runner = Callable[[Setting, Params, Params, Note], States]
# JAX operator by operator in float64: its operators are compiled once for every shape, a program for each of 200
# settings takes minutes. The few settings in float32 are cheaper as programs.
RUNNERS: dict[str, Runner] = {"oracle": run_oracle, "jax": run_jax, "torch": run_torch}
COMPILED: Runner = functools.partial(run_jax, compiled=True)


@dataclass(frozen=True)
class Replay:
    """Our answer to one setting: how far each recorded tensor of each shape is away, and the state at the end."""

    deviations: dict[str, dict[str, float]]  # by shape, then "t=3" or the original's name of a state tensor
    states: States

    @property
    def worst(self) -> tuple[float, str]:
        """The largest deviation and where it is; (0, "") without any run."""
        found = [(d, f"{shape} {what}") for shape, of in self.deviations.items() for what, d in of.items()]
        return max(found, default=(0.0, ""))


def replay(setting: Setting, runner: Runner, shapes: Any = tuple(recorded.SHAPES)) -> Replay:
    """The supported runs of a setting, again."""
    runs = {run.shape: run for run in recorded.runs(setting) if run.shape in {*shapes} - setting.unsupported}
    found: dict[str, dict[str, float]] = {shape: {} for shape in runs}
    if not runs:
        return Replay(found, {})

    def note(t: int, params: Params) -> None:
        for shape, value in params.items():
            if t in recorded.RECORDED:
                once = max(recorded.largest_of(kept) for at, kept in runs[shape].params.items() if at <= t)
                found[shape][f"t={t}"] = recorded.deviation(value, runs[shape].params[t], once)

    params = {shape: recorded.inputs(shape)[0] for shape in runs}
    sign = -1.0 if setting.maximize else 1.0
    grads = {shape: sign * recorded.inputs(shape)[1] for shape in runs}
    states = runner(setting, params, grads, note)
    recipe = recipe_of(setting)
    for shape, run in runs.items():
        plan = factoring.plan(recipe.factoring, recorded.SHAPES[shape], shape)
        for tensor, packed in run.state.items():
            found[shape][tensor] = min(
                (recorded.deviation(x, packed) for x in _as_recorded(setting, run, tensor, states[shape], plan)),
                default=float("inf"),
            )
    return Replay(found, states)


def refuses(setting: Setting, implementation: str, shape: str) -> bool:
    """Whether the recipe, or the optimizer when it sees the shape, says that it does not do this."""
    param = recorded.inputs(shape)[0]
    try:
        recipe = recipe_of(setting)
        if implementation == "oracle":
            oracle.init(recipe, param, name=shape)
        elif implementation == "jax":
            adafactor_jax.adafactor(recipe=recipe).init({shape: jnp.asarray(param)})
        else:
            adafactor_torch.Adafactor({shape: torch.tensor(param)}.items(), recipe=recipe)
    except ValueError:
        return True
    return False


def _present(state: Any) -> dict[str, Array]:
    return {name: np.asarray(value, np.float64) for name, value in state.items() if value is not None}


def _as_recorded(setting: Setting, run: Run, tensor: str, state: dict[str, Array], plan: factoring.Plan) -> list[Array]:
    """Our state as the original keeps it: its sums instead of means, its shapes.

    Originals disagree about which factor is the row. The axes that a factor lacks say which of ours it is; where both
    fit, in a square, the answer has both; where none does, it has none.
    """
    says, shape = setting.state_names[tensor], run.state_shapes[tensor]
    kind = {"running": "v_max"}.get(says.split()[0], says.split(",")[0].split()[0])
    if kind == "v" and plan.factored:  # Keras keeps what the factors make, too
        return [state["v_row"] * state["v_col"] / np.mean(state["v_row"], axis=plan.rows, keepdims=True)]
    if kind not in ("v_row", "v_col"):
        return [state[kind].reshape(shape)] if kind in state else []
    fitting = []
    for factor, reduced in (("v_row", plan.cols), ("v_col", plan.rows)):
        if factor in state and shape in (state[factor].shape, np.squeeze(state[factor], axis=reduced).shape):
            count = math.prod(plan.matrix_shape[axis] for axis in reduced) if "number of" in says else 1
            fitting.append(count * state[factor].reshape(shape))
    return fitting
