"""Sharded runs under jit, as GSPMD divides them: equal to one device, and the state lies as the parameters do."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adafactor_jax import adafactor, state_shardings
from adafactor_spec.factoring import as_matrix
from parity_tests.jax_meshes import (
    ERRORS,
    KINDS,
    LAYOUTS,
    Tree,
    collectives,
    error,
    gradients,
    mesh_of,
    misplaced,
    parameters,
    run,
    shapes_of,
    shardings_of,
    specs_of,
    step_of,
)
from parity_tests.jax_steps import assert_equal, compilations

every_kind = pytest.mark.parametrize("kind", KINDS)

SHAPES = shapes_of(3)  # two matrices and a vector: what is compiled is the same for more
TX = adafactor(0.05, beta1=0.9, weight_decay=0.01)  # every piece of the chain


def on_mesh(kind: str, layout: str, dtype: str = "float64") -> Tree:
    start = parameters(SHAPES, dtype)
    return jax.device_put(start, shardings_of(mesh_of(kind), layout, start))


@functools.cache
def on_one_device(dtype: str) -> Tree:
    """The parameters after all steps."""
    params = jax.device_put(parameters(SHAPES, dtype), jax.devices("cpu")[0])
    return run(jax.jit(step_of(TX)), params, TX.init(params), gradients(SHAPES, dtype))[0]


# By the rule: an axis of the state that is one of the parameter's lies as that does, one of size 1 is replicated.
ROWS = {"fsdp": P("x"), "tp": P(), "2d": P("x"), "both": P(("x", "y"))}
COLUMNS = {"fsdp": P(), "tp": P(None, "y"), "2d": P(None, "y"), "both": P()}


def expected_specs(layout: str) -> dict[str, P]:
    """The specs of TX's state that are not P(), by path."""
    matrix, vector = LAYOUTS[layout]
    names = {name: len(shape) for name, shape in SHAPES.items()}
    specs = {f"inner/2/m/{name}": matrix if axes == 2 else vector for name, axes in names.items()}
    for name, axes in names.items():
        if axes == 1:
            specs[f"inner/0/v/{name}"] = vector
        else:
            specs |= {f"inner/0/v_row/{name}": ROWS[layout], f"inner/0/v_col/{name}": COLUMNS[layout]}
    return {path: P(*spec) for path, spec in specs.items() if spec != P()}


# ------------------------------------------------------------------------------------------------- whole runs under jit


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize(
    ("layout", "dtype"), [*((layout, "float64") for layout in LAYOUTS), ("2d", "float32")], ids=lambda value: value
)
@every_kind
def test_equal_to_one_device(kind: str, layout: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params, grads = on_mesh(kind, layout, dtype), gradients(SHAPES, dtype)
        places = jax.tree.map(lambda p: p.sharding, params)
        shardings = state_shardings(TX, params)
        assert specs_of(shardings) == expected_specs(layout)
        state = jax.jit(TX.init, out_shardings=shardings)(params)
        # Compiled for arguments that lie like this, and then refuses all others: the state may not move.
        step = jax.jit(step_of(TX)).lower(params, state, jax.device_put(grads[0], places)).compile()
        moved, state = run(step, params, state, grads)
        assert error(moved, on_one_device(dtype), parameters(SHAPES, dtype)) <= ERRORS[dtype]
        assert set(collectives(step)) == {"all-reduce"}
        assert not misplaced((moved, state), (places, shardings))


@pytest.mark.sampled
@pytest.mark.parametrize("spec", [P("x"), P(None, ("x", "y"))], ids=str)
@every_kind
def test_long_axes_are_not_gathered(kind: str, spec: P) -> None:
    """Squares of an axis beyond 256 are added in groups, and 8 devices have to divide those evenly, too."""
    mesh = mesh_of(kind)
    sizes = ((768, 1024), (3072, 768), (1000, 5120))
    params = {str(s): jax.ShapeDtypeStruct(s, "float32", sharding=NamedSharding(mesh, spec)) for s in sizes}
    tx = adafactor()
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(tx.init, params),
        state_shardings(tx, params),
    )
    step = jax.jit(step_of(tx)).lower(params, state, params).compile()
    assert set(collectives(step)) == {"all-reduce"}


def test_a_shard_alone_is_another_parameter() -> None:
    """The control of the test above: statistics of each device's own part give another result."""
    with jax.enable_x64(True):
        params, mesh = on_mesh("auto", "fsdp"), mesh_of("auto")
        tx = adafactor(0.05)
        specs = jax.tree.map(lambda p: p.sharding.spec, params)
        state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)
        state_specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
        alone = jax.shard_map(
            step_of(tx),
            mesh=mesh,
            in_specs=(specs, state_specs, specs),
            out_specs=(specs, state_specs),
            check_vma=False,
        )
        grads = gradients(SHAPES, steps=1)
        moved, _ = run(jax.jit(alone), params, state, grads)
        expected, _ = run(jax.jit(step_of(tx)), params, state, grads)
        assert error(moved, expected, params) > 0.01


def test_collectives_are_counted() -> None:
    x = jax.device_put(np.ones((8, 8), "float32"), NamedSharding(mesh_of("auto"), P("x", "y")))
    whole = NamedSharding(mesh_of("auto"), P())
    assert set(collectives(jax.jit(lambda x: x + 1, out_shardings=whole).lower(x).compile())) == {"all-gather"}
    assert collectives(jax.jit(jnp.sum, out_shardings=whole).lower(x).compile())["all-reduce"] >= 1
    assert not collectives(jax.jit(lambda x: x + 1).lower(x).compile())


def compilations_of_steps(params: Tree, state: Tree) -> int:
    with compilations() as seen:
        run(jax.jit(step_of(TX)), params, state, gradients(SHAPES, "float32", 3))
    return sum("jit(step)" in line for line in seen)


@every_kind
def test_the_step_compiles_once(kind: str) -> None:
    params = on_mesh(kind, "2d", "float32")
    assert compilations_of_steps(params, jax.jit(TX.init, out_shardings=state_shardings(TX, params))(params)) == 1


def test_a_state_that_lies_elsewhere_compiles_twice() -> None:
    """The control of the tests above: an Auto mesh tells a compiled `init` nothing of where its arguments lie."""
    params = on_mesh("auto", "2d", "float32")
    state = jax.jit(TX.init)(params)
    assert set(misplaced(state, state_shardings(TX, params))) >= set(expected_specs("2d"))
    assert compilations_of_steps(params, state) == 2


@every_kind
def test_init_outside_jit_lies_as_the_parameters_do(kind: str) -> None:
    params = on_mesh(kind, "2d", "float32")
    shardings = state_shardings(TX, params)
    factors = (TX.init(params).inner[0], shardings.inner[0])
    assert not misplaced(*factors)
    if kind == "explicit":
        with jax.set_mesh(mesh_of(kind)):  # JAX's own rule, where a compiled function reads none of its arguments
            assert not misplaced(jax.jit(TX.init)(params).inner[0], factors[1])


def test_a_matrix_view_keeps_what_a_reshape_can_keep() -> None:
    """(8, 16, 4) is factored as (8, 16·4), and (8, 16, 2, 4) as (8·4, 16·2)."""
    tx, place = adafactor(0.05, factoring=as_matrix, amsgrad=True), NamedSharding(mesh_of("auto"), P("x", "y"))
    start = parameters({"three": (8, 16, 4), "four": (8, 16, 2, 4)}, "float32")
    params = jax.device_put(start, place)
    shardings = state_shardings(tx, params)
    assert specs_of(shardings) == {
        "inner/0/v_row/three": P("x"),
        "inner/0/v_row/four": P("x"),
        "inner/0/v_col/three": P(None, "y"),
        "inner/0/v_max/three": P("x", "y"),
        "inner/0/v_max/four": P("x"),
    }
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    moved = run(jax.jit(step_of(tx)), params, state, [start])
    assert not misplaced(moved, (dict.fromkeys(params, place), shardings))


# ----------------------------------------------------------------------------------------------- whatever is around it

FACTORS = {"v_row/kernel": P("x"), "v_col/kernel": P(None, "y"), "v/bias": P("y")}
FACTORS_OF_KERNEL = {"v_row/kernel": P("x"), "v_col/kernel": P(None, "y")}
LIKE_PARAMETERS = {"kernel": P("x", "y"), "bias": P("y")}


def under(path: str, specs: dict[str, P]) -> dict[str, P]:
    return {f"{path}/{name}": spec for name, spec in specs.items()}


# name: (transformation, the specs of its state that are not P())
WRAPPERS: dict[str, tuple[Any, dict[str, P]]] = {
    "adafactor": (adafactor(1e-2), under("inner/0", FACTORS)),
    "amsgrad": (
        adafactor(1e-2, amsgrad=True),
        under("inner/0", FACTORS) | under("inner/0/v_max", LIKE_PARAMETERS),
    ),
    "chain": (
        optax.chain(optax.clip_by_global_norm(1.0), adafactor(1e-2, beta1=0.9)),
        under("1/inner/0", FACTORS) | under("1/inner/2/m", LIKE_PARAMETERS),
    ),
    "masked": (
        optax.masked(adafactor(1e-2), {"kernel": True, "bias": False}),
        under("inner_state/inner/0", FACTORS_OF_KERNEL),
    ),
    "MultiSteps": (
        optax.MultiSteps(adafactor(1e-2), 2),
        under("inner_opt_state/inner/0", FACTORS) | under("acc_grads", LIKE_PARAMETERS),
    ),
    "partition": (
        optax.partition({"a": adafactor(1e-2), "b": optax.adamw(1e-2)}, {"kernel": "a", "bias": "b"}),
        under("inner_states/a/inner_state/inner/0", FACTORS_OF_KERNEL)
        | {f"inner_states/b/inner_state/0/{name}/bias": P("y") for name in ("mu", "nu")},
    ),
    "inject_hyperparams": (optax.inject_hyperparams(adafactor)(1e-2), under("inner_state/inner/0", FACTORS)),
    "apply_if_finite": (optax.apply_if_finite(adafactor(1e-2), 3), under("inner_state/inner/0", FACTORS)),
    "schedule_free": (
        optax.contrib.schedule_free(adafactor(1e-2), 1e-2),
        under("base_optimizer_state/inner/0", FACTORS) | under("z", LIKE_PARAMETERS),
    ),
    "AdamW": (optax.adamw(1e-2), under("0/mu", LIKE_PARAMETERS) | under("0/nu", LIKE_PARAMETERS)),
    "optax.adafactor": (  # takes the reduced axes out
        optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
        under("0", {"v_row/kernel": P("x"), "v_col/kernel": P("y"), "v/bias": P("y")})
        | under("4/ema", LIKE_PARAMETERS),
    ),
}


@pytest.mark.sampled
@every_kind
@pytest.mark.parametrize("name", WRAPPERS)
def test_state_shardings(name: str, kind: str) -> None:
    tx, expected = WRAPPERS[name]
    values = {"kernel": np.ones((8, 16), "float32"), "bias": np.ones(16, "float32")}
    places = {leaf: NamedSharding(mesh_of(kind), spec) for leaf, spec in LIKE_PARAMETERS.items()}
    params = jax.device_put(values, places)
    shardings = state_shardings(tx, params)
    assert specs_of(shardings) == expected
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert not misplaced(state, shardings)
    assert_equal(state, tx.init(jax.tree.map(jnp.asarray, values)))
    # Nothing needs to be in memory, and the mesh in force is of no account.
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params)
    with jax.set_mesh(mesh_of("explicit", (2, 4))):
        assert state_shardings(tx, shapes) == shardings


def test_a_parameter_on_no_mesh_is_replicated() -> None:
    mesh = mesh_of("auto")
    kernel = jax.ShapeDtypeStruct((8, 16), "float32", sharding=NamedSharding(mesh, P("x", "y")))
    others = {
        "array": jnp.ones((4, 3)),
        "numpy": np.ones(3),
        "shape": jax.ShapeDtypeStruct((3,), "float32"),
        "number": 1.0,
    }
    shardings = state_shardings(adafactor(1e-2), {"kernel": kernel, **others})
    assert specs_of(shardings) == under("inner/0", FACTORS_OF_KERNEL)
    assert all(sharding.mesh is mesh for sharding in jax.tree.leaves(shardings))


def test_an_abstract_mesh_stays_one() -> None:
    mesh = AbstractMesh((4, 2), ("x", "y"), axis_types=(KINDS["auto"],) * 2)
    params = {"kernel": jax.ShapeDtypeStruct((8, 16), "float32", sharding=NamedSharding(mesh, P("x", "y")))}
    shardings = state_shardings(adafactor(1e-2), params)
    assert specs_of(shardings) == under("inner/0", FACTORS_OF_KERNEL)
    assert all(sharding.mesh == mesh for sharding in jax.tree.leaves(shardings))


def test_what_is_refused() -> None:
    def lying(sharding: Any) -> Any:
        return types.SimpleNamespace(shape=(8, 16), dtype=np.dtype("float32"), sharding=sharding)

    tx, here = adafactor(1e-2), lying(NamedSharding(mesh_of("auto"), P("x")))
    with pytest.raises(ValueError, match=r"params must be on a mesh, at least one of them, got .*jax.device_put"):
        state_shardings(tx, {"w": jnp.ones((4, 3)), "b": np.ones(3)})
    with pytest.raises(ValueError, match=r"mesh of parameter 'w/1' must be that of 'w/0', .*on one mesh"):
        state_shardings(tx, {"w": [here, lying(NamedSharding(mesh_of("auto", (2, 4)), P("x")))]})
    with pytest.raises(
        ValueError, match=r"sharding of parameter 'w' must be a NamedSharding, got .*Put it on the mesh"
    ):
        state_shardings(tx, {"v": here, "w": lying("everywhere")})
    with pytest.raises(TypeError, match=r"tx must be an optax transformation, got <function adafactor.*Call"):
        state_shardings(adafactor, {"w": here})
