"""Figures as text, the same on the terminal, on the page and in the plot. What is not there is a dash."""

from ..measure.rounds import Spread

NOTHING = "-"


def rounded(value: float | None) -> str:
    """Two or three digits: `0.052`, `7.31`, `12.3`, `123`."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{value:.2g}"
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def milliseconds(found: Spread | None) -> str:
    """The median."""
    return NOTHING if found is None else rounded(found.median)


def quartiles(found: Spread | None) -> str:
    """`69.8 to 72.1`."""
    return NOTHING if found is None else f"{rounded(found.lower)} to {rounded(found.upper)}"


def times(found: Spread | None) -> str:
    """`7.31`: the median of a ratio, two decimals below 10."""
    if found is None:
        return NOTHING
    return f"{found.median:.2f}" if found.median < 10 else rounded(found.median)


def count(number: int | None) -> str:
    """`1,234`."""
    return NOTHING if number is None else f"{number:,}"


def percent(share: float | None) -> str:
    """`0.31`, of a share of 0.0031."""
    return NOTHING if share is None else rounded(100 * share)
