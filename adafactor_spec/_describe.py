"""A recipe in words and equations: the row of a table, the whole step, and what differs between two."""

from collections.abc import Iterator
from typing import Any, Protocol

from . import _formulas, factoring, schedules
from ._formulas import amount, cases, formula, number, times
from ._names import per_name
from .errors import refusal

COLUMNS = ("step size", "decay", "factoring", "eps", "momentum", "clipping", "weight decay", "state dtype")
MOMENTUM_OF = {"grad": "gradient", "update": "update", "step": "step"}
Section = tuple[str, list[str]]
Schedule = schedules.ScalarOrSchedule


class RecipeFields(Protocol):
    """What this module reads of a `Recipe`. `Recipe.describe` calls this module, which therefore cannot import it."""

    @property
    def lr(self) -> Schedule | None: ...
    @property
    def relative_step(self) -> bool: ...
    @property
    def multiply_by_parameter_scale(self) -> bool | per_name: ...
    @property
    def eps2(self) -> float: ...
    @property
    def max_parameter_scale(self) -> float | None: ...
    @property
    def beta2(self) -> Schedule: ...
    @property
    def factoring(self) -> factoring.Rule: ...
    @property
    def eps1(self) -> float | None: ...
    @property
    def eps1_mode(self) -> str: ...
    @property
    def amsgrad(self) -> bool: ...
    @property
    def clipping_threshold(self) -> float | None: ...
    @property
    def beta1(self) -> Schedule | None: ...
    @property
    def momentum_of(self) -> str: ...
    @property
    def debias(self) -> bool: ...
    @property
    def momentum_dtype(self) -> str | None: ...
    @property
    def momentum_rounding(self) -> str: ...
    @property
    def weight_decay(self) -> Schedule | per_name: ...
    @property
    def weight_decay_by(self) -> str | float: ...
    @property
    def decay_before_scale(self) -> bool: ...
    @property
    def state_dtype(self) -> str | None: ...
    @property
    def decays(self) -> bool: ...
    @property
    def rho(self) -> Schedule: ...


def summary(recipe: RecipeFields) -> dict[str, str]:
    """One short phrase for each of `COLUMNS`."""
    eps = _eps(recipe)
    texts = (
        times(_rho(recipe), _scale_or_not(recipe, "RMS(p)")),
        formula(recipe.beta2) + (", running max of V" if recipe.amsgrad else ""),
        _formulas.rule(recipe.factoring),
        (f"g^2 + {eps}" if recipe.eps1_mode == "add" else f"sqrt(V) >= {eps}")
        + (f", root + {eps}" if recipe.amsgrad else ""),
        _momentum(recipe),
        f"RMS(u) <= {number(recipe.clipping_threshold)}" if _clips(recipe) else "off",
        _decay(recipe),
        "the parameter's" if recipe.state_dtype == "param" else "float32 or wider",
    )
    return dict(zip(COLUMNS, texts, strict=True))


def describe(recipe: RecipeFields) -> str:
    """See `Recipe.describe`."""
    lines = [*_notation(recipe)]
    for heading, equations in _step(recipe):
        lines += [f"  {heading}:", *(f"    {equation}" for equation in equations)]
    changed = diff(recipe, type(recipe)())
    lines += ["", 'Fields that differ from "paper":' if changed else 'No field differs from "paper".']
    for field, (mine, theirs) in changed.items():
        lines.append(f"  {field} = {_formulas.literal(mine)}  (paper: {_formulas.literal(theirs)})")
    return "\n".join(lines)


def diff(recipe: RecipeFields, other: RecipeFields) -> dict[str, tuple[Any, Any]]:
    """See `Recipe.diff`."""
    if not isinstance(other, type(recipe)):
        remedy = f"Use recipes.resolve({other!r})." if isinstance(other, str) else ""
        raise refusal("other", "a Recipe", other, remedy)
    pairs = {field: (mine, getattr(other, field)) for field, mine in vars(recipe).items()}
    return {field: (mine, theirs) for field, (mine, theirs) in pairs.items() if mine != theirs}


# --- The phrases -----------------------------------------------------------------------------------------------------


def _rho(recipe: RecipeFields) -> str | Schedule:
    if recipe.lr is None:
        return "min(lr (to be given), t^-1/2)" if recipe.relative_step else "lr (to be given)"
    return recipe.rho


def _scale(recipe: RecipeFields, rms: str) -> str:
    if recipe.max_parameter_scale is None:
        return f"max({number(recipe.eps2)}, {rms})"
    return f"clip({rms}, {number(recipe.eps2)}, {number(recipe.max_parameter_scale)})"


def _scale_or_not(recipe: RecipeFields, rms: str) -> str:
    return str(amount(recipe.multiply_by_parameter_scale, lambda on: _scale(recipe, rms) if on else "1"))


def _eps(recipe: RecipeFields) -> str:
    return "eps(dtype)" if recipe.eps1 is None else number(recipe.eps1)


def _clips(recipe: RecipeFields) -> bool:
    return recipe.clipping_threshold not in (None, float("inf"))


def _momentum(recipe: RecipeFields) -> str:
    if recipe.beta1 is None:
        return "none"
    rounds = {"store": "", "use": "rounded before use", "decay": "its decay rounded"}[recipe.momentum_rounding]
    rounds = rounds if _rounds(recipe) else ""
    of = f"{formula(recipe.beta1)} of the {MOMENTUM_OF[recipe.momentum_of]}"
    return ", ".join(part for part in (of, "debiased" * recipe.debias, recipe.momentum_dtype, rounds) if part)


def _rounds(recipe: RecipeFields) -> bool:
    """Whether the first moment can be kept in a narrower dtype than that of the arithmetic."""
    return recipe.momentum_dtype is not None or recipe.state_dtype == "param"


def _decay(recipe: RecipeFields) -> str:
    wd = amount(recipe.weight_decay) if recipe.decays else "wd"
    c = f"L2: g + {times(wd, 'p')}" if recipe.weight_decay_by == "grad" else _c(recipe, wd)
    c += ", before RMS(p)" if recipe.decay_before_scale else ""
    return c if recipe.decays else f"off ({c})"


def _c(recipe: RecipeFields, wd: str | schedules.ScalarOrSchedule) -> str:
    """c in p - update - c * p."""
    by = recipe.weight_decay_by
    if by in ("one", "grad"):
        return times(wd)
    return times(wd, {"step": "alpha", "lr": "lr"}[by] if isinstance(by, str) else f"lr^{number(by)}")


# --- The whole step --------------------------------------------------------------------------------------------------


def _notation(recipe: RecipeFields) -> Iterator[str]:
    yield "One step of p with gradient g, at t = 1, 2, ...; RMS(x) = sqrt(mean(x^2)):"
    if recipe.eps1 is None:
        yield "  eps(dtype) is the machine epsilon of the parameter's own dtype."
    if _formulas.has_batch(recipe.factoring):
        yield "  Every index of the batch axes is a parameter of its own: means and RMS are taken within it."


def _step(recipe: RecipeFields) -> Iterator[Section]:
    """Headings and equations in the order of `oracle.step`."""
    if recipe.decays and recipe.weight_decay_by == "grad":
        yield "weight decay, a part of the gradient", [*_decay_lines(recipe), "g = g + c * p"]
    yield from _second_moment(recipe)
    x = "g"
    if recipe.beta1 is not None and recipe.momentum_of == "grad":
        yield from _first_moment(recipe, x)
        x = _used(recipe)
    yield "update", list(_update(recipe, x))
    update = "alpha * u"
    if recipe.beta1 is not None and recipe.momentum_of == "update":
        yield from _first_moment(recipe, "u")
        update = f"alpha * {_used(recipe)}"
    yield "step size", list(_step_size(recipe))
    if recipe.beta1 is not None and recipe.momentum_of == "step":
        yield from _first_moment(recipe, update)
        update = _used(recipe)
    lines = []
    if recipe.decays and recipe.weight_decay_by != "grad":
        lines = [] if recipe.decay_before_scale else list(_decay_lines(recipe))
        update += " - c * p"
    yield "parameter, rounded once to its dtype", [*lines, f"p = p - {update}"]


def _second_moment(recipe: RecipeFields) -> Iterator[Section]:
    floor = _eps(recipe) if recipe.eps1_mode == "floor" else ""
    mix = "{0} = beta2 * {0} + (1 - beta2) * {1}".format
    lines = [f"beta2 = {formula(recipe.beta2)}", "s = g^2" if floor else f"s = g^2 + {_eps(recipe)}"]
    if _formulas.may_factor(recipe.factoring):
        lines += [mix("R", "mean(s over columns)"), mix("C", "mean(s over rows)")]
        lines += [f"V = R * C / max(mean(R), {floor})" if floor else "V = R * C / mean(R)"]
        lines += [mix("V", "s") + ", where it is not factored"]
    else:
        lines += [mix("V", "s")]
    if recipe.amsgrad:
        lines += [f"V_max = max(V_max, V, {floor}^2)" if floor else "V_max = max(V_max, V)"]
    rule = recipe.factoring
    yield (
        "rows and columns",
        cases(rule, _formulas.rule) if isinstance(rule, factoring.by_name) else [_formulas.rule(rule)],
    )
    yield f"second moment, kept in {_kept(recipe)}", lines


def _kept(recipe: RecipeFields) -> str:
    return "the parameter's dtype (float32 for float16)" if recipe.state_dtype == "param" else "float32 or wider"


def _update(recipe: RecipeFields, x: str) -> Iterator[str]:
    root = "sqrt(V)" if recipe.eps1_mode == "add" else f"max(sqrt(V), {_eps(recipe)})"
    if recipe.amsgrad:
        root = f"(sqrt(V_max / (1 - beta2^t)) + {_eps(recipe)})"
    yield f"u = {x} / {root}"
    if _clips(recipe):
        threshold = number(recipe.clipping_threshold)
        yield "u = u / max(1, RMS(u))" if threshold == "1" else f"u = u / max(1, RMS(u) / {threshold})"


def _first_moment(recipe: RecipeFields, x: str) -> Iterator[Section]:
    rounding = recipe.momentum_rounding if _rounds(recipe) else "store"
    mixed = {
        "store": f"m = beta1 * m + (1 - beta1) * {x}",
        "use": f"m = round(beta1 * m + (1 - beta1) * round({x}))",
        "decay": f"m = round(round(beta1) * m) + (1 - beta1) * {x}",
    }[rounding]
    when = "rounded to it" if rounding == "use" else "used before it is rounded to it"
    yield (
        f"first moment of the {MOMENTUM_OF[recipe.momentum_of]}, kept in {recipe.momentum_dtype or _kept(recipe)}"
        + f", {when}" * _rounds(recipe),
        [f"beta1 = {formula(recipe.beta1)}", mixed],
    )


def _used(recipe: RecipeFields) -> str:
    return "m / (1 - beta1^t)" if recipe.debias else "m"


def _step_size(recipe: RecipeFields) -> Iterator[str]:
    yield f"lr = {'(to be given)' if recipe.lr is None else formula(recipe.lr)}"
    rho = "min(lr, t^-1/2)" if recipe.relative_step else "lr"
    rms = "RMS(p)"
    if recipe.decays and recipe.decay_before_scale:
        yield from _decay_lines(recipe)
        rms = "RMS(p - c * p)"
    scaled = recipe.multiply_by_parameter_scale
    if isinstance(scaled, per_name):
        yield from (f"scale = {line}" for line in cases(scaled, lambda on: _scale(recipe, rms) if on else "1"))
        yield f"alpha = {rho} * scale"
    else:
        yield f"alpha = {times(rho, _scale(recipe, rms) if scaled else '1')}"


def _decay_lines(recipe: RecipeFields) -> Iterator[str]:
    if isinstance(recipe.weight_decay, per_name):
        yield from (f"wd = {case}" for case in cases(recipe.weight_decay, formula))
        yield f"c = {_c(recipe, 'wd')}"
    else:
        yield f"c = {_c(recipe, recipe.weight_decay)}"
