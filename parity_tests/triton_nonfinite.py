"""Infinities and NaN in steps by the Triton kernels, which whole parameters on the CPU are given to here.

A step of one parameter takes the interpreter a tenth of a second. So there is one parameter with factors and one
without, and by default every 24th case of a recipe is run, of each recipe other ones; `--thorough` runs all of them.
"""

import pytest

from parity_tests import nonfinite
from parity_tests.profiles import examples

NAMES = ("kernel", "vector")


@pytest.mark.parametrize("name", nonfinite.RECIPES)
@pytest.mark.usefixtures("by_triton")
def test_triton_does_what_the_definition_does(name: str) -> None:
    recipe, number = nonfinite.recipe_of(name), list(nonfinite.RECIPES).index(name)
    path = nonfinite.Torch(recipe, names=NAMES, fused=True)
    for case in nonfinite.some_cases(recipe, number, every=examples(24, 1)):
        nonfinite.assert_as_defined(path, name, case)
