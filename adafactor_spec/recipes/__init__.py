"""Named recipes: each published Adafactor in its own vocabulary.

A function here takes the arguments that the original's constructor takes, with its names, its defaults and its
refusals, and returns a `Recipe`. `NAMES` lists them; a name alone means the original's defaults.
"""

from collections.abc import Callable

from .._recipe import Recipe
from ..errors import nearest, refusal
from ._adafactor_pytorch import adafactor_pytorch, adafactor_pytorch_parent
from ._optax import optax
from ._paper import paper
from ._torch import torch

_RECIPES: dict[str, Callable[..., Recipe]] = {
    function.__name__: function for function in (paper, adafactor_pytorch, adafactor_pytorch_parent, torch, optax)
}
NAMES = tuple(_RECIPES)


def resolve(recipe: str | Recipe) -> Recipe:
    """The recipe of that name with the original's defaults, or the recipe itself.

    Raises:
        ValueError: there is no recipe of that name; the nearest one is named.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str) or recipe not in _RECIPES:
        remedy = nearest(recipe, NAMES) or "Call a function of adafactor_spec.recipes for one with arguments."
        raise refusal("recipe", f"a Recipe or one of {', '.join(NAMES)}", recipe, remedy)
    return _RECIPES[recipe]()


__all__ = ["NAMES", "adafactor_pytorch", "adafactor_pytorch_parent", "optax", "paper", "resolve", "torch"]
