"""docs/coming_from.md: every original has its section, and its new line keeps the arguments of the old one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optax
import pytest
import torch

import adafactor_jax
import adafactor_torch
from adafactor_parity import lint
from adafactor_spec import Recipe, recipes, replace

PAGE = Path(__file__).parents[1] / "docs" / "coming_from.md"
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
BY_NAME = {("paper" if title == "The paper" else title.split()[0]): text for title, text in SECTIONS}


def lines(section: str, sign: str) -> Iterator[str]:
    """The lines of its diff with this sign."""
    (block,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    yield from (line[1:] for line in block.splitlines() if line.startswith(sign))


class Noted:
    """An optimizer's constructor that says which recipe it was called with."""

    def adafactor(self, learning_rate: Any = None, *, recipe: Any = "paper") -> Recipe:
        chosen = recipes.resolve(recipe)
        return chosen if learning_rate is None else replace(chosen, lr=learning_rate)

    def Adafactor(self, params: Any, *, recipe: Any = "paper") -> Recipe:
        return recipes.resolve(recipe)


def test_every_original_has_its_section_in_the_order_of_the_recipes() -> None:
    assert tuple(BY_NAME) == recipes.ORIGINALS


@pytest.mark.parametrize("name", recipes.ORIGINALS)
def test_the_new_line_builds_an_optimizer(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    (new,) = lines(BY_NAME[name], "+")
    found: dict[str, Any] = {
        "adafactor_jax": adafactor_jax, "adafactor_torch": adafactor_torch, "model": model, "recipes": recipes
    }  # fmt: skip
    exec(new, found)
    assert isinstance(found["optimizer"], adafactor_torch.Adafactor | optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("name", [name for name in recipes.ORIGINALS if name != "paper"])
def test_the_new_line_keeps_the_arguments_of_the_old_one(name: str) -> None:
    (new,), (old, *_) = lines(BY_NAME[name], "+"), lines(BY_NAME[name], "-")
    found: dict[str, Any] = {
        "adafactor_jax": Noted(), "adafactor_torch": Noted(), "model": torch.nn.Linear(3, 4), "recipes": recipes
    }  # fmt: skip
    exec(new, found)
    theirs = lint(old, original=name).recipe
    assert theirs is not None
    mine: Recipe = found["optimizer"]
    assert replace(theirs, lr=mine.lr if theirs.lr is None else theirs.lr).effective() == mine.effective()
