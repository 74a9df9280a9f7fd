"""Models under FSDP2 and tensor parallelism, with their own backward passes, and what their processes agree about."""

import pytest

from . import sharded_behaviour as behaviour
from . import sharded_models as models
from .test_torch_sharded import ALL_REDUCE, FLOAT32, FLOAT64
from .torch_runs import Array
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")

# Two sums per process group; where the sequence is sharded, one more for the gradients of the norms, which FSDP2 has
# summed up already where it is used, too.
SUMS = {"rows": 2, "columns": 2, "hybrid": 2, "tensor parallel": 3, "both": 4}


@pytest.fixture(scope="module")
def expected() -> dict[str, Array]:
    return models.single()


@pytest.fixture(params=[False, True], ids=["eager", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("name", models.MODELS)
def test_trains_like_one_process(four: Ranks, expected: dict[str, Array], name: str) -> None:
    for error, counts in four(models.trained, name, expected):
        assert error <= FLOAT64
        assert counts == {ALL_REDUCE: SUMS[name]}


@pytest.mark.parametrize("name", ["rows", "row", "column"])
def test_a_gradient_that_is_missing_on_a_process_is_zero_there(four: Ranks, name: str, fused: bool) -> None:
    assert max(four(behaviour.missing_here, name, fused)) <= FLOAT64


def test_a_gradient_that_is_missing_everywhere_leaves_the_parameter_alone(four: Ranks, fused: bool) -> None:
    assert all(four(behaviour.missing_everywhere, fused))


@pytest.mark.parametrize("name", ["rows", "row", "rows of two"])
def test_all_processes_skip_what_is_not_finite_on_one(four: Ranks, name: str, fused: bool) -> None:
    answers = [answer for answer in four(behaviour.skipped, name, fused) if answer is not None]
    for error, skips, steps, lr in answers:
        assert error <= FLOAT64
        assert skips == [1, 0, 2] and steps == [4, 5, 3]
        assert lr == pytest.approx(behaviour.lr_of_t(5))


@pytest.mark.parametrize("name", ["rows", "copies", "hybrid", "row"])
def test_found_inf_of_one_process_leaves_out_the_step_of_all(four: Ranks, name: str, fused: bool) -> None:
    assert all(four(behaviour.found_inf, name, fused))


def test_what_is_uneven_stands_behind_what_is_not(four: Ranks) -> None:
    assert all(four(behaviour.even_first))


def test_what_lies_on_another_mesh(four: Ranks) -> None:
    for alone, refused in four(behaviour.elsewhere):
        assert alone
        assert refused.endswith("Redistribute it, or have it made on the mesh of the parameter.")


@pytest.mark.parametrize("name", ["rows", "row", "column", "twice", "turned"])
def test_stochastic_rounding_takes_the_bits_of_one_process(four: Ranks, name: str, fused: bool) -> None:
    for wrong, differing in four(behaviour.rounded, name, fused):
        assert wrong == 0, "an element counts as another one"
        # A float32 sum in another order changes the last bits, and of 65536 values of the cut ones a few tip over.
        assert differing < 0.005


def test_telemetry_is_that_of_one_process(four: Ranks, fused: bool) -> None:
    assert max(four(behaviour.telemetry, "row", fused)) <= FLOAT32  # in which it is kept


def test_telemetry_can_be_switched_on_between_steps(four: Ranks, fused: bool) -> None:
    assert max(four(behaviour.telemetry_switched, "row", fused)) <= FLOAT32


def test_state_lies_like_its_parameter(four: Ranks) -> None:
    four(behaviour.placed)


def test_a_step_in_16_bits_keeps_what_one_process_keeps(four: Ranks, fused: bool) -> None:
    for error, counts in four(behaviour.narrow_state, fused):
        assert error <= FLOAT32
        assert counts == {ALL_REDUCE: 5}  # one more for the mean of R as it is kept


def test_one_parameter_is_stepped_by_itself(four: Ranks, fused: bool) -> None:
    assert max(four(behaviour.one_by_one, "row", fused)) <= FLOAT64


def test_refuses_what_its_parts_do_not_show(four: Ranks) -> None:
    for reshaped, partial in four(behaviour.refusals):
        assert reshaped.startswith("placements of the parameter 'p8' must be Replicate, as its rule reshapes it to")
        assert "factoring.last_two" in reshaped
        assert partial.startswith("placements of the parameter 'p' must be Shard or Replicate, got ")
