"""The function `lint`: what a constructor call computes or why it is refused, and which arguments have no effect."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adafactor_spec import Recipe, dtypes, recipes, to_plain
from adafactor_spec.errors import NotReproduced, OriginalRefuses

from .._about import about
from .call import Unbound, bind, read
from .code import Code, equivalents
from .constructors import dotted, find

Values = dict[str, Any]
REPRODUCED = "reproduced"
# What only matters together with what an original takes from elsewhere: {argument: the recipe's name for that}.
_NEEDS = {"logical_factor_rules": "param_logical_axes"}
_PAIR_OR_TRIPLE = 3  # a longer list is one setting, such as the steps of a schedule, and not a few in one


@dataclass(frozen=True)
class Lint:
    """What was found out about one call.

    Attributes:
        text: the call.
        constructor: what is called, in the words of the text.
        recipe_name: the original, a name of `adafactor_spec.recipes.NAMES`.
        arguments: the values that were given, under the original's names.
        verdict: "reproduced"; "the original refuses it"; "not reproduced here", on purpose; or "not taken here",
            because of a value or a keyword.
        refused: the reason, None where the call is reproduced.
        recipe: what the call computes; None where it is refused.
        without_effect: arguments, and elements such as `betas[1]`, that change nothing whatever they are.
        as_by_default: arguments that say what the original does without them.
        code: the equivalent calls, {"jax": ..., "torch": ...}: each a `Code` with the programs `by_recipe`, with the
            arguments that matter, and `by_fields`, with the fields in which the recipe differs from "paper".
        remarks: what else to know of this call.
        quirks: what to know of the original: paragraphs of the recipe's documentation.
        source: what the recipe was read off and checked against.
    """

    text: str
    constructor: str
    recipe_name: str
    arguments: Values = field(default_factory=dict)
    verdict: str = REPRODUCED
    refused: str | None = None
    recipe: Recipe | None = None
    without_effect: Values = field(default_factory=dict)
    as_by_default: Values = field(default_factory=dict)
    code: dict[str, Code] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    quirks: tuple[str, ...] = ()
    source: str = ""

    @property
    def reproduced(self) -> bool:
        """Whether this project computes what the call computes."""
        return self.verdict == REPRODUCED

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, infinities as "inf", for JSON."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.recipe is not None:
            found["recipe"] = {name: to_plain(value) for name, value in vars(self.recipe).items()}
        found["code"] = {name: {"by_recipe": c.by_recipe, "by_fields": c.by_fields} for name, c in self.code.items()}
        plain: dict[str, Any] = _finite({"reproduced": self.reproduced, **found})
        return plain


def lint(text: str, *, original: str | None = None) -> Lint:
    """Find out what a constructor call of a published Adafactor computes, and write the equivalent call.

    Args:
        text: one call, such as "transformers.Adafactor(model.parameters(), lr=1e-3, relative_step=False)". It is
            parsed and never executed: arguments must be literals, but for the parameters, which are not looked at.
        original: the name of a recipe, where the name that is called does not say which one is meant.

    Raises:
        ValueError: the text is not one such call, or an argument is not a literal; the message names it.

    Example:
        >>> from adafactor_parity import lint
        >>> found = lint("keras.optimizers.Adafactor(learning_rate=0.01, relative_step=False)")
        >>> found.without_effect
        {'relative_step': False}
    """
    call = read(text)
    constructor = find(call.function, original)
    name = constructor.recipe
    function: Callable[..., Recipe] = recipes.function(name)
    described = about(name)
    called = dotted(call.function) or call.source(call.function)
    found = Lint(text=call.text, constructor=called, recipe_name=name, quirks=described.notes, source=described.source)
    if constructor.others and original is None:
        others = ", ".join(f"--from {other}" for other in constructor.others)
        found = dataclasses.replace(found, remarks=(f"{called} is read as {name}'s. If it is another's: {others}.",))
    if constructor.takes_params and call.has_groups:
        groups = "Options of parameter groups are not looked at: a group here takes the fields, or a recipe of its own."
        found = dataclasses.replace(found, remarks=(*found.remarks, groups))
    try:
        arguments = bind(call, function, constructor.takes_params)
    except Unbound as error:
        return _refused(found, f"{called} cannot be called like this: {error}", "the original refuses it")
    except TypeError as error:
        return _refused(found, str(error).replace(f"{name}()", called, 1), "not taken here")
    found = dataclasses.replace(found, arguments=arguments)
    belong = {name: value for name, value in arguments.items() if _belongs(name, value)}
    own = {name: value for name, value in arguments.items() if name not in belong}
    try:
        recipe = function(**own)
    except OriginalRefuses as error:
        # What is missing may stand in the groups, which are not looked at.
        return _refused(found, str(error), "not taken here" if call.has_groups else "the original refuses it")
    except NotReproduced as error:
        return _refused(found, str(error), "not reproduced here")
    except (ValueError, TypeError) as error:
        return _refused(found, str(error), "not taken here")
    without_effect = dict(_without_effect(function, own))
    if "weight_decay_mask" in belong and not recipe.decays:
        without_effect["weight_decay_mask"] = belong.pop("weight_decay_mask")
    needed = _needed(function, own)
    return dataclasses.replace(
        found,
        recipe=recipe,
        without_effect=without_effect,
        as_by_default={n: v for n, v in own.items() if n not in needed and n not in without_effect},
        code=equivalents(name, needed, function(**needed), belong),
        remarks=(*found.remarks, *_remarks(recipe, arguments)),
    )


def _refused(found: Lint, why: str, verdict: str) -> Lint:
    return dataclasses.replace(found, refused=why, verdict=verdict)


def _without_effect(function: Callable[..., Recipe], arguments: Values) -> Iterator[tuple[str, Any]]:
    """The arguments, and elements of them, that can have any other accepted value without changing what is computed."""
    for name, value in arguments.items():
        if name in _NEEDS and _NEEDS[name] not in arguments:
            continue
        default = _default(function, name)
        idle = _idle(function, arguments, name, _others(value, default))
        elements = {}
        if isinstance(value, tuple | list) and len(value) <= _PAIR_OR_TRIPLE:
            alike = isinstance(default, tuple | list) and len(default) == len(value)
            for i, item in enumerate(value):
                others = _others(item, default[i] if alike else inspect.Parameter.empty)
                changed = [type(value)([*value[:i], other, *value[i + 1 :]]) for other in others]
                elements[i] = _idle(function, arguments, name, changed)
        if idle and False not in elements.values():
            yield name, value
        else:
            yield from ((f"{name}[{i}]", value[i]) for i, element in elements.items() if element)


def _idle(function: Callable[..., Recipe], arguments: Values, name: str, others: list[Any]) -> bool | None:
    """Whether `others` in the argument's place compute the same; None where none of them is accepted."""
    here = function(**arguments).effective()
    made = [made for other in others if (made := _try(function, {**arguments, name: other})) is not None]
    return all(recipe.effective() == here for recipe in made) if made else None


def _others(value: Any, default: Any) -> list[Any]:
    """Values other than this one to try in its place: the default, and some near it."""
    others = [] if default is inspect.Parameter.empty else [default]
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, int):
        others += [value + 1, value // 2]
    elif isinstance(value, float):
        others += [value / 2, value * 2, 0.5]
    elif value in dtypes.NAMES:
        others += dtypes.NAMES
    return [other for other in others if other != value]


def _needed(function: Callable[..., Recipe], arguments: Values) -> Values:
    """The arguments without those that can be left out together."""
    here = function(**arguments).effective()
    needed = dict(arguments)
    for name in [name for name in arguments if name not in _NEEDS]:
        fewer = {other: value for other, value in needed.items() if other != name}
        made = _try(function, fewer)
        if made is not None and made.effective() == here:
            needed = fewer
    return needed


def _try(function: Callable[..., Recipe], arguments: Values) -> Recipe | None:
    try:
        return function(**arguments)
    except (ValueError, TypeError):
        return None


def _default(function: Callable[..., Recipe], name: str) -> Any:
    known = inspect.signature(function).parameters
    return known[name].default if name in known else inspect.Parameter.empty


def _belongs(name: str, value: Any) -> bool:
    """Whether an argument says how a recipe is used and not what it is. The optimizers take such arguments."""
    if name == "maximize":
        return value is True
    return name == "weight_decay_mask" and isinstance(value, dict | list | tuple | bool)


def _remarks(recipe: Recipe, arguments: Values) -> Iterator[str]:
    if recipe.lr is None:
        yield "No learning rate: the original has no default, and must be given one here or with every step."
    if arguments.get("maximize"):
        yield "maximize belongs to the optimizer: a keyword in torch, optax.scale(-1.0) before it in JAX."
    if arguments.get("weight_decay_mask") is not None and recipe.decays:
        yield "weight_decay_mask belongs to the optimizer: in torch, make parameter groups with weight_decay=0.0."
    for name, other in _NEEDS.items():
        if name in arguments and other not in arguments:
            yield f"{name} decides only with {other}, which the original has from the model: add it below."
    if recipe.needs_names:
        yield "It depends on the parameters' names: in torch give named_parameters(), in JAX a tree with names."


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
