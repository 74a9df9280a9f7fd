"""DTensors in every layout and with every field of a recipe, on four processes: the same run as of one."""

from typing import Any

import pytest
import torch

from .sharded_runs import FIELDS, LAYOUTS, SHAPES, Compared, Shape, compared, single
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")

# Relative to the distance travelled. A sum in another order is off by some 1e-16 per addition, and ten steps of a few
# hundred elements stay below 1e-14; the contract allows a hundred times that.
FLOAT64 = 1e-12
# Float32 is 5e8 times as coarse: 5e-6, and twice that, for both runs are off.
FLOAT32 = 1e-5
ALL_REDUCE = "c10d.allreduce_"
# Every field where rows and columns are split; elsewhere those that add up something else.
EVERY_FIELD = ("row",)
SOME = ("momentum of the step", "batch", "telemetry")


def runs(
    ranks: Ranks, name: str, dtype: torch.dtype, shapes: tuple[Shape, ...] = SHAPES, **more: Any
) -> list[Compared]:
    cases = tuple(more.get("cases", FIELDS))
    scale, fused = more.get("scale", 1.0), more.get("fused", False)
    expected = dict(zip(cases, single(dtype, cases, shapes, scale), strict=True))
    answers = ranks(compared, name, dtype, expected, shapes, scale, fused)
    return [answer for answer in answers if answer is not None]


def assert_alike(answers: list[Compared], budget: float) -> None:
    """Within the budget of the run of one process, and replicas with the same bits."""
    worst = {case: max(answer.errors[case] for answer in answers) for case in answers[0].errors}
    assert {case: error for case, error in worst.items() if not error <= budget} == {}
    for holders in zip(*(answer.shares for answer in answers), strict=True):
        assert len(set(holders)) == len({which for which, _ in holders}), "replicas differ"


@pytest.mark.sampled
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_one_process_with_two_sums_per_process_group(four: Ranks, name: str, fused: bool) -> None:
    answers = runs(four, name, torch.float64, cases=FIELDS if name in EVERY_FIELD else SOME, fused=fused)
    assert_alike(answers, FLOAT64)
    assert len(answers) == (2 if name.endswith(" of two") else 4)
    for answer in answers:
        assert answer.counts == ({ALL_REDUCE: 2 * LAYOUTS[name]} if LAYOUTS[name] else {})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["rows", "row"])
def test_equals_one_process_in_float32(four: Ranks, name: str, fused: bool) -> None:
    assert_alike(runs(four, name, torch.float32, cases=("paper", *SOME), fused=fused), FLOAT32)


# At 1e-18 it is eps1 that g is divided by: only with a larger step do weights travel farther than their own rounding.
# The largest gradient of the ten steps is 43 times the scale, and 1e18 the largest that is promised.
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("scale", "case"), [(1e-18, "tiny"), (2.3e16, "paper"), (2.3e16, "unfactored")])
def test_gradients_of_any_size(four: Ranks, scale: float, case: str, fused: bool) -> None:
    assert_alike(runs(four, "row", torch.float32, scale=scale, cases=(case,), fused=fused), FLOAT32)


@pytest.mark.parametrize("name", ["rows", "row"])
def test_so_many_sums_whatever_the_number_of_parameters(four: Ranks, name: str) -> None:
    few = ((16, 8), (8, 12)) * 18 + ((12,),) * 14
    many = ((16, 8), (8, 12)) * 70 + ((12,), (5,), (7,)) * 19
    assert (len(few), len(many)) == (50, 197)
    counts = [runs(four, name, torch.float64, shapes, cases=("paper",))[0].counts for shapes in (few, many)]
    assert counts[0] == counts[1] == {ALL_REDUCE: 2 * LAYOUTS[name]}


def test_one_sum_where_nothing_is_clipped_or_shown(four: Ranks) -> None:
    for answer in runs(four, "rows", torch.float64, cases=("no clipping",)):
        assert answer.counts == {ALL_REDUCE: 1}
