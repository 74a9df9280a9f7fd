"""Stacked layers and banks of experts, over a mesh or not: each layer and each expert as a parameter of its own."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from adafactor_jax import adafactor, state_shardings
from adafactor_spec.factoring import by_name, explicit, last_two
from parity_tests.jax_meshes import (
    FLOAT64,
    Shape,
    Tree,
    collectives,
    error,
    gradients,
    mesh_of,
    misplaced,
    parameters,
    run,
    specs_of,
    step_of,
)

pytestmark = pytest.mark.xdist_group("sharded stacks")  # what they are compared with is computed once

# name: (shape of one, shape of the stack in front of it)
STACKS: dict[str, tuple[Shape, Shape]] = {
    "layers/kernel": ((8, 16), (2,)),
    "layers/scale": ((16,), (2,)),
    "experts/kernel": ((4, 8), (2, 2)),
    "head": ((16, 8), ()),
}
RULE = by_name(
    {
        "layers/kernel": explicit(rows=1, cols=2, batch=0),
        "layers/scale": explicit(rows=(), cols=(), batch=0),
        "experts": explicit(rows=-2, cols=-1, batch=(0, 1)),
    },
    default=last_two,
)
TX = adafactor(0.05, factoring=RULE, telemetry=True)
MESH = (2, 2)  # x, y
LAYOUTS = {
    "whole": dict.fromkeys(STACKS, P()),
    "layers": {"layers/kernel": P("x"), "layers/scale": P("x"), "experts/kernel": P("x", "y"), "head": P("y")},
    "width": {
        "layers/kernel": P(None, "x", "y"),
        "layers/scale": P(None, "y"),
        "experts/kernel": P(None, None, "y", "x"),
        "head": P("x", "y"),
    },
    "both": {
        "layers/kernel": P("x", "y"),
        "layers/scale": P("x", "y"),
        "experts/kernel": P("x", None, None, "y"),
        "head": P(None, "y"),
    },
}


def separate_shapes() -> dict[str, Shape]:
    """Every layer and every expert under a name of its own."""
    return {f"{name}{list(place)}": one for name, (one, stack) in STACKS.items() for place in np.ndindex(*stack)}


def stacked(separate: Tree) -> Tree:
    """Separate parameters, which differ in size by up to a hundred, as stacks."""
    values = {
        name: [separate[f"{name}{list(place)}"] for place in np.ndindex(*stack)] for name, (_, stack) in STACKS.items()
    }
    return {name: np.reshape(values[name], (*stack, *one)) for name, (one, stack) in STACKS.items()}


def unstacked(stacks: Tree) -> Tree:
    return {
        f"{name}{list(place)}": np.asarray(stacks[name])[place]
        for name, (_, stack) in STACKS.items()
        for place in np.ndindex(*stack)
    }


START = parameters(separate_shapes())
GRADS = gradients(separate_shapes())


@functools.cache
def separate_layers() -> Tree:
    params = jax.device_put(START, jax.devices("cpu")[0])
    tx = adafactor(0.05)
    return run(jax.jit(step_of(tx)), params, tx.init(params), GRADS)[0]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("layout", "kind"), [*((layout, "auto") for layout in LAYOUTS), ("width", "explicit"), ("both", "explicit")]
)
def test_a_stack_is_separate_parameters(layout: str, kind: str) -> None:
    with jax.enable_x64(True):
        mesh = mesh_of(kind, MESH)
        places = {name: NamedSharding(mesh, spec) for name, spec in LAYOUTS[layout].items()}
        params, grads = jax.device_put(stacked(START), places), [stacked(grad) for grad in GRADS]
        shardings = state_shardings(TX, params)
        state = jax.jit(TX.init, out_shardings=shardings)(params)
        step = jax.jit(step_of(TX)).lower(params, state, jax.device_put(grads[0], places)).compile()
        moved, state = run(step, params, state, grads)
        assert error(unstacked(moved), separate_layers(), START) <= FLOAT64
        assert set(collectives(step)) <= {"all-reduce"}
        assert not misplaced((moved, state), (places, shardings))


def test_a_rule_without_batch_axes_is_another_optimizer() -> None:
    with jax.enable_x64(True):
        params, tx = jax.device_put(stacked(START)), adafactor(0.05)
        moved, _ = run(jax.jit(step_of(tx)), params, tx.init(params), [stacked(grad) for grad in GRADS])
        assert error(unstacked(moved), separate_layers(), START) > 0.1


def test_where_the_factors_of_a_stack_lie() -> None:
    mesh = mesh_of("auto", MESH)
    params = {
        name: jax.ShapeDtypeStruct((*stack, *one), "float32", sharding=NamedSharding(mesh, LAYOUTS["both"][name]))
        for name, (one, stack) in STACKS.items()
    }
    assert specs_of(state_shardings(adafactor(factoring=RULE), params)) == {
        "inner/0/v_row/layers/kernel": P("x", "y"),
        "inner/0/v_col/layers/kernel": P("x"),
        "inner/0/v/layers/scale": P("x", "y"),
        "inner/0/v_row/experts/kernel": P("x"),
        "inner/0/v_col/experts/kernel": P("x", None, None, "y"),
        "inner/0/v_col/head": P(None, "y"),
    }
