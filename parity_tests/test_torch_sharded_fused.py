"""What only the C++ has of sharded parameters: units, small matrices, sums that are carried, a library to agree on."""

import pytest
import torch

from . import sharded_fused as fused
from .sharded_runs import Shape
from .test_torch_sharded import FLOAT32, FLOAT64, assert_alike, runs
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")

# Parts of more than 65,536 elements, which are cut into units; vectors folded to rows; matrices too small for a loop.
LARGE: tuple[Shape, ...] = ((1100, 260), (280 * 1024,), (72, 20, 3, 3), (40, 1100, 8))
CASES = ("paper", "momentum of the gradient")


@pytest.mark.parametrize("name", ["rows", "last", "row"])
def test_parts_of_any_size(four: Ranks, name: str) -> None:
    assert_alike(runs(four, name, torch.float64, LARGE, cases=CASES, fused=True), FLOAT64)


def test_parts_of_any_size_in_float32(four: Ranks) -> None:
    assert_alike(runs(four, "rows", torch.float32, LARGE, cases=CASES, fused=True), FLOAT32)


def test_all_processes_step_eagerly_where_one_has_no_library(four: Ranks) -> None:
    for error, rows in four(fused.without_library, "row"):
        assert error <= FLOAT64
        assert rows == 0


@pytest.mark.parametrize("name", ["rows", "row"])
def test_a_parameter_may_take_part_later(four: Ranks, name: str) -> None:
    assert max(four(fused.thawed, name)) <= FLOAT64


@pytest.mark.parametrize("name", ["rows", "row"])
def test_a_parameter_that_is_written_is_read_again(four: Ranks, name: str) -> None:
    assert max(four(fused.written_between, name)) <= FLOAT64


def test_a_write_that_nothing_shows_is_warned_of_once(four: Ranks) -> None:
    for said, error in four(fused.written_unseen, "rows"):
        assert [len(lines) for lines in said] == [1, 1]
        assert said[0][0].startswith("A parameter was written through .data")
        assert error <= FLOAT64


@pytest.mark.parametrize("name", ["rows", "column"])
def test_compensations_are_those_of_one_process(four: Ranks, name: str) -> None:
    # What a rounding to bfloat16 cuts off is at most 2^-8 of p, and itself kept in steps of 2^-8 of that. A sum in
    # another order makes it another step at times; a compensation that is lost is as much as 256 of them.
    assert max(four(fused.compensated, name)) <= 5 * 2.0**-16
