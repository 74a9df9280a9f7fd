"""Runs with infinities and NaN on sharded parameters, for the processes of a test."""

from torch import Tensor

from adafactor_spec import factoring

from . import nonfinite
from . import sharded_runs as runs

NAMES = tuple(name for name in nonfinite.SHAPES if name != "large")  # of the small ones, every process has other parts


def assert_as_defined(layout: str, name: str, cases: list[nonfinite.Case], fused: bool) -> None:
    """The whole parameters and states, put together from all processes, are what the definition says."""
    recipe = nonfinite.recipe_of(name)

    def laid(index: int, whole: Tensor) -> Tensor:
        reshaped = recipe.factoring == factoring.as_matrix and whole.ndim > 2
        return runs.laid("copies" if reshaped else layout, index, whole)

    path = nonfinite.Torch(recipe, names=NAMES, laid=laid, fused=fused)
    for case in cases:
        nonfinite.assert_as_defined(path, name, case)
