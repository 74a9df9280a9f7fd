"""The default of an optimizer's keyword: not given, so the recipe's field stands. None is a value of its own, "off"."""

import enum
from typing import Any, Final


class Unset(enum.Enum):
    """The type of `AS_THE_RECIPE_SAYS`."""

    AS_THE_RECIPE_SAYS = "as the recipe says"

    def __repr__(self) -> str:
        return "<as the recipe says>"


# Any, so that a keyword with this default keeps the annotation of its field.
AS_THE_RECIPE_SAYS: Final[Any] = Unset.AS_THE_RECIPE_SAYS


def given(**fields: Any) -> dict[str, Any]:
    """Those of the keywords that were given."""
    return {name: value for name, value in fields.items() if value is not AS_THE_RECIPE_SAYS}
