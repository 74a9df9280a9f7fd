"""Computes the shardings of an optimizer's state from those of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adafactor_spec.errors import refusal

from ._leaves import Tree

AnyMesh = Mesh | AbstractMesh


def state_shardings(tx: optax.GradientTransformation, params: Tree) -> Tree:
    """The shardings of the whole state of `tx`: each part of the state is sharded like its parameter.

    Args:
        tx: any optax transformation, or a wrapper around one: whatever has an `init`.
        params: a tree of arrays or `jax.ShapeDtypeStruct`s. `.sharding` is a NamedSharding, of the same mesh for all of
            them, Auto or Explicit; nothing is computed, and nothing has to be in memory. One without a mesh counts as
            replicated, as for `jax.jit`, as long as some parameter has one.

    Returns:
        A tree like `tx.init(params)` of NamedShardings on that mesh. An axis of the state that is an axis of the
        parameter keeps its mesh axes; counts and other scalars, and axes that are reduced to size 1, are replicated.

    Raises:
        ValueError: no parameter is on a mesh, they are on two, or one has a sharding of another kind.
        TypeError: `tx` has no `init`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adafactor_jax import adafactor, state_shardings
        >>> mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        >>> kernel = jax.NamedSharding(mesh, jax.P("x", "y"))
        >>> params = {"w": jax.device_put(jnp.ones((4, 3)), kernel)}
        >>> tx = adafactor(1e-2)
        >>> state = jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)
        >>> state.inner[0].v_row["w"].sharding == jax.NamedSharding(mesh, jax.P("x", None))
        True
    """
    if not callable(getattr(tx, "init", None)):
        raise TypeError(str(refusal("tx", "an optax transformation", tx, "Call its constructor: adafactor(1e-2).")))
    mesh = _mesh_of(params)
    # On an Explicit mesh the type of every array has its sharding, so that tracing `init` gives those of the state.
    explicit = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names))

    def typed(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=NamedSharding(explicit, spec))

    with jax.sharding.use_abstract_mesh(explicit):
        state = jax.eval_shape(tx.init, jax.tree.map(typed, params))
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, leaf.sharding.spec if leaf.sharding else PartitionSpec()), state
    )


def zeros_like(
    p: Any, shape: tuple[int, ...] | None, dtype: str, view: tuple[int, ...] | None = None
) -> jax.Array | None:
    """An array of zeros for the state of parameter `p`, or None where there is no shape.

    On a mesh its axes are sharded like those of `p`, or of the reshape `view` of it; an axis that is reduced to size 1
    is replicated. On an Auto mesh only a concrete array has a sharding, a traced one has none.
    """
    if shape is None:
        return None
    typed = jax.eval_shape(lambda x: x, p) if isinstance(p, jax.core.Tracer) else p
    sharding = getattr(typed, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jnp.zeros(shape, dtype)
    old, new = jnp.shape(p), jnp.shape(p) if view is None else view
    # A C-order reshape leaves an axis in its place as long as the ones before it keep their sizes; of axes that it
    # merges, the first can stay divided.
    kept = (
        axes if size == new[axis] and old[:axis] == new[:axis] else None
        for axis, (axes, size) in enumerate(zip(sharding.spec, shape, strict=False))
    )
    spec = PartitionSpec(*kept)
    return jnp.zeros_like(jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(sharding.mesh, spec)))


def _mesh_of(params: Tree) -> AnyMesh:
    """The one mesh of all parameters."""
    found: AnyMesh | None = None
    first = ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        sharding = getattr(leaf, "sharding", None)
        if sharding is None or isinstance(sharding, SingleDeviceSharding):
            continue
        if not isinstance(sharding, NamedSharding):
            remedy = "Put it on the mesh: jax.device_put(x, jax.NamedSharding(mesh, spec))."
            raise refusal(f"sharding of parameter {name!r}", "a NamedSharding", sharding, remedy)
        if found is None:
            found, first = sharding.mesh, name
        elif sharding.mesh != found:
            remedy = "Put all parameters on one mesh with jax.device_put."
            raise refusal(f"mesh of parameter {name!r}", f"that of {first!r}, {found}", sharding.mesh, remedy)
    if found is None:
        remedy = (
            "Put them on a mesh, params = jax.device_put(params, shardings), or give ShapeDtypeStructs with a sharding."
        )
        raise refusal("params", "on a mesh, at least one of them", "no leaf with a NamedSharding", remedy)
    return found
