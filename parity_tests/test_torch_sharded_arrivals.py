"""Gradients that are placed otherwise than their parameters, and missing on some processes from the first step on."""

import pytest

from . import sharded_arrivals as arrivals
from .sharded_runs import LAYOUTS
from .test_torch_sharded import ALL_REDUCE, FLOAT64
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")


CASES = [(name, way) for name in ("copies", "rows", "row") for way in arrivals.WAYS]
# Gradients that are whole on every process need no exchange; then nobody hears that one is missing on another.
CASES.remove(("copies", "whole"))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_gradient_of_other_placements_may_be_missing_on_a_process(four: Ranks, name: str, way: str) -> None:
    for error, counts in four(arrivals.arriving, name, way):
        assert error <= FLOAT64
        if way in ("terms", "averaged"):
            groups = 2 if name == "row" else 1
            assert counts == {ALL_REDUCE: groups + 2 * LAYOUTS[name]}


def test_terms_that_no_process_has_leave_the_parameter_alone(four: Ranks) -> None:
    assert set(map(tuple, four(arrivals.nowhere))) == {(5.0, 2.0, 5.0)}


def test_refuses_gradients_whose_placements_differ(four: Ranks) -> None:
    for differing, changed in four(arrivals.refusals):
        assert differing.startswith("The gradient of a parameter of shape (13, 27) arrives as (Replicate(),) and")
        assert changed.startswith("The gradient of a parameter of shape (13, 27) arrives as (Partial(sum),) and")
