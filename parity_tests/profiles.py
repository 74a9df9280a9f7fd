"""How many examples the random tests draw: few by default, many under `--thorough` and in the profile that explores."""

from hypothesis import settings


def examples(few: int, many: int | None = None) -> int:
    """The number of examples of one test: `few` by default, else `many`, which is ten times as many if not said."""
    draws_many = settings().max_examples > settings.get_profile("default").max_examples
    return (10 * few if many is None else many) if draws_many else few
