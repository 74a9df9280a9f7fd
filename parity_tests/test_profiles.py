"""The sample of a test's combinations that runs by default: small, the same each time, and with every value in it."""

import itertools
from typing import Any

import pytest

from parity_tests.profiles import cover, rotated


def cross(**values: int) -> list[dict[str, Any]]:
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*map(range, values.values()))]


def missed(combinations: list[dict[str, Any]], chosen: list[int], together: int) -> set[tuple[object, ...]]:
    """Values, or pairs of values, that occur in the combinations and in none of those that are chosen."""
    groups = list(itertools.combinations(combinations[0], together))
    parts = [{(names, *(at[name] for name in names)) for names in groups} for at in combinations]
    return set[tuple[object, ...]]().union(*parts) - set[tuple[object, ...]]().union(*(parts[at] for at in chosen))


def test_of_two_parameters_every_value_runs() -> None:
    combinations = cross(recipe=6, dtype=4)
    chosen = cover(combinations)
    assert not missed(combinations, chosen, 1)
    assert len(chosen) == 6 and chosen == cover(combinations)
    assert missed(combinations, chosen[1:], 1), "a sample with one case less is seen to be too small"


def test_of_three_parameters_every_pair_runs() -> None:
    combinations = cross(recipe=6, dtype=4, path=3)
    chosen = cover(combinations)
    assert not missed(combinations, chosen, 2)
    assert 24 <= len(chosen) <= 36
    assert missed(combinations, chosen[:20], 2)


def test_what_does_not_occur_is_not_asked_for() -> None:
    combinations = [at for at in cross(recipe=3, dtype=3) if at["recipe"] <= at["dtype"]]
    assert not missed(combinations, cover(combinations), 1)


def test_parameters_that_say_each_other_count_as_one() -> None:
    combinations = [at | {"shape": str(at["dtype"])} for at in cross(recipe=6, dtype=4)]
    assert len(cover(combinations)) == 6


@pytest.mark.parametrize(("count", "of"), [(2, 6), (2, 5), (1, 3), (3, 2)])
def test_the_values_of_one_parameter_are_spread_and_move_on(count: int, of: int) -> None:
    turns = [rotated(count, of, turn) for turn in range(of)]
    assert all(len(chosen) == min(count, of) for chosen in turns)
    assert {place for chosen in turns for place in chosen} == set(range(of))
    assert rotated(3, 12, 0) == [0, 4, 8] and rotated(3, 12, 1) == [1, 5, 9]
