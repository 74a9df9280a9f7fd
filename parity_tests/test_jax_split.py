"""`adafactor(mesh=..., specs=...)`: one device's numbers from two all-reduces per axis of the mesh, however many
parameters there are."""

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from adafactor_jax import adafactor, state_shardings
from adafactor_spec import Recipe, factoring, recipes, replace, schedules
from parity_tests.jax_meshes import (
    ERRORS,
    LAYOUTS,
    collectives,
    error,
    gradients,
    mesh_of,
    misplaced,
    parameters,
    run,
    shapes_of,
    shardings_of,
    step_of,
)
from parity_tests.jax_steps import compilations
from parity_tests.profiles import draws_many

# All-reduces per update: two for each axis of the mesh over which something is split.
ALL_REDUCES = {"fsdp": 2, "tp": 2, "2d": 4, "both": 4}
EVERYTHING = Recipe(
    lr=0.1,
    beta2=schedules.adam_decay(0.99),
    clipping_threshold=0.5,
    max_parameter_scale=1.0,
    beta1=0.9,
    momentum_of="step",
    weight_decay=0.1,
)
KINDS = {
    "paper": recipes.paper(),
    "everything": EVERYTHING,
    "floor, averaged gradients": replace(recipes.torch(), beta1=0.9, momentum_of="grad", debias=True),
    "amsgrad": Recipe(amsgrad=True, beta2=0.9, eps1_mode="floor", eps1=1e-8),
    "L2, whole": Recipe(factoring=factoring.no_factoring, weight_decay=0.1, weight_decay_by="grad"),
    "no clipping": Recipe(clipping_threshold=None, multiply_by_parameter_scale=False),
}


def problem(kind: str, layout: str, count: int, dtype: str, recipe: Recipe = KINDS["paper"], **options: Any) -> Any:
    """(transformation, parameters on a mesh, its state, its gradients on the host, the compiled step's function)."""
    mesh = mesh_of(kind)
    params = parameters(shapes_of(count), dtype)
    places = shardings_of(mesh, layout, params)
    specs = None if kind == "explicit" else jax.tree.map(lambda place: place.spec, places)
    tx = adafactor(recipe=recipe, mesh=mesh, specs=specs, **options)
    placed = jax.device_put(params, places)
    shardings = state_shardings(tx, placed)
    state = jax.jit(tx.init, out_shardings=shardings)(placed)
    return tx, placed, state, shardings


@functools.cache
def paper_on_one_device(dtype: str) -> Any:
    """The parameters that every mesh has to arrive at."""
    return single(KINDS["paper"], parameters(shapes_of(4), dtype), gradients(shapes_of(4), dtype))[0]


def single(recipe: Recipe, params: Any, grads: list[Any], **options: Any) -> Any:
    tx = adafactor(recipe=recipe, **options)
    moved, state = jax.tree.map(jnp.asarray, params), tx.init(params)
    step = jax.jit(step_of(tx))
    for grad in grads:
        moved, state = step(moved, state, grad)
    return moved, state


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize(("dtype", "layout"), [*(("float64", layout) for layout in LAYOUTS), ("float32", "2d")])
def test_it_equals_one_device(dtype: str, kind: str, layout: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        tx, placed, state, shardings = problem(kind, layout, 4, dtype)
        start, grads = parameters(shapes_of(4), dtype), gradients(shapes_of(4), dtype)
        expected = paper_on_one_device(dtype)
        with jax.set_mesh(mesh_of(kind)), compilations() as seen:
            moved, state = run(jax.jit(step_of(tx)), placed, state, grads)
        assert error(moved, expected, start) <= ERRORS[dtype]
        assert not misplaced(state, shardings)
        assert len([line for line in seen if "jit(step)" in line]) == 1


@pytest.mark.parametrize("name", KINDS)
def test_every_recipe_equals_one_device(name: str) -> None:
    with jax.enable_x64(True):
        tx, placed, state, _ = problem("auto", "2d", 2, "float64", KINDS[name])
        start, grads = parameters(shapes_of(2)), gradients(shapes_of(2))
        expected, _ = single(KINDS[name], start, grads)
        moved, _ = run(jax.jit(step_of(tx)), placed, state, grads)
        assert error(moved, expected, start) <= ERRORS["float64"]


# Programs of a hundred parameters take half a minute to compile.
@pytest.mark.parametrize(
    ("layout", "count"),
    [*((layout, 4) for layout in ALL_REDUCES), ("2d", 13), *([("2d", 50), ("2d", 99)] if draws_many() else [])],
)
def test_the_sums_do_not_grow_with_the_parameters(layout: str, count: int) -> None:
    tx, placed, state, _ = problem("auto", layout, count, "float32")
    grads = jax.device_put(parameters(shapes_of(count), "float32"), shardings_of(mesh_of("auto"), layout, placed))
    compiled = jax.jit(step_of(tx)).lower(placed, state, grads).compile()
    assert collectives(compiled) == Counter({"all-reduce": ALL_REDUCES[layout]})


def test_without_it_they_do() -> None:
    """The control of the count."""
    mesh, params = mesh_of("auto"), parameters(shapes_of(8), "float32")
    placed = jax.device_put(params, shardings_of(mesh, "2d", params))
    tx = adafactor()
    compiled = jax.jit(step_of(tx)).lower(placed, tx.init(placed), placed).compile()
    assert collectives(compiled)["all-reduce"] > ALL_REDUCES["2d"]


def test_stacks_and_telemetry_lie_as_their_parameters() -> None:
    """Batch axes that are split, one that is not, and a missing gradient."""
    rule = factoring.by_name({"stack": factoring.explicit(1, 2, 0), "scales": factoring.explicit((), (), 0)})
    shapes = {"stack": (4, 8, 6), "scales": (4, 6), "alone": (8, 4), "still": (4, 4)}
    specs = {"stack": P("x", "y"), "scales": P(None, "y"), "alone": P("y", "x"), "still": P("x")}
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        grads: list[Any] = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(3)]
        for grad in grads:
            grad["still"] = None
        recipe = replace(EVERYTHING, factoring=rule)
        mesh = mesh_of("auto")
        tx = adafactor(recipe=recipe, telemetry=True, mesh=mesh, specs=specs)
        moved = {name: jax.device_put(p, NamedSharding(mesh, specs[name])) for name, p in start.items()}
        shardings = state_shardings(tx, moved)
        state, alone = jax.device_put(tx.init(moved), shardings), adafactor(recipe=recipe, telemetry=True)
        update, update_alone, expected = jax.jit(tx.update), jax.jit(alone.update), alone.init(start)
        for grad in grads:
            change, state = update(grad, state, moved)
            right, expected = update_alone(grad, expected, start)
            assert change["still"] is None and right["still"] is None
            assert error(change, right, jax.tree.map(jnp.zeros_like, right)) <= ERRORS["float64"]
        for found, right in zip(jax.tree.leaves(state.telemetry), jax.tree.leaves(expected.telemetry), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-6)  # they are float32
        assert state.telemetry.step_size["stack"].sharding.spec == P("x")
        assert not np.any(state.telemetry.update_rms["still"])


def test_sums_over_devices_stay_in_range() -> None:
    """Each device's mean of squares, 1.4e38, is a float32, and the sum of three is not."""
    mesh, params = mesh_of("auto"), {"w": np.full((8, 1), 1.2e19, "float32")}
    placed = jax.device_put(params, NamedSharding(mesh, P(("x", "y"))))
    tx = adafactor(mesh=mesh, specs=P(("x", "y")))
    updates, _ = jax.jit(tx.update)(placed, tx.init(placed), placed)
    np.testing.assert_allclose(updates["w"], -1e-2 * 1.2e19, rtol=1e-5)


def test_a_tree_without_leaves() -> None:
    tx = optax.masked(adafactor(mesh=mesh_of("auto"), specs=P()), {"w": False})
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"] is params["w"]


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_16_bit_weights_have_the_bits_of_one_device(rounding: Any) -> None:
    tx, placed, state, _ = problem("auto", "2d", 4, "bfloat16", rounding=rounding, seed=3)
    start, grads = parameters(shapes_of(4), "bfloat16"), gradients(shapes_of(4), "bfloat16", 2)
    expected, _ = single(KINDS["paper"], start, grads, rounding=rounding, seed=3)
    moved, _ = run(jax.jit(step_of(tx)), placed, state, grads)
    for name, p in moved.items():
        # Sums in another order round a few weights the other way.
        assert np.mean(np.asarray(p, np.float32) != np.asarray(expected[name], np.float32)) < 0.01


def test_inside_a_chain_with_a_prefix_of_specs() -> None:
    mesh, params = mesh_of("auto"), {"a": np.ones((8, 8), "float32"), "b": np.ones((4, 8), "float32")}
    placed = jax.device_put(params, NamedSharding(mesh, P("x", "y")))
    chain = optax.chain(optax.clip_by_global_norm(1.0), adafactor(0.1, mesh=mesh, specs=P("x", "y")))
    moved, _ = run(jax.jit(step_of(chain)), placed, chain.init(placed), [params])
    alone = optax.chain(optax.clip_by_global_norm(1.0), adafactor(0.1))
    expected, _ = jax.jit(step_of(alone))(params, alone.init(params), params)
    assert error(moved, expected, params) <= ERRORS["float32"]


# ------------------------------------------------------------------------------------------------------------ refusals

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no mesh": ({"specs": P("x")}, r"specs must be None without a mesh, got .* Give the mesh, too"),
    "not a mesh": (
        {"mesh": "x"},
        r"mesh must be a jax\.sharding\.Mesh, or None, got 'x'\. Make one with jax\.make_mesh",
    ),
    "no specs": ({"mesh": mesh_of("auto")}, r"specs must be given, got None\. Only on an Explicit mesh"),
    "not a spec": (
        {"mesh": mesh_of("auto"), "specs": {"w": "x"}},
        r"specs of parameter 'w' must be a PartitionSpec of at most 2 entries, got 'x'",
    ),
    "too long": ({"mesh": mesh_of("auto"), "specs": P(None, None, "x")}, "at most 2 entries"),
    "unknown axis": (
        {"mesh": mesh_of("auto"), "specs": P("z")},
        r"specs of parameter 'w' must be one of 'x', 'y', got 'z'",
    ),
    "uneven": ({"mesh": mesh_of("auto"), "specs": P(("x", "y"))}, r"such that its 8 parts divide axis 0 of \(4, 6\)"),
    "a view": (
        {"mesh": mesh_of("auto"), "specs": P("x"), "factoring": factoring.as_matrix},
        r"must be P\(\), because its factoring rule reshapes it, got .*factoring\.explicit",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str) -> None:
    options, message = REFUSED[name]
    params = {"w": jnp.ones((4, 6, 2) if name == "a view" else (4, 6))}

    def update() -> None:
        tx = adafactor(**options)
        tx.update(params, tx.init(params), params)

    with pytest.raises(ValueError, match=message):
        update()
