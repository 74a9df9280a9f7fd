"""What Adafactor is: the recipe, its schedules, its factoring rules, and the oracle that defines a step. NumPy only.

    from adafactor_spec import Recipe, factoring, oracle, recipes, schedules

`oracle` is where the maths is. `recipes` has the published Adafactors in their own words. The two optimizers,
`adafactor_jax` and `adafactor_torch`, take a `Recipe` or its name, and any field of it as a keyword.
"""

from . import dtypes, errors, factoring, oracle, recipes, schedules
from ._describe import summary
from ._formulas import literal
from ._names import per_name, values_of
from ._plain import from_plain, to_plain
from ._recipe import FIELDS, PER_NAME, REMEDIES, Numbers, Recipe, replace
from ._rounding import ROUNDINGS, check_seed, rounding_key, seed_key
from ._sentinel import AS_THE_RECIPE_SAYS, Unset, given

__all__ = [
    "AS_THE_RECIPE_SAYS",
    "FIELDS",
    "PER_NAME",
    "REMEDIES",
    "ROUNDINGS",
    "Numbers",
    "Recipe",
    "Unset",
    "check_seed",
    "dtypes",
    "errors",
    "factoring",
    "from_plain",
    "given",
    "literal",
    "oracle",
    "per_name",
    "recipes",
    "replace",
    "rounding_key",
    "schedules",
    "seed_key",
    "summary",
    "to_plain",
    "values_of",
]
