"""What optax promises of every transformation, for `adafactor_jax.adafactor`: compiled steps, types, state."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import schedules
from parity_tests.jax_steps import (
    FLOAT64,
    RECIPES,
    SHAPES,
    Tree,
    assert_equal,
    compilations,
    distance,
    kind,
    kinds,
    optimizer,
    run,
    step_of,
    structure,
    tree,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")
every_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.mark.sampled
@every_recipe
def test_jit_and_eager_agree(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params = tree(0, "float64")
        state = tx.init(params)
        for t in (1, 2):
            grads = tree(t, "float64")
            updates, by_hand = tx.update(grads, state, params)
            moved = optax.apply_updates(params, updates)
            params, state = step(params, state, grads)
            assert distance((params, state), (moved, by_hand)) <= FLOAT64


SCHEDULES: dict[str, Any] = {
    "schedule": schedules.piecewise_constant(1e-2, (2, 3), 0.1),
    "function": lambda t: 1e-2 / t,
    "optax": schedules.zero_based(optax.cosine_decay_schedule(1e-2, 10)),
}


@pytest.mark.parametrize("name", [*RECIPES, *SCHEDULES])
def test_strict_promotion_changes_no_type(name: str) -> None:
    tx = adafactor(recipe=RECIPES[name]) if name in RECIPES else adafactor(SCHEDULES[name])
    params, grads = tree(0), tree(1)
    state = tx.init(params)
    expected = jax.eval_shape(tx.update, grads, state, params)
    with jax.numpy_dtype_promotion("strict"):
        assert kinds(jax.eval_shape(tx.update, grads, state, params)) == kinds(expected)


@pytest.mark.sampled(count=5)
@pytest.mark.parametrize("name", [*RECIPES, *SCHEDULES])
def test_compiled_once_and_every_buffer_is_donated(name: str) -> None:
    tx = adafactor(recipe=RECIPES[name]) if name in RECIPES else adafactor(SCHEDULES[name])
    step = step_of(tx, donate_argnums=(0, 1))
    params, grads = tree(0), [tree(t) for t in (1, 2, 3)]
    state = tx.init(params)
    with compilations() as first:
        later_params, later_state = step(params, state, grads[0])
    assert any("step" in line for line in first)
    # A buffer that cannot be used for a result brings a warning, which is an error here.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    with compilations() as later:
        for grad in grads[1:]:
            later_params, later_state = step(later_params, later_state, grad)
    assert later == []


def test_the_compilation_count_sees_a_change_of_type() -> None:
    tx, step = optimizer("paper")
    params, grads = tree(0), tree(1)
    state = tx.init(params)
    step(params, state, grads)
    with compilations() as seen:
        step(params, state._replace(count=1), grads)
    assert len(seen) == 1


@pytest.mark.sampled
@every_recipe
def test_scan(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params, grads = tree(0, "float64"), [tree(t, "float64") for t in (1, 2, 3)]

        @jax.jit
        def scanned(params: Tree, grads: Tree) -> Tree:
            def body(carry: tuple[Tree, Tree], grad: Tree) -> tuple[tuple[Tree, Tree], None]:
                return step(*carry, grad), None

            return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
        assert distance(scanned(params, stacked), run(tx, step, params, grads)) <= FLOAT64


@pytest.mark.sampled
@every_recipe
def test_vmap_is_separate_parameters(name: str) -> None:
    with jax.enable_x64(True):
        tx, step = optimizer(name)
        params = [tree(seed, "float64", scale=10.0**seed) for seed in (0, 1)]
        grads = [[tree(10 * seed + t, "float64") for t in (1, 2)] for seed in (0, 1)]
        separate = [run(tx, step, p, g) for p, g in zip(params, grads, strict=True)]
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
        together, state = stack(params), jax.vmap(tx.init)(stack(params))
        stepped = jax.jit(jax.vmap(step))
        for now in zip(*grads, strict=True):
            together, state = stepped(together, state, stack(now))
        for index, expected in enumerate(separate):
            assert distance(jax.tree.map(lambda x, i=index: x[i], (together, state)), expected) <= FLOAT64


@pytest.mark.sampled
@every_recipe
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_kept(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        tx, _ = optimizer(name)
        params, grads = tree(0, dtype), tree(1, dtype)
        state = tx.init(params)
        updates, later = jax.eval_shape(tx.update, grads, state, params)
        assert kinds(updates) == kinds(grads)
        assert kinds(later) == kinds(state)
        assert not any(weak for _, _, weak in kinds(later)[0])

        def sometimes(skip: jax.Array) -> Any:  # both branches must have one type
            return jax.lax.cond(skip, lambda: (grads, state), lambda: tx.update(grads, state, params))

        assert kinds(jax.eval_shape(sometimes, jnp.asarray(True))) == kinds((grads, state))


def test_the_type_check_sees_weak_types() -> None:
    assert kind(jnp.asarray(1.0)) != kind(jnp.asarray(1.0, "float32"))
    assert kind(jax.eval_shape(lambda: jnp.asarray(1.0))) == kind(jnp.asarray(1.0))


# Moments of a parameter of these dtypes: (second moment, first moment), by what the recipe says.
NARROW: dict[str, dict[str, tuple[str, str | None]]] = {
    "paper": {"bfloat16": ("float32", None), "float16": ("float32", None)},
    "optax": {"bfloat16": ("bfloat16", "bfloat16"), "float16": ("float32", "bfloat16")},  # state_dtype="param"
    "adafactor_pytorch": {"bfloat16": ("float32", "float32"), "float16": ("float32", "float32")},
    "amsgrad": {"bfloat16": ("float32", "float32"), "float16": ("float32", "float32")},
    "torch": {"bfloat16": ("bfloat16", None), "float16": ("float32", None)},  # state_dtype="param"
    "step": {"bfloat16": ("float32", "bfloat16"), "float16": ("float32", "bfloat16")},
}


@every_recipe
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_state_of_narrow_parameters(name: str, dtype: str) -> None:
    state = optimizer(name)[0].init(tree(0, dtype))

    def dtypes(*fields: str) -> set[str]:
        return {leaf.dtype.name for field in fields for leaf in jax.tree.leaves(tree_get(state, field))}

    second, first = NARROW[name][dtype]
    assert dtypes("v_row", "v_col", "v", "v_max") == {second}
    assert dtypes("m") == ({first} if first else set())
    assert kind(state.count) == ((), "int32", False)


def tree_get(state: Tree, field: str) -> Tree:
    return optax.tree_utils.tree_get(state, field)


@every_recipe
def test_state_fields_are_found_by_name(name: str) -> None:
    recipe, (tx, _) = RECIPES[name], optimizer(name)
    state = optax.chain(optax.clip_by_global_norm(1.0), tx).init(tree(0))
    for field in ("count", "v_row", "v_col", "v", "v_max"):
        assert len(optax.tree_utils.tree_get_all_with_path(state, field)) == 1
    assert len(optax.tree_utils.tree_get_all_with_path(state, "m")) == (recipe.beta1 is not None)
    shapes = jax.tree.map(jnp.shape, [tree_get(state, field) for field in ("v_row", "v_col", "v")])
    absent = {"layer": {"bias": None, "kernel": None}, "scale": None}
    assert shapes[0] == absent | {"layer": {"bias": None, "kernel": (4, 1)}}
    assert shapes[1] == absent | {"layer": {"bias": None, "kernel": (1, 6)}}
    assert shapes[2] == {"layer": {"bias": (6,), "kernel": None}, "scale": ()}
    whole = jax.tree.map(jnp.shape, (tree_get(state, "v_max"), tree_get(state, "m")))
    assert whole[0] == (SHAPES if recipe.amsgrad else absent)
    assert whole[1] == (SHAPES if recipe.beta1 is not None else None)
    moved = optax.tree_utils.tree_set(state, count=jnp.asarray(7, jnp.int32))
    assert int(tree_get(moved, "count")) == 7


@pytest.mark.sampled
@every_recipe
def test_tree_map_params(name: str) -> None:
    tx, step = optimizer(name)
    params = tree(0)
    _, state = run(tx, step, params, [tree(1)])
    doubled = optax.tree_utils.tree_map_params(tx, lambda leaf: 2 * leaf, state)
    assert_equal(doubled, jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else 2 * leaf, state))
    # With further trees, such as PartitionSpecs, the absent moments are leaves: is_leaf, as with optax.masked.
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    named = optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, spec: leaf if leaf is None else spec,
        state,
        names,
        transform_non_params=lambda _: "replicated",
        is_leaf=lambda leaf: leaf is None,
    )
    assert structure(named) == structure(state)
    assert set(jax.tree.leaves(named)) == {"replicated", *jax.tree.leaves(names)}
    assert tree_get(named, "v_row")["layer"]["kernel"] == names["layer"]["kernel"]


@every_recipe
def test_init_needs_shapes_only(name: str) -> None:
    tx, _ = optimizer(name)
    params = tree(0)
    structs = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert kinds(jax.eval_shape(tx.init, structs)) == kinds(tx.init(params))
    assert_equal(tx.init(structs), tx.init(params))


@every_recipe
def test_unexpected_extra_arguments_change_nothing(name: str) -> None:
    tx, _ = optimizer(name)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    params, grads = tree(0), tree(1)
    state = tx.init(params)
    extra = {"value": 1.0, "unexpected": "extra", "t": 7.0}  # t: what the pieces call the step among themselves
    with_extra = jax.make_jaxpr(lambda: tx.update(grads, state, params, **extra))()
    assert str(with_extra) == str(jax.make_jaxpr(lambda: tx.update(grads, state, params))())
    chained = optax.chain(tx, optax.scale(2.0))
    jax.eval_shape(lambda: chained.update(grads, chained.init(params), params=params, value=1.0))


@every_recipe
def test_a_pickled_state_goes_on(name: str) -> None:
    tx, step = optimizer(name)
    params, state = run(tx, step, tree(0), [tree(1), tree(2)])
    restored = pickle.loads(pickle.dumps(state))
    assert_equal(restored, state)
    assert_equal(step(params, restored, tree(3)), step(params, state, tree(3)))


def host_calls(tx: optax.GradientTransformation, params: Tree) -> bool:
    """Whether a compiled step calls back to the host. What reads a traced value outright fails to trace."""
    return "callback" in jax.jit(tx.update).lower(params, tx.init(params), params).as_text()


@every_recipe
def test_nothing_is_read_back(name: str) -> None:
    tx, step = optimizer(name)
    params, grads = tree(0), tree(1)
    assert not host_calls(tx, params)
    params, state = run(tx, step, params, [grads])
    # On a CPU memory is shared and only transfers to the device are guarded; on an accelerator both are.
    with jax.transfer_guard("disallow"), jax.transfer_guard_device_to_host("disallow"):
        jax.block_until_ready(step(params, state, grads))


def on_the_host(t: jax.Array) -> jax.Array:
    return jax.pure_callback(lambda t: np.float32(1e-2) / t, jax.ShapeDtypeStruct((), "float32"), t)


def printed(t: jax.Array) -> jax.Array:
    jax.debug.print("{}", t)
    return 1e-2 / t


def read_back(t: jax.Array) -> float:
    return 1e-2 / float(t)


@pytest.mark.parametrize(
    ("schedule", "error"),
    [(on_the_host, None), (printed, None), (read_back, jax.errors.ConcretizationTypeError)],
)
def test_the_host_check_sees_faults(schedule: Callable[[Any], Any], error: type[Exception] | None) -> None:
    if error is None:
        assert host_calls(adafactor(schedule), jnp.ones(2))
    else:
        with pytest.raises(error):
            host_calls(adafactor(schedule), jnp.ones(2))
