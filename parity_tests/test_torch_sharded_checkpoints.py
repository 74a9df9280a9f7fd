"""Half a run in one layout, saved and gone on with in another by torch.distributed.checkpoint: as if uninterrupted."""

from pathlib import Path

import pytest

from adafactor_spec.schedules import piecewise_constant

from . import sharded_checkpoints as checkpoints
from .test_torch_sharded import FLOAT64
from .torch_runs import Array
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")


@pytest.fixture(scope="module")
def folder(four: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("checkpoints")
    four(checkpoints.save, where)
    return where


@pytest.fixture(scope="module")
def expected() -> list[Array]:
    return checkpoints.single()


@pytest.mark.sampled
@pytest.mark.parametrize("name", checkpoints.PLACES)
@pytest.mark.parametrize("saved", checkpoints.PLACES)
def test_goes_on_in_any_layout(four: Ranks, folder: Path, expected: list[Array], saved: str, name: str) -> None:
    assert max(four(checkpoints.resume, folder, saved, name, expected)) <= FLOAT64


# A tenth of the distance: without its state an optimizer begins again, with another decay and no momentum.
@pytest.mark.parametrize("name", ["plain", "rows", "column"])
def test_without_its_state_it_does_not(four: Ranks, folder: Path, expected: list[Array], name: str) -> None:
    assert max(four(checkpoints.resume, folder, "rows", name, expected, False)) > 0.1


@pytest.mark.parametrize("name", ["rows", "row", "column"])
def test_goes_on_from_the_state_dict_of_one_process(four: Ranks, expected: list[Array], name: str) -> None:
    assert max(four(checkpoints.from_whole_state, name, expected)) <= FLOAT64


# The control to a state of DTensors, whose shares a checkpoint tells apart: of plain tensors it keeps one for all.
def test_shares_saved_as_plain_tensors_are_silently_wrong(four: Ranks, tmp_path: Path) -> None:
    errors = four(checkpoints.plain_state, tmp_path, ((16, 8), (12, 20), (8,)))
    assert max(errors) > 0.1


def test_uneven_shares_saved_as_plain_tensors_do_not_fit(four: Ranks, tmp_path: Path) -> None:
    assert any("ize mismatch" in str(said) for said in four(checkpoints.plain_state, tmp_path, ((13, 27), (27,))))


# Weight decay that does not ask for lr, and steps that ignore it, would move weights in the step with lr = 0 that torch
# takes to make a state.
FRESH: dict[str, dict[str, object]] = {
    "paper": {},
    "transformers": {"recipe": "transformers", "weight_decay": 0.1},
    "decay by one": {"weight_decay": 0.1, "weight_decay_by": "one", "relative_step": True},
    "schedule": {"lr": piecewise_constant(0.1, (3,), 0.5), "weight_decay": 0.1, "weight_decay_by": "one"},
    "momentum of the step": {"beta1": 0.9, "momentum_of": "step", "amsgrad": True},
}


@pytest.mark.sampled
@pytest.mark.parametrize("fields", FRESH.values(), ids=list(FRESH))
@pytest.mark.parametrize("name", ["plain", "rows", "column"])
def test_the_state_dict_of_a_new_optimizer_moves_no_weight(four: Ranks, name: str, fields: dict[str, object]) -> None:
    assert all(four(checkpoints.fresh, name, fields))
