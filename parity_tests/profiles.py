"""How much the suite draws: few examples and a sample of each large cross by default, everything under `--thorough`."""

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from hypothesis import settings


def draws_many() -> bool:
    """Whether this is `--thorough`, or the profile that explores."""
    return settings().max_examples > settings.get_profile("default").max_examples


def examples(few: int, many: int | None = None) -> int:
    """The number of examples of one test: `few` by default, else `many`, which is ten times as many if not said."""
    return (10 * few if many is None else many) if draws_many() else few


def cover(combinations: Sequence[Mapping[str, Hashable]], together: int | None = None) -> list[int]:
    """The places of those combinations that the default runs: the same ones each time, and with every value in them.

    A combination is a value for each parameter of a test. Of two parameters, every value is in one of the chosen
    combinations; of three or more, every pair of values that occurs. `together` says otherwise: 1 value, or 2.
    """
    columns = {name: [values[name] for values in combinations] for name in combinations[0]}
    # Parameters that say each other's value count as one: by where each of its values is first.
    names = list({tuple(map(column.index, column)): name for name, column in columns.items()}.values())
    size = min(2, max(1, len(names) - 1)) if together is None else together
    groups = list(itertools.combinations(names, size))
    parts = [{(group, *(values[name] for name in group)) for group in groups} for values in combinations]
    missing, used, chosen = set[tuple[Hashable, ...]]().union(*parts), Counter[tuple[str, Hashable]](), list[int]()

    def worth(place: int) -> tuple[int, int]:
        """How many parts are new; of equals the one whose values were used least, so that all of them rotate."""
        return len(parts[place] & missing), -sum(used[value] for value in combinations[place].items())

    places: Sequence[int] = range(len(parts))
    while places := [place for place in places if parts[place] & missing]:
        chosen.append(max(places, key=worth))
        missing -= parts[chosen[-1]]
        used.update(combinations[chosen[-1]].items())
    return sorted(chosen)


def rotated(count: int, of: int, turn: int) -> list[int]:
    """`count` places, spread evenly over all `of`, which move on by one with every turn."""
    count = min(count, of)
    return sorted({(turn + place * of // count) % of for place in range(count)})


def some(cases: Mapping[str, tuple[Hashable, ...]]) -> list[str]:
    """The names of those cases that run, of combinations that a file writes out: those of `cover`, or all."""
    names = list(cases)
    if draws_many():
        return names
    return [names[place] for place in cover([{str(at): value for at, value in enumerate(cases[n])} for n in names])]
