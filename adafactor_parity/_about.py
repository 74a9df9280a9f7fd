"""Takes the docstring and the signature of a named recipe apart, for tables and pages that describe it."""

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

from adafactor_spec import literal, recipes, summary, to_plain


@dataclass(frozen=True)
class Argument:
    """One argument in the original's words.

    Attributes:
        name: in the signature.
        default: as it is written in code; None: it must be given.
        meaning: from the docstring, or nothing.
    """

    name: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class About:
    """A named recipe.

    Attributes:
        name: of the function in `adafactor_spec.recipes`.
        what: the first paragraph of the docstring, what it is.
        notes: the paragraphs after it, what to know.
        arguments: in the order of the signature.
        source: where the original stands.
        refused: what the original's defaults alone are refused with, or nothing.
    """

    name: str
    what: str
    notes: tuple[str, ...]
    arguments: tuple[Argument, ...]
    source: str
    refused: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        recipe = recipes.shown(self.name)
        return {
            "name": self.name,
            "what": self.what,
            "notes": list(self.notes),
            "arguments": [vars(argument) for argument in self.arguments],
            "source": self.source,
            "defaults_refused": self.refused or None,
            "summary": summary(recipe),
            "fields": {field: _for_json(to_plain(value)) for field, value in vars(recipe).items()},
            "describe": recipe.describe(),
        }


def about(name: str) -> About:
    """The named recipe, from its function."""
    function = recipes.function(name)
    what, *rest = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    listed = next((part for part in rest if part.startswith("Args:\n")), "Args:\n")
    source = next((part for part in rest if part.startswith("Source: ")), "Source: ")
    meanings = _meanings(listed.removeprefix("Args:\n"))
    return About(
        name=name,
        what=_joined(what),
        notes=tuple(_joined(part) for part in rest if part not in (listed, source)),
        arguments=tuple(
            Argument(
                parameter.name,
                None if parameter.default is inspect.Parameter.empty else literal(parameter.default),
                meanings.get(parameter.name, ""),
            )
            for parameter in inspect.signature(function).parameters.values()
        ),
        source=_joined(source).removeprefix("Source: "),
        refused=_refused(name),
    )


def _refused(name: str) -> str:
    try:
        recipes.resolve(name)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def _meanings(listed: str) -> dict[str, str]:
    """{name: meaning} of entries `name: meaning` or `name, name: meaning`, whose further lines are indented."""
    found = {}
    for entry in re.split(r"\n(?=    \S)", listed):
        names, _, meaning = _joined(entry).partition(": ")
        found.update(dict.fromkeys(names.split(", "), meaning))
    return found


def _for_json(value: Any) -> Any:
    return str(value) if value == math.inf else value


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())
