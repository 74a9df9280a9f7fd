"""Checks, when a step is traced, that a state is one that `init` makes for these parameters. No value is read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adafactor_spec.errors import refusal

from ._leaves import Tree

NOTHING = "nothing"  # a leaf that is not there


class Difference(NamedTuple):
    """The first place where a state is not what it should be, and what should be and is there."""

    where: str
    expected: str
    found: str

    def refusal(self) -> ValueError:
        """The error to raise for it."""
        remedy = "It was made by other options or for other parameters: make one with tx.init(params)."
        return refusal(f"state{self.where}", self.expected, self.found, remedy)


class States:
    """The states that the `init` of a transformation makes, by the shapes and dtypes of the parameters."""

    def __init__(self, init: Callable[[Tree], Any]) -> None:
        self._init = init
        self._known: dict[Any, tuple[Any, Any, list[str]]] = {}

    def difference(self, state: Any, params: Tree) -> Difference | None:
        """What is wrong with a state for these parameters; None where nothing is."""
        made, structure, kinds = self._made_for(params)
        try:
            values, own = jax.tree.flatten(state)
        except (TypeError, ValueError, RecursionError):
            return Difference("", "a tree like tx.init(params)", type(state).__name__)
        if own == structure and [_kind(value) for value in values] == kinds:
            return None
        return _first(made, state)

    def check(self, state: Any, params: Tree) -> None:
        """Refuse a state that is not one of these.

        Raises:
            ValueError: a part is missing, left over, or of another shape or dtype.
        """
        found = self.difference(state, params)
        if found is not None:
            raise found.refusal()

    def _made_for(self, params: Tree) -> tuple[Any, Any, list[str]]:
        values, structure = jax.tree.flatten(params)
        key = structure, tuple(_kind(value) for value in values), jnp.result_type(int)
        if key not in self._known:
            like = [jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value)) for value in values]
            made = jax.eval_shape(self._init, jax.tree.unflatten(structure, like))
            kept, made_structure = jax.tree.flatten(made)
            self._known[key] = made, made_structure, [_kind(value) for value in kept]
        return self._known[key]


def _kind(value: Any) -> str:
    """The dtype and the shape of a leaf, or its type where it is no array."""
    if value is None:
        return NOTHING
    try:
        return f"{jnp.result_type(value).name}{list(jnp.shape(value))}"
    except (TypeError, ValueError):
        return type(value).__name__


def _first(made: Any, state: Any) -> Difference:
    """The first difference of two trees that differ."""
    if type(state) is not type(made):
        return Difference("", f"{type(made).__name__}, as tx.init(params) makes it", type(state).__name__)
    expected, found = _by_path(made), _by_path(state)
    for path in {**expected, **found}:
        pair = expected.get(path, NOTHING), found.get(path, NOTHING)
        if pair[0] != pair[1]:
            return Difference(path, *pair)
    return Difference("", str(jax.tree.structure(made)), str(jax.tree.structure(state)))


def _by_path(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda value: value is None)
    return {jax.tree_util.keystr(path): _kind(value) for path, value in leaves}
