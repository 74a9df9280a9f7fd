"""What the tests of sharded JAX runs share: meshes of 8 devices, layouts, 50 parameters, what XLA compiled.

conftest.py asks JAX for 8 CPU devices.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any
Shape = tuple[int, ...]

# Both are relative to the distance travelled, after STEPS steps.
STEPS = 10
FLOAT64 = 1e-12  # thousands of roundings of 1.1e-16 each, and sums in another order
FLOAT32 = 1e-5  # the same with 6e-8; a weight is 10 to 100 times its distance, and carries its rounding into it
ERRORS = {"float64": FLOAT64, "float32": FLOAT32}

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# (matrix, vector); the axes are x with 4 devices and y with 2.
LAYOUTS = {
    "fsdp": (P("x"), P("x")),
    "tp": (P(None, "y"), P("y")),
    "2d": (P("x", "y"), P(("x", "y"))),
    "both": (P(("x", "y")), P(("x", "y"))),
}


def mesh_of(kind: str, sizes: tuple[int, int] = (4, 2)) -> Mesh:
    """A mesh with the axes x and y over the first CPU devices; `kind` is "auto" or "explicit"."""
    count = sizes[0] * sizes[1]
    return jax.make_mesh(sizes, ("x", "y"), axis_types=(KINDS[kind],) * 2, devices=jax.devices("cpu")[:count])


def shardings_of(mesh: Mesh, layout: str, params: Tree) -> Tree:
    """A NamedSharding for every matrix and vector."""
    matrix, vector = LAYOUTS[layout]
    return jax.tree.map(lambda p: NamedSharding(mesh, matrix if np.ndim(p) == 2 else vector), params)


# -------------------------------------------------------------------------------------------------------- the problem


def shapes_of(count: int = 50) -> dict[str, Shape]:
    """`count` parameters, of 50 of them 36 matrices and 14 vectors; every axis can be divided by 8."""
    sizes = (8, 16, 24)
    matrices = round(0.72 * count)
    shapes = {f"kernel{i}": (sizes[i % 3], sizes[i // 3 % 3]) for i in range(matrices)}
    return shapes | {f"bias{i}": (sizes[i % 3],) for i in range(count - matrices)}


def parameters(shapes: dict[str, Shape], dtype: str = "float64") -> dict[str, np.ndarray]:
    """Parameters of sizes between 0.1 and 10, on the host."""
    return _draw(shapes, dtype, 0)


def gradients(shapes: dict[str, Shape], dtype: str = "float64", steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """One tree for each step, on the host."""
    return [_draw(shapes, dtype, t) for t in range(1, steps + 1)]


def _draw(shapes: dict[str, Shape], dtype: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (10 ** rng.uniform(-1, 1) * rng.standard_normal(s)).astype(dtype) for name, s in shapes.items()}


def error(actual: Tree, expected: Tree, start: Tree) -> float:
    """The worst difference of a parameter, relative to the distance that it has travelled from `start`."""

    def one(a: Any, e: Any, s: Any) -> float:
        a, e, s = (np.asarray(value, np.float64) for value in (a, e, s))
        assert np.all(np.isfinite(a))
        return float(np.max(np.abs(a - e)) / np.max(np.abs(e - s)))

    return max(jax.tree.leaves(jax.tree.map(one, actual, expected, start)))


# ------------------------------------------------------------------------------------------------------------ the run


def step_of(tx: optax.GradientTransformation) -> Callable[..., tuple[Tree, Tree]]:
    """(parameters, state, gradients) -> (parameters, state), to be compiled."""

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(step: Callable[..., Any], params: Tree, state: Tree, grads: Sequence[Tree]) -> tuple[Tree, Tree]:
    """The parameters and the state after these gradients, which go to where the parameters lie."""
    places = jax.tree.map(lambda p: p.sharding, params)
    for grad in grads:
        params, state = step(params, state, jax.device_put(grad, places))
    return params, state


def specs_of(shardings: Tree) -> dict[str, P]:
    """The specs that are not P(), by path, without the Nones at their end."""
    specs = {_path(path): _bare(leaf.spec) for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    return {path: spec for path, spec in specs.items() if spec != P()}


def misplaced(values: Tree, shardings: Tree) -> dict[str, Any]:
    """Where the leaves lie that do not lie as `shardings` says, by path."""
    wanted = jax.tree.leaves(shardings)
    found = jax.tree_util.tree_leaves_with_path(values)
    return {
        _path(path): leaf.sharding
        for (path, leaf), sharding in zip(found, wanted, strict=True)
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    }


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _bare(spec: P) -> P:
    axes = tuple(spec)
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return P(*axes)


# -------------------------------------------------------------------------------------------------- what XLA compiled

# A collective stands in HLO as `%name = type all-reduce(...)`, or as a pair of -start and -done.
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def collectives(compiled: Any) -> Counter[str]:
    """How many of each collective stand in a compiled function, by the name in HLO."""
    return Counter(COLLECTIVE.findall(compiled.as_text()))
