"""Refusals: their form, and what is cut in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adafactor_spec import Recipe, factoring, recipes, replace, schedules
from adafactor_spec.errors import LONGEST_VALUE, NotReproduced, OriginalRefuses, shown

from .odd_values import Unspeakable, in_form, is_plain


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(lr=[0.1] * 1_000_000),  # type: ignore[arg-type]
        lambda: Recipe(eps1_mode="x" * 10_000_000),  # type: ignore[arg-type]
        lambda: recipes.resolve("x" * 10_000_000),
        lambda: schedules.piecewise_constant(0.1, dict.fromkeys(range(1_000)), 0.5),
        lambda: factoring.by_name({"x" * 10_000: 3}),  # type: ignore[dict-item]
        lambda: Recipe(lr=np.zeros((1000, 1000))),  # type: ignore[arg-type]
        lambda: Recipe(eps2=10**5000),
    ],
    ids=["list", "word", "recipe", "boundaries", "pattern", "array", "integer"],
)
def test_values_in_messages_are_cut(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        make()
    assert in_form(caught.value) and "\n" not in str(caught.value)


def test_keywords_in_messages_are_cut() -> None:
    long: dict[str, Any] = {"x" * 1_000_000: 1}
    for make in (recipes.optax, lambda **fields: replace(Recipe(), **fields)):
        with pytest.raises(TypeError, match=r"has no (argument|field) 'xxx") as caught:
            make(**long)
        assert len(str(caught.value)) < 1000


def test_shown() -> None:
    assert shown([0.1, None, "a"]) == "[0.1, None, 'a']"
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert shown(Unspeakable()) == "<Unspeakable whose repr fails>"
    assert shown(10**5000) == "<int whose repr fails>"
    for value in ("x" * 1000, list(range(1000)), b"x" * 1000, {"x" * 1000: 1}):
        assert len(shown(value)) == LONGEST_VALUE and shown(value).endswith("...")


def test_the_check_of_the_form_sees_faults() -> None:
    assert in_form(ValueError("lr must be at least 0, got -1.")) and in_form(NotReproduced("a must be b, got c. Why."))
    assert in_form(OriginalRefuses("a must be b, got c. Did you mean 'd'?"))
    for error in (
        OverflowError("lr must be at least 0, got -1."),
        ValueError("The truth value of an array with more than one element is ambiguous."),
        ValueError("lr must be at least 0, got -1"),
        ValueError(f"lr must be at least 0, got {[0.1] * 1000}."),
        UnicodeError("lr must be at least 0, got -1."),
    ):
        assert not in_form(error)
    assert not is_plain(np.float64(1.0)) and not is_plain((1, np.int32(1))) and is_plain(Recipe())
