"""Takes trees apart into leaves: their names for factoring rules, dtypes, masks, and missing gradients."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_spec import dtypes, factoring
from adafactor_spec.errors import check_flag, refusal

Tree = Any  # a pytree of arrays
Mask = Any  # a tree of bools, a prefix of one, a function of the parameters that gives one, or None for all
GradientTransformation = optax.GradientTransformationExtraArgs


class Leaf(NamedTuple):
    """What is static about one parameter."""

    position: int  # in the tree
    name: str  # its path, "encoder/0/kernel"
    shape: tuple[int, ...]
    dtype: str

    @property
    def compute(self) -> str:
        """The dtype of the parameter's arithmetic."""
        return dtypes.at_least_float32(self.dtype)

    def plan(self, rule: factoring.Rule) -> factoring.Plan:
        """What `rule` does with the parameter."""
        return factoring.plan(rule, self.shape, self.name)


def leaves_of(params: Tree) -> tuple[list[Leaf], list[Any], Any]:
    """(static part, value) of every leaf, and the structure of the tree."""
    values, structure = jax.tree.flatten(params)
    leaves = []
    for position, (name, value) in enumerate(zip(names_of(params), values, strict=True)):
        dtype = _dtype_of(name, value)
        if dtype not in dtypes.NAMES:
            remedy = "Give such a parameter to optax.masked or optax.partition."
            raise refusal(f"dtype of parameter {name!r}", "one of " + ", ".join(dtypes.NAMES), dtype, remedy)
        leaves.append(Leaf(position, name, tuple(jnp.shape(value)), dtype))
    return leaves, [jnp.asarray(value) if isinstance(value, float) else value for value in values], structure


def _dtype_of(name: str, value: Any) -> str:
    """The dtype of a parameter: of an array or a number, and of what stands for an array, as in `jax.eval_shape`."""
    is_number = isinstance(value, float | int | complex)
    if not is_number and (isinstance(value, type) or not hasattr(value, "shape") or not hasattr(value, "dtype")):
        raise refusal(f"parameter {name!r}", "an array", type(value).__name__)
    try:
        return str(jnp.result_type(value))
    except TypeError:  # a dtype that JAX has not, such as that of objects
        return str(value.dtype)


def names_of(params: Tree) -> list[str]:
    """The name of every leaf, its path. flax's boxes are no part of it: NNX puts them around the parameters that
    `init` sees and takes them off for `update`, and a name must be the same in both."""
    with_path, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), value) for path, value in with_path]
    return [name for name, value in named for _ in jax.tree.leaves(value)]


def _is_box(value: Any) -> bool:
    """Whether this is NNX's Variable or linen's AxisMetadata, known by name so that flax need not be there."""
    boxes = ("flax.nnx.variablelib.Variable", "flax.core.meta.AxisMetadata")
    return any(f"{base.__module__}.{base.__qualname__}" in boxes for base in type(value).__mro__)


def updates_of(updates: Tree, leaves: list[Leaf], structure: Any) -> list[Any]:
    """The gradient or update of every leaf, None where it is missing."""
    values: list[Any] = structure.flatten_up_to(updates)
    for leaf, value in zip(leaves, values, strict=True):
        if value is None:
            continue
        if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
            raise refusal(f"gradient of {leaf.name!r}", "an array", type(value).__name__, "Give a dense gradient.")
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "OSUMm":
            raise refusal(f"gradient of {leaf.name!r}", "an array of numbers", str(value.dtype))
        if jnp.shape(value) != leaf.shape:
            raise refusal(f"shape of the gradient of {leaf.name!r}", f"{leaf.shape}", jnp.shape(value))
        if jnp.iscomplexobj(value):
            raise refusal(f"gradient of {leaf.name!r}", "real", str(jnp.result_type(value)))
    return values


def masks_of(mask: Mask, params: Tree) -> list[bool]:
    """optax's mask (a tree of bools or a prefix of one, or a function of the parameters) for every leaf."""
    tree: Any = mask
    try:
        tree = mask(params) if callable(mask) else True if mask is None else mask
        spread = jax.tree.map(lambda inside, below: jax.tree.map(lambda _: inside, below), tree, params)
        values: list[bool] = structure_of(params).flatten_up_to(spread)
    except Exception as error:  # whatever a function of the user's raises
        must = "a tree of bools like the parameters, a prefix of one, or a function that gives one"
        raise refusal("weight_decay_mask", must, tree) from error
    for value in values:
        check_flag("weight_decay_mask", value)
    return values


def need_params(params: Tree | None) -> Tree:
    """The parameters, or the refusal of an update without them."""
    if params is None:
        raise ValueError("params must be given to update, got None. Call tx.update(grads, state, params).")
    return params


def own_promotion(update: Callable[..., Any]) -> Callable[..., Any]:
    """An update for callers who have set `jax_numpy_dtype_promotion="strict"`, too: here every array has a dtype given,
    but schedules mix the whole number t with fractions."""

    @functools.wraps(update)
    def promoting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return update(*args, **kwargs)

    return promoting


def structure_of(tree: Tree) -> Any:
    """The tree without its leaves."""
    return jax.tree.structure(tree)


def tree_of(structure: Any, values: list[Any]) -> Tree:
    """The tree with these leaves."""
    return jax.tree.unflatten(structure, values)


def columns(width: int, one: Callable[..., tuple[Any, ...]], *arguments: Iterable[Any]) -> list[list[Any]]:
    """The `width` columns of what `one` returns for every leaf: a list of tuples, turned."""
    rows = [one(*row) for row in zip(*arguments, strict=True)]
    return [[row[column] for row in rows] for column in range(width)]


def number(value: Any, dtype: str) -> jax.Array:
    """A number of the step in the computing dtype."""
    return jnp.asarray(value, dtype)
