"""Writes a recipe as code that runs: the equivalent call in JAX and in torch."""

import dataclasses
import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from adafactor_spec import FIELDS, Recipe, factoring, per_name, recipes, schedules

WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Code:
    """The equivalent call in one framework. `str()` shows both ways of writing it under the same imports.

    Attributes:
        package: what is imported for it.
        setup: a line that has to come before the call, or "".
        call_by_recipe, call_by_fields: the call with the recipe's name, and with every field that is not as in "paper".
    """

    package: str
    setup: str
    call_by_recipe: str
    call_by_fields: str

    @property
    def by_recipe(self) -> str:
        """A program: imports and the call with the recipe's name."""
        return self._program(self.call_by_recipe)

    @property
    def by_fields(self) -> str:
        """A program: imports and the call with every field."""
        return self._program(self.call_by_fields)

    def __str__(self) -> str:
        return self._program(self.call_by_recipe, "# The same, field by field:\n" + self.call_by_fields)

    def _program(self, *calls: str) -> str:
        code = "\n".join(calls)
        used = [name for name in ("factoring", "per_name", "recipes", "schedules") if re.search(rf"\b{name}[.(]", code)]
        imports = [f"import {self.package}", *(["import optax"] if "optax.chain" in code else [])]
        imports += [f"from adafactor_spec import {', '.join(used)}"] if used else []
        return "\n".join([*imports, "", *([self.setup] if self.setup else []), "\n\n".join(calls)])


def equivalents(name: str, arguments: Mapping[str, Any], recipe: Recipe, belong: Mapping[str, Any]) -> dict[str, Code]:
    """The equivalent calls, {"jax": Code, "torch": Code}.

    Args:
        name: of the recipe function.
        arguments: its arguments.
        recipe: what it returns for them.
        belong: arguments of the original that the optimizers take themselves: maximize, weight_decay_mask.
    """
    ways = (
        {"recipe": _call(f"recipes.{name}", arguments) if arguments else expression(name)},
        {field: expression(getattr(recipe, field)) for field in differing(recipe)},
    )
    setup = ""
    if recipe.lr is None:
        setup = "learning_rate = 1e-3  # the original has no default: put yours here"
        ways = ({"lr": "learning_rate", **ways[0]}, {"lr": "learning_rate", **ways[1]})
    return {
        "jax": Code("adafactor_jax", setup, *(_in_jax(fields, belong) for fields in ways)),
        "torch": Code("adafactor_torch", setup, *(_in_torch(fields, belong, recipe.needs_names) for fields in ways)),
    }


def differing(recipe: Recipe) -> list[str]:
    """The fields in which a recipe differs from "paper"; `lr` is not among them where the recipe has none."""
    paper = recipes.paper()
    return [f for f in FIELDS if getattr(recipe, f) != getattr(paper, f) and not (f == "lr" and recipe.lr is None)]


def expression(value: Any) -> str:
    """A value of a recipe, or of a constructor's argument, as an expression that makes it again."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return f'"{value}"' if value.isprintable() and not set(value) & set('\\"') else repr(value)
    if isinstance(value, tuple | list):
        items = ", ".join(map(expression, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{expression(key)}: {expression(item)}' for key, item in value.items())}}}"
    if isinstance(value, per_name | factoring.by_name):
        return f"{_path(value)}({expression(dict(value.rules))}, default={expression(value.default)})"
    if isinstance(value, schedules.Schedule | factoring.Rule) and dataclasses.fields(value):  # type: ignore[arg-type]
        given = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)  # type: ignore[arg-type]
            if getattr(value, field.name) != field.default
        }
        return _call(_path(value), given)
    if isinstance(value, factoring.Rule):
        return f"factoring.{value!r}"
    return repr(value)


def _path(value: Any) -> str:
    module = "schedules." if isinstance(value, schedules.Schedule) else "factoring."
    return ("" if isinstance(value, per_name) else module) + type(value).__name__


def _call(function: str, arguments: Mapping[str, Any]) -> str:
    return f"{function}({', '.join(f'{name}={expression(value)}' for name, value in arguments.items())})"


def _in_jax(fields: Mapping[str, str], belong: Mapping[str, Any]) -> str:
    arguments = [f"{'learning_rate' if name == 'lr' else name}={code}" for name, code in fields.items()]
    if "weight_decay_mask" in belong:
        arguments.append(f"weight_decay_mask={expression(belong['weight_decay_mask'])}")
    if "maximize" in belong:
        return _wrapped("tx = optax.chain", ["optax.scale(-1.0)", _wrapped("adafactor_jax.adafactor", arguments)])
    return _wrapped("tx = adafactor_jax.adafactor", arguments)


def _in_torch(fields: Mapping[str, str], belong: Mapping[str, Any], needs_names: bool) -> str:
    parameters = "model.named_parameters()" if needs_names else "model.parameters()"
    maximize = ["maximize=True"] if "maximize" in belong else []
    arguments = [parameters, *(f"{name}={code}" for name, code in fields.items()), *maximize]
    return _wrapped("optimizer = adafactor_torch.Adafactor", arguments)


def _wrapped(function: str, arguments: list[str]) -> str:
    one_line = f"{function}({', '.join(arguments)})"
    if len(one_line) <= WIDTH and "\n" not in one_line:
        return one_line
    return f"{function}(\n" + "".join(textwrap.indent(f"{argument},\n", "    ") for argument in arguments) + ")"
