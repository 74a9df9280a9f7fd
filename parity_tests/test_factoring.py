"""Factoring rules: the plan of every rule on every kind of shape."""

import pickle
from typing import Any

import pytest

from adafactor_spec import factoring, from_plain, to_plain
from adafactor_spec.factoring import (
    Plan,
    as_matrix,
    by_name,
    explicit,
    largest_two,
    last_two,
    leading_or_last_two,
    no_factoring,
    plan,
)

RULES = [
    last_two,
    no_factoring,
    as_matrix,
    largest_two(128),
    largest_two(2, ties="first"),
    leading_or_last_two(17),
    explicit((0, 1), (2,), (-1,)),
    by_name({"kernel": largest_two(32), r"layers\..*": explicit(1, 2, 0)}, default=no_factoring),
]


@pytest.mark.parametrize(
    ("rule", "shape", "rows", "cols"),
    [
        (last_two, (), (), ()),
        (last_two, (7,), (), ()),
        (last_two, (5, 1), (0,), (1,)),
        (last_two, (2, 3, 4), (1,), (2,)),
        (no_factoring, (4, 6), (), ()),
        (largest_two(4), (4, 6), (0,), (1,)),
        (largest_two(5), (4, 6), (), ()),  # inclusive
        (largest_two(2), (3, 3, 16, 32), (2,), (3,)),
        (largest_two(2), (32, 24, 3, 3), (0,), (1,)),
        (largest_two(2), (9, 5, 7), (0,), (2,)),
        (largest_two(2), (6, 6, 6), (1,), (2,)),  # ties: the last ones
        (largest_two(2, ties="first"), (6, 6, 6), (0,), (1,)),
        (largest_two(2), (5, 9, 5), (1,), (2,)),
        (largest_two(2, ties="first"), (5, 9, 5), (0,), (1,)),
        (leading_or_last_two(17), (32, 24, 3, 3), (0,), (1,)),
        (leading_or_last_two(17), (3, 3, 18, 32), (2,), (3,)),
        (leading_or_last_two(17), (3, 3, 16, 32), (), ()),
        (leading_or_last_two(17), (17, 17), (0,), (1,)),
        (leading_or_last_two(17), (16, 17), (), ()),
        (explicit((0, -1), 1), (2, 3, 4), (0, 2), (1,)),
        (explicit((), ()), (2, 3), (), ()),
        (last_two, (0, 5), (), ()),  # nothing to take a mean of
    ],
)
def test_plans(rule: Any, shape: tuple[int, ...], rows: tuple[int, ...], cols: tuple[int, ...]) -> None:
    found = plan(rule, shape)
    assert (found.rows, found.cols, found.view) == (rows, cols, None)
    assert found.factored == bool(rows)


@pytest.mark.parametrize(
    ("shape", "view"),
    [((2, 3, 4), (2, 12)), ((3, 3, 16, 32), (96, 48)), ((5, 4, 3, 2, 6), (30, 24)), ((2, 3, 4, 5, 6, 7), (84, 60))],
)
def test_as_matrix_reshapes_like_the_starting_point(shape: tuple[int, ...], view: tuple[int, int]) -> None:
    found = plan(as_matrix, shape)
    assert found.view == found.matrix_shape == view
    assert (found.row_shape, found.col_shape) == ((view[0], 1), (1, view[1]))
    assert plan(as_matrix, (4, 6)).view is None and not plan(as_matrix, (4,)).factored


def test_state_keeps_reduced_axes_at_size_1() -> None:
    found = plan(explicit((0, 1), (3,), (2,)), (2, 3, 4, 5))
    assert found.row_shape == (2, 3, 4, 1) and found.col_shape == (1, 1, 4, 5)
    assert found.rms_axes == (0, 1, 3)


def test_the_first_matching_pattern_decides() -> None:
    rule = by_name({"bias": no_factoring, "expert": explicit(1, 2, 0)}, default=last_two)
    assert plan(rule, (4, 3, 2), "expert/kernel").batch == (0,)
    assert not plan(rule, (4, 3, 2), "expert/bias").factored
    assert plan(rule, (4, 3, 2), "dense/kernel") == Plan((4, 3, 2), (1,), (2,))
    assert rule.needs_names and not last_two.needs_names


def test_a_plan_is_decided_once() -> None:
    assert plan(largest_two(2), (4, 6)) is plan(largest_two(2), (4, 6))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_data(rule: Any) -> None:
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule and hash(again) == hash(rule)
    assert eval(repr(rule), vars(factoring)) == rule
    assert from_plain(to_plain(rule)) == rule


def test_bad_rules_are_refused() -> None:
    for make, message in [
        (lambda: largest_two(-1), r"min_dim must be at least 0, got -1"),
        (lambda: largest_two(2, ties="middle"), r"ties must be one of 'last', 'first', got 'middle'"),
        (lambda: explicit((0,), ()), r"rows and cols must be both given or both empty"),
        (lambda: explicit(("a",), (1,)), r"rows must be axis numbers, got \('a',\)"),  # type: ignore[arg-type]
        (lambda: by_name({"a": "last_two"}), r"rules\['a'\] must be a factoring rule, got 'last_two'"),  # type: ignore[dict-item]
        (lambda: by_name({"a": largest_two}), r"Call it: largest_two\(...\)"),  # type: ignore[dict-item]
        (lambda: by_name({"(": last_two}), r"rules must be regular expressions, got '\('"),
        (lambda: plan(explicit((0,), (2,)), (4, 6), "dense/kernel"), r"parameter 'dense/kernel' with shape \(4, 6\)"),
        (lambda: plan(explicit((0,), (-2,)), (4, 6)), r"must be different from each other"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
