"""The loops in which users train: a plain tree, Flax NNX, Flax linen's TrainState and Equinox, around one network.

Each takes the same weights, drawn once, steps as its users write it, and saves and restores in its own way.
"""

import functools
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_jax import adafactor
from adafactor_spec import Recipe
from parity_tests.jax_steps import Tree, kinds

SIZES, BATCH = (6, 8, 2), 16


def imported(name: str) -> Any:
    """Not at the top, where every worker would import it to see which tests there are."""
    return importlib.import_module(name)


def matrices(params: Tree) -> Tree:
    """Which parameters decay: a mask as a function, which every framework can call with its own kind of tree."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@functools.cache
def optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """The same object each time: flax compiles a step for each."""
    return adafactor(recipe=recipe, weight_decay_mask=matrices)


def drawn(dtype: str) -> Tree:
    """Weights and biases; the same numbers in every dtype but for their rounding."""
    rng = np.random.default_rng(0)
    return [
        {"bias": jnp.asarray(0.1 * rng.standard_normal(out), dtype), "kernel": jnp.asarray(kernel, dtype)}
        for inside, out in itertools.pairwise(SIZES)
        for kernel in [rng.standard_normal((inside, out)) / np.sqrt(inside)]
    ]


def batch(dtype: str) -> tuple[jax.Array, jax.Array]:
    """Inputs, and what another network makes of them."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCH, SIZES[0]))
    return jnp.asarray(x, dtype), jnp.asarray(np.sin(x @ rng.standard_normal((SIZES[0], SIZES[-1]))), dtype)


def error(made: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(made - wanted))


def network(layers: Any, x: jax.Array) -> jax.Array:
    *inner, last = layers
    for layer in inner:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


class Plain:
    """A dict or list of arrays, and a loop by hand. Saved with NumPy, leaf by leaf."""

    def __init__(self, recipe: Recipe, dtype: str) -> None:
        self.params: Tree = {"layers": drawn(dtype)}
        self.tx = optimizer(recipe)
        self.state = self.tx.init(self.params)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=0)
    def stepped(tx: Any, params: Tree, state: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Tree, Tree]:
        loss, grads = jax.value_and_grad(lambda params: error(network(params["layers"], x), y))(params)
        updates, state = tx.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    def step(self, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, self.params, self.state = self.stepped(self.tx, self.params, self.state, x, y)
        return loss

    def weights(self) -> Tree:
        return self.params["layers"]

    def everything(self) -> Tree:
        return self.params, self.state

    def save(self, file: Path) -> None:
        # NumPy's format does not know bfloat16: as bytes, with the dtypes from the tree that is restored into.
        np.savez(file, *(np.frombuffer(np.asarray(x).tobytes(), np.uint8) for x in jax.tree.leaves(self.everything())))

    def restore(self, file: Path) -> None:
        like, structure = jax.tree.flatten(self.everything())
        with np.load(file) as saved:
            arrays = [np.frombuffer(saved[name].tobytes(), x.dtype) for name, x in zip(saved.files, like, strict=True)]
        leaves = [jnp.asarray(array.reshape(x.shape)) for array, x in zip(arrays, like, strict=True)]
        self.params, self.state = jax.tree.unflatten(structure, leaves)


@functools.cache
def nnx_parts() -> tuple[Any, Any, Any]:
    """(flax.nnx, a network, its step)"""
    nnx = imported("flax.nnx")
    base: Any = nnx.Module

    class Network(base):
        def __init__(self, dtype: str) -> None:
            sizes, rngs = itertools.pairwise(SIZES), nnx.Rngs(0)
            self.layers = nnx.List(nnx.Linear(*size, param_dtype=dtype, rngs=rngs) for size in sizes)
            self.calls = nnx.BatchStat(jnp.zeros((), "int32"))  # state of the model that is not trained

        def __call__(self, x: jax.Array) -> jax.Array:
            self.calls[...] += 1
            return self.layers[1](jnp.tanh(self.layers[0](x)))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: error(model(x), y))(model)
        optimizer.update(model, grads)
        return loss

    return nnx, Network, step


class NNX:
    """`nnx.Optimizer`. Saved as msgpack of the pure state of model and optimizer."""

    def __init__(self, recipe: Recipe, dtype: str) -> None:
        self.nnx, network, self.stepped = nnx_parts()
        model = network(dtype)
        for layer, values in zip(model.layers, drawn(dtype), strict=True):
            self.nnx.update(layer, values)
        self.both = model, self.nnx.Optimizer(model, optimizer(recipe), wrt=self.nnx.Param)

    def step(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.stepped(*self.both, x, y)

    def weights(self) -> Tree:
        layers = self.nnx.to_pure_dict(self.nnx.state(self.both[0], self.nnx.Param))["layers"]
        return [layers[index] for index in sorted(layers)]

    def everything(self) -> Tree:
        return self.nnx.to_pure_dict(self.nnx.state(self.both))

    def save(self, file: Path) -> None:
        file.write_bytes(imported("flax.serialization").to_bytes(self.everything()))

    def restore(self, file: Path) -> None:
        state = self.nnx.state(self.both)
        values = imported("flax.serialization").from_bytes(self.everything(), file.read_bytes())
        self.nnx.replace_by_pure_dict(state, values)
        self.nnx.update(self.both, state)


@functools.cache
def linen_parts(dtype: str) -> tuple[Any, Any]:
    """(a network, its step)"""
    linen: Any = imported("flax.linen")
    base: Any = linen.Module

    class Network(base):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = jnp.tanh(linen.Dense(SIZES[1], param_dtype=dtype)(x))
            return linen.Dense(SIZES[2], param_dtype=dtype)(x)

    @jax.jit
    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        loss, grads = jax.value_and_grad(lambda params: error(state.apply_fn({"params": params}, x), y))(state.params)
        return loss, state.apply_gradients(grads=grads)

    return Network(), step


class Linen:
    """`TrainState`. Saved as msgpack."""

    def __init__(self, recipe: Recipe, dtype: str) -> None:
        model, self.stepped = linen_parts(dtype)
        params = {f"Dense_{index}": layer for index, layer in enumerate(drawn(dtype))}
        assert kinds(model.init(jax.random.key(0), jnp.ones((1, SIZES[0]), dtype))["params"]) == kinds(params)
        train_state = imported("flax.training.train_state").TrainState
        self.state = train_state.create(apply_fn=model.apply, params=params, tx=optimizer(recipe))

    def step(self, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, self.state = self.stepped(self.state, x, y)
        return loss

    def weights(self) -> Tree:
        return [self.state.params[name] for name in sorted(self.state.params)]

    def everything(self) -> Tree:
        return self.state.params, self.state.opt_state

    def save(self, file: Path) -> None:
        file.write_bytes(imported("flax.serialization").to_bytes(self.state))

    def restore(self, file: Path) -> None:
        values = imported("flax.serialization").from_bytes(self.state, file.read_bytes())
        self.state = jax.tree.map(jnp.asarray, values)  # it has read NumPy's arrays


@functools.cache
def equinox_parts() -> tuple[Any, Any]:
    """(equinox, a step)"""
    eqx = imported("equinox")

    @eqx.filter_jit
    def step(tx: Any, model: Any, state: Tree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any, Tree]:
        loss, grads = eqx.filter_value_and_grad(lambda model: error(jax.vmap(model)(x), y))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return loss, eqx.apply_updates(model, updates), state

    return eqx, step


class Equinox:
    """`filter_grad`, `filter_jit` and `apply_updates`. Saved by `tree_serialise_leaves`."""

    def __init__(self, recipe: Recipe, dtype: str) -> None:
        self.eqx, self.stepped = equinox_parts()
        model = self.eqx.nn.MLP(*SIZES[::2], SIZES[1], 1, activation=jnp.tanh, dtype=dtype, key=jax.random.key(0))
        values = [array for layer in drawn(dtype) for array in (layer["kernel"].T, layer["bias"])]
        where = lambda model: [array for layer in model.layers for array in (layer.weight, layer.bias)]  # noqa: E731
        self.model = self.eqx.tree_at(where, model, values)
        self.tx = optimizer(recipe)
        # The activation is a leaf that is no array: None in what is trained.
        self.state = self.tx.init(self.eqx.filter(self.model, self.eqx.is_inexact_array))

    def step(self, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, self.model, self.state = self.stepped(self.tx, self.model, self.state, x, y)
        return loss

    def weights(self) -> Tree:
        return [{"bias": layer.bias, "kernel": layer.weight.T} for layer in self.model.layers]

    def everything(self) -> Tree:
        return self.eqx.filter((self.model, self.state), self.eqx.is_array)

    def save(self, file: Path) -> None:
        self.eqx.tree_serialise_leaves(file, (self.model, self.state))

    def restore(self, file: Path) -> None:
        self.model, self.state = self.eqx.tree_deserialise_leaves(file, (self.model, self.state))


LOOPS: dict[str, Callable[[Recipe, str], Any]] = {"plain": Plain, "NNX": NNX, "linen": Linen, "Equinox": Equinox}
