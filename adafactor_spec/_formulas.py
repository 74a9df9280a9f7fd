"""Schedules and factoring rules as short text: formulas of t that a reader can calculate with."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import factoring, schedules
from ._names import per_name
from .errors import is_number


def number(value: Any) -> str:
    """A number in the shortest form that twelve digits allow."""
    return f"{float(value):.12g}" if is_number(value) else str(value)


def formula(schedule: Any) -> str:
    """A number, a schedule or a function as a formula of t, such as `min(0.999, 1 - t^-0.8)`."""
    return _part(schedule, 0).text


def times(*factors: Any) -> str:
    """The product of numbers, schedules and symbols (text that is one already); a factor 1 is left out."""
    return _times(*(_Part(f) if isinstance(f, str) else _part(f, 0) for f in factors)).text


def amount(value: Any, show: Callable[[Any], str] = formula) -> Any:
    """`value` itself, or, as a symbol, the values that parameters can have: `(0.01 or 0 by name)`."""
    if not isinstance(value, per_name):
        return value if show is formula else show(value)
    return f"({' or '.join(dict.fromkeys(map(show, value.values)))} by name)"


def cases(value: Any, show: Callable[[Any], str]) -> list[str]:
    """One line per pattern of a `per_name` or `factoring.by_name`, and one for the other names."""
    found = [f"{show(each)}, where the name has {pattern!r}" for pattern, each in value.rules]
    return [
        *found,
        "other names are refused" if value.default is None else f"{show(value.default)}, for every other name",
    ]


def rule(of: factoring.Rule) -> str:
    """Which axes a rule factors."""
    match of:
        case factoring.last_two:
            return "last two axes"
        case factoring.as_matrix:
            return "all axes, reshaped to a matrix"
        case factoring.no_factoring:
            return "none"
        case factoring.largest_two(least, ties):
            return f"two largest axes >= {least}" + (", of equal ones the first" if ties == "first" else "")
        case factoring.leading_or_last_two(least):
            return f"axes 0 and 1, else the last two, if >= {least}"
        case factoring.explicit():
            named = [f"{what} {_axes(axes)}" for what, axes in _named(of) if axes]
            return ", ".join(named if of.rows else ["none", *named])
        case factoring.limited(inner, axes, rows_last):
            fewest, most = axes or (0, 0)
            only = f"{most}" if fewest == most else f"{fewest} to {most}"
            limits = [f"{only} axes only"] if axes else []
            limits += ["the shorter one the last without the longer"] if rows_last else []
            return f"{rule(inner)} ({', '.join(limits)})"
        case factoring.by_name():
            count = f"{len(of.rules)} rule{'s' * (len(of.rules) != 1)}"
            return f"by name: {count}, " + ("no others" if of.default is None else f"else {rule(of.default)}")
    return type(of).__name__


def may_factor(of: factoring.Rule) -> bool:
    """Whether a rule can keep the second moment as two factors."""
    if isinstance(of, factoring.by_name | factoring.limited):
        return any(map(may_factor, _inner(of)))
    return bool(of.rows) if isinstance(of, factoring.explicit) else of != factoring.no_factoring


def has_batch(of: factoring.Rule) -> bool:
    """Whether a rule names batch axes."""
    if isinstance(of, factoring.by_name | factoring.limited):
        return any(map(has_batch, _inner(of)))
    return isinstance(of, factoring.explicit) and bool(of.batch)


def literal(value: Any) -> str:
    """A field's value as it is written in code: defaults left out, a function by its name."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{pattern!r}: {literal(inner)}" for pattern, inner in value.items()) + "}"
    if isinstance(value, factoring.Rule | schedules.Schedule | per_name) and not type(value).__name__.startswith("_"):
        arguments = inspect.signature(type(value)).parameters.values()
        if all(hasattr(value, argument.name) for argument in arguments):
            return f"{type(value).__name__}({', '.join(_given(value, arguments))})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # the address would be another one in every run


def _given(value: Any, arguments: Iterable[inspect.Parameter]) -> Iterator[str]:
    for argument in arguments:
        inner = getattr(value, argument.name)
        if argument.default is inspect.Parameter.empty:
            yield literal(dict(inner)) if argument.name == "rules" else literal(inner)
        elif inner != argument.default:
            yield f"{argument.name}={literal(inner)}"


def _inner(of: factoring.by_name | factoring.limited) -> list[factoring.Rule]:
    if isinstance(of, factoring.limited):
        return [of.rule]
    return [inner for _, inner in of.rules] + ([] if of.default is None else [of.default])


def _named(of: factoring.explicit) -> list[tuple[str, tuple[int, ...]]]:
    return [("rows", of.rows), ("columns", of.cols), ("batch", of.batch)]


def _axes(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes))


SUM, PRODUCT, POWER, ATOM = range(4)


@dataclass(frozen=True)
class _Part:
    """A formula and what binds its parts: what binds more tightly around it needs parentheses."""

    text: str
    binds: int = ATOM
    smallest_of: tuple[str, ...] = ()  # the arguments, where the whole is min(...)

    def inside(self, binds: int) -> str:
        return self.text if self.binds >= binds else f"({self.text})"


def _part(value: Any, back: int) -> _Part:
    """`value` at t - back."""
    t = _shifted(back)
    match value:
        case schedules.constant(inner) | schedules.function(inner):
            return _part(inner, back)
        case schedules.zero_based(inner):
            return _part(inner, back + 1)
        case schedules.power_decay(exponent, cap, offset):
            since = _since(back + offset)
            return _least(_Part(number(cap)), _Part(f"1 - {since.inside(ATOM)}^{number(-exponent)}", SUM), cap < 1)
        case schedules.adam_decay(b):
            b_t = f"{number(b)}^{t.inside(ATOM)}"
            return _Part(f"({number(b)} - {b_t}) / (1 - {b_t})", PRODUCT) if b else _Part("0")
        case schedules.inverse_sqrt(flat_until):
            return _root(t if flat_until == 1 and back <= 0 else _Part(f"max({t.text}, {number(flat_until)})"))
        case schedules.relative_step(base):
            return _least(_part(base, back), _root(t))
        case schedules.linear_warmup(base, steps):
            return _times(_part(base, back), _least(_Part("1"), _over(t, steps)))
        case schedules.linear_cooldown(base, steps, end):
            left = _Part(f"{end + back} - t", SUM)
            return _times(_part(base, back), _Part(f"clip({_over(left, steps).text}, 0, 1)"))
        case schedules.cosine_decay(base, start, end):
            since = _shifted(back + start)
            turn = _Part(f"(1 + cos(pi * clip({_over(since, end - start).text}, 0, 1)))")
            return _Part(f"{_times(_part(base, back), turn).text} / 2", PRODUCT)
        case schedules.piecewise_constant(base, boundaries, factor):
            passed = f"how many of {', '.join(map(str, boundaries))} <= {t.text}"
            return _times(_part(base, back), _Part(f"{number(factor)}^({passed})", POWER))
        case schedules.at_least(base, floor):
            return _Part(f"max({number(floor)}, {_part(base, back).text})")
        case schedules.product(first, second):
            return _times(_part(first, back), _part(second, back))
        case schedules.power(base, exponent):
            return _Part(f"{_part(base, back).inside(ATOM)}^{number(exponent)}", POWER)
    if not callable(value):
        return _Part(number(value))
    own = getattr(value, "__name__", type(value).__name__)
    return _Part(f"{own if own.isidentifier() else 'f'}({t.text})")


def _shifted(back: int) -> _Part:
    return _Part("t") if not back else _Part(f"t {'-' if back > 0 else '+'} {abs(back)}", SUM)


def _since(back: int) -> _Part:
    """Steps since a fine-tuning run began, 1 before that."""
    shifted = _shifted(back)
    return _Part(f"max(1, {shifted.text})") if back > 0 else shifted


def _root(of: _Part) -> _Part:
    return _Part(f"{of.inside(ATOM)}^-1/2", POWER)


def _over(of: _Part, steps: int) -> _Part:
    return _Part(f"{of.inside(POWER)} / {steps}", PRODUCT)


def _least(first: _Part, second: _Part, both: bool = True) -> _Part:
    if not both:
        return second
    arguments = (*(first.smallest_of or (first.text,)), *(second.smallest_of or (second.text,)))
    return _Part(f"min({', '.join(arguments)})", smallest_of=arguments)


def _times(*factors: _Part) -> _Part:
    kept = [factor for factor in factors if factor.text != "1"]
    if len(kept) < 2:
        return kept[0] if kept else _Part("1")
    return _Part(" * ".join(factor.inside(PRODUCT) for factor in kept), PRODUCT)
