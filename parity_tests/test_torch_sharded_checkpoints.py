"""Half a run in one layout, saved and gone on with in another by torch.distributed.checkpoint: as if uninterrupted."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("fields", [{}, {"recipe": "transformers", "weight_decay": 0.1}], ids=["paper", "transformers"])
@pytest.mark.parametrize("name", ["plain", "rows", "column"])
def test_the_state_dict_of_a_new_optimizer_moves_no_weight(four: Ranks, name: str, fields: dict[str, object]) -> None:
    assert all(four(checkpoints.fresh, name, fields))
