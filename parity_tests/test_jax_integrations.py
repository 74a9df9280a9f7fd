"""Flax NNX, Flax linen, Equinox and a plain tree train with `adafactor_jax.adafactor`: as the definition, and resumed.

The oracle trains the same network, on gradients at its own weights.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle, per_name, replace
from adafactor_spec.factoring import by_name, last_two, no_factoring
from parity_tests.jax_loops import LOOPS, batch, drawn, error, imported, network
from parity_tests.jax_steps import FLOAT64, Tree, assert_equal, compilations, distance, kinds, tree

pytestmark = pytest.mark.xdist_group("jax integrations")  # flax takes a second to import: in one worker only

STEPS = 8
HALF = STEPS // 2
# Large steps, for the loss to fall by a third; and names that count to their end, where a wrapper could add something.
RECIPE = Recipe(
    lr=0.3,
    beta1=0.9,
    weight_decay=per_name({"0/(kernel|weight)$": 0.2}, default=0.1),
    factoring=by_name({"0/(kernel|weight)$": no_factoring}),
)
NAMES = ("layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel")  # of a plain tree
# An average in bfloat16 is for what is bit for bit: programs that differ in float64's last bit can part over a tie.
NARROW = replace(RECIPE, momentum_dtype="bfloat16")

every_loop = pytest.mark.parametrize("loop", LOOPS)


def trained(loop: Any, dtype: str, steps: int) -> list[float]:
    """The losses of so many steps, of which the first compiles and no other."""
    x, y = batch(dtype)
    losses = [loop.step(x, y)]
    with compilations() as seen:
        losses += [loop.step(x, y) for _ in range(steps - 1)]
    assert seen == []
    return [float(loss) for loss in losses]


@functools.cache
def by_definition() -> tuple[list[float], Tree]:
    """(losses, weights) of the oracle."""
    # The loops leave the decay of biases to a mask.
    recipe = replace(RECIPE, weight_decay=per_name({"bias$": 0.0, "0/kernel$": 0.2}, default=0.1))
    params, (x, y) = {"layers": drawn("float64")}, batch("float64")
    leaves, structure = jax.tree.flatten(params)
    states = [oracle.init(recipe, np.asarray(p), name=n) for n, p in zip(NAMES, leaves, strict=True)]
    slopes, losses = jax.jit(jax.value_and_grad(lambda params: error(network(params["layers"], x), y))), []
    for _ in range(STEPS):
        loss, grads = slopes(jax.tree.unflatten(structure, leaves))
        losses.append(float(loss))
        rows = zip(NAMES, leaves, jax.tree.leaves(grads), states, strict=True)
        stepped = [oracle.step(recipe, np.asarray(p), np.asarray(g), state, name=n) for n, p, g, state in rows]
        leaves, states = [p for p, _ in stepped], [state for _, state in stepped]
    return losses, jax.tree.unflatten(structure, leaves)["layers"]


@pytest.mark.sampled
@every_loop
def test_as_the_definition(loop: str) -> None:
    with jax.enable_x64(True):
        expected, weights = by_definition()
        run = LOOPS[loop](RECIPE, "float64")
        assert trained(run, "float64", STEPS) == pytest.approx(expected, rel=FLOAT64)
        assert distance(run.weights(), weights) <= FLOAT64
        assert expected[-1] < 2 / 3 * expected[0], "it learns"


@pytest.mark.sampled
@every_loop
def test_16_bit_weights_resume_bit_for_bit(loop: str, tmp_path: Path) -> None:
    whole, resumed = LOOPS[loop](NARROW, "bfloat16"), LOOPS[loop](NARROW, "bfloat16")
    types = kinds(whole.everything())
    losses = trained(whole, "bfloat16", HALF)
    whole.save(tmp_path / "half.npz")
    losses += trained(whole, "bfloat16", HALF)
    assert losses[-1] < 2 / 3 * losses[0], "it learns"
    resumed.restore(tmp_path / "half.npz")
    assert trained(resumed, "bfloat16", HALF) == losses[HALF:]
    assert_equal(resumed.everything(), whole.everything())
    assert kinds(whole.everything()) == types


# --- Names ----------------------------------------------------------------------------------------------------------


def dense(**options: Any) -> Tree:
    """Parameters of a linen layer inside another one."""
    layer = imported("flax.linen").Dense(6, **options)
    return {"Dense_0": layer.init(jax.random.key(0), jnp.ones((1, 4)))["params"]}


def partitioned() -> Tree:
    linen = imported("flax.linen")
    return dense(kernel_init=linen.with_partitioning(linen.initializers.ones, ("rows", "columns")))


def nnx_state() -> Tree:
    nnx = imported("flax.nnx")
    return nnx.state({"layers": nnx.List([nnx.Linear(4, 6, rngs=nnx.Rngs(0))])}, nnx.Param)


def perceptron() -> Tree:
    eqx = imported("equinox")
    return eqx.filter(eqx.nn.MLP(4, 6, 6, 0, key=jax.random.key(0)), eqx.is_inexact_array)


# The parameters, and the names of the matrix and of the vector in them.
TREES: dict[str, tuple[Callable[[], Tree], str, str]] = {
    "dict": (lambda: {"encoder": tree(0)["layer"]}, "encoder/kernel", "encoder/bias"),
    "list": (lambda: [[jnp.ones((4, 6))], jnp.ones(6)], "0/0", "1"),
    "linen": (dense, "Dense_0/kernel", "Dense_0/bias"),
    "linen, frozen": (lambda: imported("flax.core").freeze(dense()), "Dense_0/kernel", "Dense_0/bias"),
    "linen, partitioned": (partitioned, "Dense_0/kernel", "Dense_0/bias"),
    "NNX": (nnx_state, "layers/0/kernel", "layers/0/bias"),
    "NNX, pure": (lambda: imported("flax.nnx").as_pure(nnx_state()), "layers/0/kernel", "layers/0/bias"),
    "Equinox": (perceptron, "layers/0/weight", "layers/0/bias"),
}


@pytest.mark.parametrize("kind", TREES)
def test_names_are_written_as_users_write_them(kind: str) -> None:
    make, matrix, vector = TREES[kind]
    params = make()
    for rule, kept in ((last_two, []), (no_factoring, [24])):
        rules = by_name({f"^{matrix}$": rule, f"^{vector}$": last_two}, default=None)  # refuses every other name
        tx = adafactor(factoring=rules, weight_decay=per_name({f"^{matrix}$": 0.1, f"^{vector}$": 0.0}))
        state = jax.eval_shape(tx.init, params)
        updates, later = jax.eval_shape(tx.update, params, state, params)
        assert kinds((updates, later)) == kinds((params, state))
        sizes = sorted(leaf.size for leaf in jax.tree.leaves(optax.tree_utils.tree_get(later, "v")))
        assert sizes == [6, *kept]
