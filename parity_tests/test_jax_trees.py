"""Any tree of parameters: empty, with None, with empty arrays, of any container; and which of it decays.

Compared bit for bit without jit, where an operation on a leaf does not depend on the rest of the tree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import factoring
from parity_tests.jax_steps import RECIPES, Tree, assert_equal, kinds, optimizer, tree

every_recipe = pytest.mark.parametrize("name", RECIPES)
tree_get = optax.tree_utils.tree_get


def eagerly(tx: optax.GradientTransformation, params: Tree, grads: list[Tree]) -> tuple[Tree, Tree]:
    """The last updates and the state, parameters standing still."""
    state, updates = tx.init(params), None
    for grad in grads:
        updates, state = tx.update(grad, state, params)
    return updates, state


@every_recipe
@pytest.mark.parametrize("empty", [{}, (), [], None, {"a": {}, "b": None}], ids=repr)
def test_no_parameters(name: str, empty: Tree) -> None:
    tx = optimizer(name)[0]
    if empty is None:
        assert int(tx.init(None).count) == 0  # update(params=None) is refused, as parameters are forgotten more often
        return
    updates, state = eagerly(tx, empty, [empty, empty])
    assert_equal(updates, empty)
    assert int(state.count) == 2
    assert len(jax.tree.leaves(state)) == 1


@pytest.mark.sampled
@every_recipe
def test_none_among_the_parameters(name: str) -> None:
    tx = optimizer(name)[0]
    params, grads = tree(0), [tree(t) for t in (1, 2)]
    with_none = lambda tree: {**tree, "layer": {**tree["layer"], "absent": None}, "none": None}  # noqa: E731
    updates, state = eagerly(tx, with_none(params), [with_none(g) for g in grads])
    expected, expected_state = eagerly(tx, params, grads)
    assert_equal(updates, with_none(expected))
    assert_equal(jax.tree.leaves(state), jax.tree.leaves(expected_state))
    moved = optax.apply_updates(with_none(params), updates)
    assert_equal(moved, with_none(optax.apply_updates(params, expected)))


@every_recipe
def test_a_gradient_that_is_none(name: str) -> None:
    tx = optimizer(name)[0]
    params, grads = tree(0), [tree(t) for t in (1, 2)]
    _, before = eagerly(tx, params, grads[:1])
    missing = {"layer": {"bias": None, "kernel": None}, "scale": grads[1]["scale"]}
    updates, state = tx.update(missing, before, params)
    expected, expected_state = tx.update(grads[1], before, params)
    assert updates["layer"] == {"bias": None, "kernel": None}
    assert_equal(updates["scale"], expected["scale"])
    assert int(state.count) == 2
    for field in ("v_row", "v_col", "v", "v_max", *(("m",) if RECIPES[name].beta1 is not None else ())):
        assert_equal(tree_get(state, field)["layer"], tree_get(before, field)["layer"])
        assert_equal(tree_get(state, field)["scale"], tree_get(expected_state, field)["scale"])


@pytest.mark.sampled
@every_recipe
def test_empty_arrays(name: str) -> None:
    tx = optimizer(name)[0]
    shapes = {"flat": (0,), "rows": (0, 3), "columns": (3, 0), "scale": ()}
    params, grads = tree(0, shapes=shapes), [tree(t, shapes=shapes) for t in (1, 2)]
    updates, state = eagerly(tx, params, grads)
    assert kinds(updates) == kinds(grads[0])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((updates, state)))
    alone, _ = eagerly(tx, {"scale": params["scale"]}, [{"scale": g["scale"]} for g in grads])
    assert_equal(updates["scale"], alone["scale"])


@every_recipe
def test_a_scalar_is_one_element(name: str) -> None:
    tx = optimizer(name)[0]
    params, grads = tree(0)["scale"], [tree(t)["scale"] for t in (1, 2)]
    updates, _ = eagerly(tx, params, grads)
    as_vector, _ = eagerly(tx, params[None], [g[None] for g in grads])
    assert_equal(updates, as_vector[0])


@pytest.mark.sampled
@pytest.mark.parametrize("make", [float, np.float32, lambda x: np.asarray(x, np.float32)], ids=["float", "np", "array"])
@every_recipe
def test_numbers_of_python_and_numpy(name: str, make: Callable[[float], Any]) -> None:
    tx = optimizer(name)[0]
    updates, state = eagerly(tx, {"scale": make(0.75)}, [{"scale": make(0.5)}])
    expected, expected_state = eagerly(tx, {"scale": jnp.float32(0.75)}, [{"scale": jnp.float32(0.5)}])
    assert_equal(updates, expected)
    assert_equal(state, expected_state)


# --- Containers -----------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    bias: Any
    kernel: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    layer: Any
    scale: Any


@jax.tree_util.register_pytree_node_class
class Opaque:
    """A container of the old kind, whose children have no names."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Any, ...]) -> "Opaque":
        return cls(*children)


CONTAINERS: dict[str, Callable[[Any, Any, Any], Tree]] = {
    "NamedTuple in a dict": lambda bias, kernel, scale: {"layer": Layer(bias, kernel), "scale": scale},
    "dataclass": lambda bias, kernel, scale: Model({"bias": bias, "kernel": kernel}, scale),
    "lists": lambda bias, kernel, scale: [[bias, [kernel]], (scale,)],
    "unnamed": lambda bias, kernel, scale: Opaque(Opaque(bias, kernel), scale),
}


@pytest.mark.sampled
@pytest.mark.parametrize("container", CONTAINERS)
@every_recipe
def test_containers(name: str, container: str) -> None:
    tx = optimizer(name)[0]
    build = lambda leaves: CONTAINERS[container](*jax.tree.leaves(leaves))  # noqa: E731
    params, grads = tree(0), [tree(t) for t in (1, 2)]
    updates, state = eagerly(tx, build(params), [build(g) for g in grads])
    expected, expected_state = eagerly(tx, params, grads)
    assert_equal(updates, build(expected))
    assert_equal(jax.tree.leaves(state), jax.tree.leaves(expected_state))


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ("NamedTuple in a dict", "layer/kernel"),
        ("dataclass", "layer/kernel"),
        ("lists", "0/1/0"),
    ],
)
def test_rules_see_the_path(container: str, path: str) -> None:
    params = CONTAINERS[container](*jax.tree.leaves(tree(0)))
    whole = adafactor(factoring=factoring.by_name({f"^{path}$": factoring.no_factoring})).init(params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(tree_get(whole, "v"))) == [(), (4, 6), (6,)]
    factored = adafactor(factoring=factoring.by_name({f"^{path}.$": factoring.no_factoring})).init(params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(tree_get(factored, "v"))) == [(), (6,)]


# --- Which parameters decay -----------------------------------------------------------------------------------------

MASKS: dict[str, Any] = {
    "tree": {"layer": {"bias": False, "kernel": True}, "scale": False},
    "prefix": {"layer": True, "scale": False},
    "one bool": True,
    "none": {"layer": False, "scale": False},
    "function": lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    "function that gives a prefix": lambda params: {"layer": True, "scale": False},
}
DECAYS: dict[str, dict[str, Any]] = {
    "step": {"weight_decay_by": "step"},
    "lr": {"weight_decay_by": "lr"},
    "one": {"weight_decay_by": "one"},
    "grad": {"weight_decay_by": "grad"},
    "before the scale, lr": {"weight_decay_by": "lr", "decay_before_scale": True},
    "before the scale, one": {"weight_decay_by": "one", "decay_before_scale": True},
}


@pytest.mark.sampled
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("decay", DECAYS)
def test_only_what_is_in_the_mask_decays(decay: str, mask: str) -> None:
    params, grads = tree(0), [tree(t) for t in (1, 2)]
    settings = {"weight_decay": 0.25, **DECAYS[decay]}
    masked, _ = eagerly(adafactor(**settings, weight_decay_mask=MASKS[mask]), params, grads)
    inside, _ = eagerly(adafactor(**settings), params, grads)
    outside, _ = eagerly(adafactor(), params, grads)
    tree_of_bools = MASKS[mask](params) if callable(MASKS[mask]) else MASKS[mask]
    spread = jax.tree.map(lambda flag, below: jax.tree.map(lambda _: flag, below), tree_of_bools, params)
    assert_equal(masked, jax.tree.map(lambda flag, yes, no: yes if flag else no, spread, inside, outside))
    differ = [not np.array_equal(yes, no) for yes, no in zip(*map(jax.tree.leaves, (inside, outside)), strict=True)]
    assert all(differ)


def test_a_mask_may_skip_none() -> None:
    params, grads = {**tree(0), "none": None}, {**tree(1), "none": None}
    mask = {"layer": True, "scale": False, "none": True}
    updates, _ = eagerly(adafactor(weight_decay=0.25, weight_decay_mask=mask), params, [grads])
    del params["none"], grads["none"], mask["none"]
    expected, _ = eagerly(adafactor(weight_decay=0.25, weight_decay_mask=mask), params, [grads])
    assert_equal(updates, {**expected, "none": None})


def test_a_mask_of_something_else_is_refused() -> None:
    tx, params = adafactor(weight_decay=0.1, weight_decay_mask="kernel"), tree(0)
    with pytest.raises(ValueError, match=r"^weight_decay_mask must be True or False, got 'kernel'"):
        tx.update(tree(1), tx.init(params), params)


def test_a_function_of_t_gets_a_whole_number() -> None:
    table = jnp.asarray([0.1, 0.2, 0.3])
    params = jnp.ones(2)
    one = adafactor(lambda t: table[t - 1], multiply_by_parameter_scale=False, relative_step=False)
    other = adafactor(0.1, multiply_by_parameter_scale=False, relative_step=False)
    updates = [jax.jit(tx.update)(params, tx.init(params), params)[0] for tx in (one, other)]
    assert_equal(*updates)
