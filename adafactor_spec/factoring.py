"""Which axes of a parameter are factored: rules, and the plan that a rule makes for one shape.

A rule is data (comparable, printable, picklable). `plan(rule, shape, name)` is the one place where it is decided
what is factored; both optimizers and the oracle ask it, and the answer for a shape is remembered.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ._names import Pairs, check_patterns, found, need_names
from ._plan import Plan, Rule, Shape, plan
from .errors import check_choice, check_flag, check_whole, keep, plain_number, refusal, shown

__all__ = [
    "Plan",
    "Rule",
    "Shape",
    "as_matrix",
    "by_name",
    "check_rule",
    "explicit",
    "largest_two",
    "last_two",
    "leading_or_last_two",
    "limited",
    "no_factoring",
    "plan",
]


@dataclass(frozen=True)
class _LastTwo(Rule):
    """The last two axes of everything with at least two; leading axes keep factors of their own per index."""

    def plan(self, shape: Shape, name: str) -> Plan:
        return Plan(shape, *_pair(len(shape) - 2, len(shape) - 1)) if len(shape) >= 2 else Plan(shape)

    def __repr__(self) -> str:
        return "last_two"


@dataclass(frozen=True)
class _NoFactoring(Rule):
    """V is kept whole for every parameter."""

    def plan(self, shape: Shape, name: str) -> Plan:
        return Plan(shape)

    def __repr__(self) -> str:
        return "no_factoring"


@dataclass(frozen=True)
class _AsMatrix(Rule):
    """Everything with at least two axes, reshaped to a matrix as the starting point does it.

    (a, b, c) -> (a, b*c); with more axes, tail = shape[2:] and k = ceil(len(tail) / 2):
    (shape[0] * prod(tail[k:]), shape[1] * prod(tail[:k])). It is a C-order reshape: its rows mix axes.
    """

    def plan(self, shape: Shape, name: str) -> Plan:
        if len(shape) < 2:
            return Plan(shape)
        if len(shape) == 2:
            return Plan(shape, (0,), (1,))
        tail = shape[2:]
        half = math.ceil(len(tail) / 2)
        view = (shape[0] * math.prod(tail[half:]), shape[1] * math.prod(tail[:half]))
        return Plan(shape, (0,), (1,), view=view)

    def __repr__(self) -> str:
        return "as_matrix"


last_two: Rule = _LastTwo()
no_factoring: Rule = _NoFactoring()
as_matrix: Rule = _AsMatrix()


@dataclass(frozen=True)
class largest_two(Rule):
    """The two largest axes, where the second largest has at least `min_dim` elements.

    Args:
        min_dim: inclusive; 128 in optax, 32 in big_vision.
        ties: which of equally long axes are taken, "last" (optax, flax, T5X) or "first" (Mesh-TensorFlow, praxis).
    """

    min_dim: int
    ties: str = "last"

    def __post_init__(self) -> None:
        keep(
            self,
            min_dim=check_whole("min_dim", self.min_dim, at_least=0),
            ties=check_choice("ties", self.ties, ("last", "first")),
        )

    def size_in(self, shape: Shape) -> Callable[[int], tuple[int, int]]:
        """What the axes of `shape` are sorted by, the largest last."""
        sign = 1 if self.ties == "last" else -1
        return lambda axis: (shape[axis], sign * axis)

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter."""
        if len(shape) < 2:
            return Plan(shape)
        second, largest = sorted(range(len(shape)), key=self.size_in(shape))[-2:]
        return Plan(shape, *_pair(second, largest)) if shape[second] >= self.min_dim else Plan(shape)


@dataclass(frozen=True)
class leading_or_last_two(Rule):
    """Axes 0 and 1 of more than two axes if both have at least `min_dim` elements, else the last two if both do."""

    min_dim: int

    def __post_init__(self) -> None:
        keep(self, min_dim=check_whole("min_dim", self.min_dim, at_least=0))

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter."""
        rank = len(shape)
        for pair in ([(0, 1)] if rank > 2 else []) + ([(rank - 2, rank - 1)] if rank >= 2 else []):
            if min(shape[axis] for axis in pair) >= self.min_dim:
                return Plan(shape, *_pair(*pair))
        return Plan(shape)


@dataclass(frozen=True)
class explicit(Rule):
    """Named axes: several may be rows, columns or batch; axes may be counted from the end.

    Args:
        rows, cols: axis numbers; both empty: not factored.
        batch: axes along which the parameter is a stack of separate ones (scanned layers, experts).
    """

    rows: Shape
    cols: Shape
    batch: Shape

    def __init__(self, rows: int | Sequence[int], cols: int | Sequence[int], batch: int | Sequence[int] = ()) -> None:
        keep(self, rows=_axes("rows", rows), cols=_axes("cols", cols), batch=_axes("batch", batch))
        if bool(self.rows) != bool(self.cols):
            raise refusal("rows and cols", "both given or both empty", (self.rows, self.cols))

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter; an axis that it does not have is refused with the parameter's name."""
        who = f"of the rule for {_who(shape, name)}"
        rank = len(shape)
        used: list[int] = []
        for axis in (*self.rows, *self.cols, *self.batch):
            if not -rank <= axis < rank:
                raise refusal(f"axis {who}", f"in [{-rank}, {rank})", axis, "Give it a rule of its own with by_name.")
            used.append(axis % rank)
        if len(set(used)) != len(used):
            raise refusal(f"axes {who}", "different from each other", (self.rows, self.cols, self.batch))
        rows, cols, batch = (tuple(sorted(a % rank for a in axes)) for axes in (self.rows, self.cols, self.batch))
        return Plan(shape, rows, cols, batch)


@dataclass(frozen=True)
class limited(Rule):
    """`rule` for the shapes that an original can handle; others are refused with the way out.

    Args:
        rule: what to do with the shapes that are left.
        axes: (fewest, most) axes that a parameter may have; None is any number.
        rows_last: of a `largest_two`, the second largest axis must be the last one without the largest (praxis:
            elsewhere the original divides by a mean over another axis).
    """

    rule: Rule
    axes: tuple[int, int] | None = None
    rows_last: bool = False

    def __post_init__(self) -> None:
        check_rule("rule", self.rule)
        keep(self, rows_last=check_flag("rows_last", self.rows_last))
        if self.rows_last and not isinstance(self.rule, largest_two):
            raise refusal("rule", "largest_two(...) with rows_last=True", self.rule)
        if self.axes is not None:
            if not isinstance(self.axes, list | tuple) or len(self.axes) != 2:
                raise refusal("axes", "a pair (fewest, most)", self.axes)
            fewest = check_whole("axes[0]", self.axes[0], at_least=0)
            keep(self, axes=(fewest, check_whole("axes[1]", self.axes[1], at_least=fewest)))

    @property
    def needs_names(self) -> bool:
        """Whether the rule looks at the parameter's name."""
        return self.rule.needs_names

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter."""
        if self.axes is not None and not self.axes[0] <= len(shape) <= self.axes[1]:
            fewest, most = self.axes
            must = f"with {most} axes" if fewest == most else f"with {fewest} to {most} axes"
            remedy = "Give it a rule of its own by name, before this one: factor_map in recipes.t5x, factoring.by_name."
            raise refusal(f"the {_who(shape, name)}", must, shape, remedy)
        decided = self.rule.plan(shape, name)
        if isinstance(self.rule, largest_two) and self.rows_last and decided.factored:
            second, largest = sorted((*decided.rows, *decided.cols), key=self.rule.size_in(shape))
            if second != max(axis for axis in range(len(shape)) if axis != largest):
                must = "one whose second largest axis is the last without the largest"
                remedy = f"The original divides by a mean over another axis there; {self.rule!r} alone does not."
                raise refusal(f"the {_who(shape, name)}", must, shape, remedy)
        return decided


@dataclass(frozen=True)
class by_name(Rule):
    """A rule for each pattern: the first regular expression found in the parameter's name decides.

    Args:
        rules: {pattern: rule}. A name is that of torch's `named_parameters()` ("encoder.0.weight") or the path in a
            JAX tree ("encoder/0/kernel").
        default: the rule for a name that no pattern is found in; None refuses such a name.
    """

    rules: Pairs
    default: Rule | None = last_two

    def __init__(self, rules: Mapping[str, Rule], default: Rule | None = last_two) -> None:
        keep(self, rules=check_patterns("rules", rules), default=default)
        for pattern, rule in self.rules:
            check_rule(f"rules[{shown(pattern)}]", rule)
        if default is not None:
            check_rule("default", default)

    def __repr__(self) -> str:
        return f"by_name({dict(self.rules)!r}, default={self.default!r})"

    @property
    def needs_names(self) -> bool:
        """Whether the name decides, here or in one of the rules."""
        rules = [rule for _, rule in self.rules] + ([] if self.default is None else [self.default])
        return need_names(self.rules) or any(rule.needs_names for rule in rules)

    def plan(self, shape: Shape, name: str) -> Plan:
        """The plan for one parameter."""
        rule: Rule = found(self.rules, self.default, name, "by_name")
        return rule.plan(shape, name)


def check_rule(argument: str, rule: object) -> None:
    """Refuse what is not a rule."""
    if isinstance(rule, type):
        raise refusal(argument, "a factoring rule", rule, f"Call it: {rule.__name__}(...).")
    if not isinstance(rule, Rule):
        raise refusal(argument, "a factoring rule", rule, "Use factoring.last_two, factoring.largest_two(128), ...")


def _axes(field: str, given: object) -> Shape:
    is_one = not isinstance(given, Iterable) or isinstance(given, str | bytes) or getattr(given, "shape", None) == ()
    try:
        axes = (given,) if is_one else tuple(given)  # type: ignore[arg-type]
    except Exception as error:  # whatever somebody else's class raises
        raise refusal(field, "axis numbers", given) from error
    if any(plain_number(axis) is None for axis in axes):
        raise refusal(field, "axis numbers", given)
    return tuple(check_whole(field, axis) for axis in axes)


def _who(shape: Shape, name: str) -> str:
    return f"parameter {name!r} with shape {shape}" if name else f"parameter with shape {shape}"


def _pair(first: int, second: int) -> tuple[Shape, Shape]:
    # Which of the two is called the row changes nothing that is computed: the smaller axis number is.
    return (min(first, second),), (max(first, second),)
