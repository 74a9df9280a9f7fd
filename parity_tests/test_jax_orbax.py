"""orbax: saved on 8 devices, restored on other meshes, continued to what the uninterrupted run gives."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from adafactor_jax import adafactor, state_shardings
from parity_tests.jax_meshes import (
    FLOAT64,
    STEPS,
    Tree,
    error,
    gradients,
    mesh_of,
    misplaced,
    parameters,
    run,
    shapes_of,
    shardings_of,
    step_of,
)

pytestmark = pytest.mark.xdist_group("orbax")  # one checkpoint for the whole file

SHAPES = shapes_of(3)
TX = adafactor(0.05, beta1=0.9)
START, GRADS = parameters(SHAPES), gradients(SHAPES)
HALF = STEPS // 2


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def begin() -> tuple[Tree, Tree]:
    """Parameters and state before the first step, on 8 devices."""
    params = jax.device_put(START, shardings_of(mesh_of("auto"), "2d", START))
    return params, jax.jit(TX.init, out_shardings=state_shardings(TX, params))(params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tree]:
    """(The checkpoint after half of the steps, the parameters after all of them)"""
    path = tmp_path_factory.mktemp("orbax") / "checkpoint"
    with jax.enable_x64(True):
        step = jax.jit(step_of(TX))
        params, state = run(step, *begin(), GRADS[:HALF])
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {"params": params, "state": state})
        return path, run(step, params, state, GRADS[HALF:])[0]


def target_on(kind: str, sizes: tuple[int, int], layout: str) -> Tree:
    """What a checkpoint is restored as: shapes, dtypes and shardings of parameters and state; nothing is in memory."""
    places = shardings_of(mesh_of(kind, sizes), layout, START)
    params = jax.tree.map(lambda p, place: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=place), START, places)
    shapes = jax.eval_shape(TX.init, params)
    return {"params": params, "state": jax.tree.map(_placed, shapes, state_shardings(TX, params))}


def _placed(leaf: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def restored(path: Path, target: Tree) -> Tree:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


PLACES: dict[str, tuple[str, tuple[int, int], str]] = {
    "4 as 2x2": ("auto", (2, 2), "2d"),
    "4 as 4x1": ("auto", (4, 1), "fsdp"),
    "4 as 1x4": ("auto", (1, 4), "tp"),
    "1": ("auto", (1, 1), "2d"),
    "8 in another layout": ("auto", (4, 2), "both"),
    "8 as 2x4, Explicit": ("explicit", (2, 4), "2d"),
}


@pytest.mark.sampled(count=3)
@pytest.mark.parametrize("place", PLACES)
def test_restored_elsewhere(saved: tuple[Path, Tree], place: str) -> None:
    path, expected = saved
    target = target_on(*PLACES[place])
    found = restored(path, target)
    assert not misplaced(found, jax.tree.map(lambda leaf: leaf.sharding, target))
    moved, _ = run(jax.jit(step_of(TX)), found["params"], found["state"], GRADS[HALF:])
    assert error(moved, expected, START) <= FLOAT64


def test_a_state_that_is_not_restored_is_seen(saved: tuple[Path, Tree]) -> None:
    path, expected = saved
    params = restored(path, target_on("auto", (4, 2), "2d"))["params"]
    moved, _ = run(jax.jit(step_of(TX)), params, begin()[1], GRADS[HALF:])
    assert error(moved, expected, START) > 0.1


def test_every_leaf_is_what_was_saved(saved: tuple[Path, Tree]) -> None:
    """Bit for bit, in its own dtype; the count is that of the steps taken."""
    path, _ = saved
    one, other = (restored(path, target_on("auto", sizes, "2d"))["state"] for sizes in ((4, 2), (1, 1)))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert int(one.count) == HALF and one.inner[0].v_row["kernel0"].dtype == np.float64
