"""What becomes of infinities, NaN and squares that overflow: what the definition says, the same on every path."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adafactor_jax import adafactor
from adafactor_spec import Recipe, oracle

from . import sharded_nonfinite
from .jax_meshes import mesh_of
from .nonfinite import RECIPES, Case, Path, Torch, assert_as_defined, gradients, recipe_of, some_cases
from .nonfinite_jax import Jax
from .profiles import examples
from .two_processes import Ranks

PATHS: dict[str, Callable[..., Path]] = {
    "JAX": Jax,
    "reference": functools.partial(Torch, foreach=False),
    "eager": functools.partial(Torch, fused=False),
    "C++": functools.partial(Torch, fused=True),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_does_what_the_definition_does(path: str, name: str) -> None:
    """Some seconds in JAX, which compiles a program for each recipe."""
    way, turn = PATHS[path](recipe_of(name)), list(PATHS).index(path) + list(RECIPES).index(name)
    for case in some_cases(recipe_of(name), turn, every=examples(3, 1)):
        assert_as_defined(way, name, case)


LAYOUTS = ("rows", "row")  # parts along one axis and along two, some without elements


@pytest.mark.xdist_group("four_processes")
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("fused", [False, True], ids=["eager", "C++"])
def test_torch_does_the_same_on_a_mesh(four: Ranks, fused: bool, name: str) -> None:
    for number, layout in enumerate(LAYOUTS):
        chosen = some_cases(recipe_of(name), number, fused, list(RECIPES).index(name), every=examples(12, 1))
        four(sharded_nonfinite.assert_as_defined, layout, name, chosen, fused)


@pytest.mark.parametrize("name", ["paper", "torch", "floor", "averages of gradients"])
def test_jax_does_the_same_on_a_mesh(name: str) -> None:
    """Seconds, as a program of a mesh takes XLA longer."""
    mesh = mesh_of("auto")

    def placed(x: jax.Array) -> jax.Array:
        axes = [axis if n % size == 0 else None for n, axis, size in zip(x.shape, "xy", (4, 2), strict=False)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    way = Jax(recipe_of(name), placed=placed)
    for case in some_cases(recipe_of(name), list(RECIPES).index(name), every=examples(4, 1)):
        assert_as_defined(way, name, case)


@pytest.mark.parametrize("name", ["torch", "paper"])
def test_jax_does_the_same_compiled_and_operation_by_operation(name: str) -> None:
    """XLA's own maximum loses a NaN in some programs. Seconds, as every operation is compiled."""
    tx, p = adafactor(recipe=recipe_of(name)), jnp.asarray(gradients(0)["large"])
    for value in (np.inf, np.nan, 1e20):
        g = jnp.asarray(Case("g", "one", value).put_into(gradients(1)["large"]), p.dtype)
        for off in (False, True):
            with jax.disable_jit(off):
                updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
            assert not np.any(np.isfinite(updates)), (value, off)


HOWS = ("bfloat16 nearest", "bfloat16 stochastic", "bfloat16 kahan", "float16 stochastic", "float64 nearest")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("path", PATHS)
def test_every_dtype_and_rounding(path: str, how: str) -> None:
    name, (dtype, rounding) = "not clipped", how.split()
    with jax.enable_x64(dtype == "float64"):
        way = PATHS[path](recipe_of(name), dtype, rounding)
        turn = list(PATHS).index(path) + HOWS.index(how)
        for case in some_cases(recipe_of(name), turn, every=examples(3, 1), dtype=dtype):
            assert_as_defined(way, name, case, dtype, rounding)


def test_by_hand() -> None:
    """One infinity in a matrix: R and C are infinite there, and R / mean(R) is NaN in its row and 0 in the others."""
    g = np.ones((3, 3))
    g[1, 2] = np.inf
    with np.errstate(all="ignore"):
        p, state = oracle.step(recipe_of("not clipped"), np.zeros((3, 3)), g, oracle.init(Recipe(), g))
        clipped, _ = oracle.step(Recipe(), np.zeros((3, 3)), g, oracle.init(Recipe(), g))
    assert np.array_equal(np.isfinite(state.v_row.ravel()), [True, False, True])
    assert np.array_equal(np.isfinite(state.v_col.ravel()), [True, True, False])
    inf, nan = np.inf, np.nan
    assert np.array_equal(p, [[-inf, -inf, nan], [nan, nan, nan], [-inf, -inf, nan]], equal_nan=True)
    assert np.all(np.isnan(clipped))  # RMS(u) is NaN
