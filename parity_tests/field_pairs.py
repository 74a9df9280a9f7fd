"""Every pair of values of two fields or options, in few configurations, and how near two ways to step them must be.

A goal is a pair of values, or such a pair with what gives both of them an effect: `debias=True` has none without a
`beta1`, and must then be left alone by every way to compute a step. `rows()` packs all goals into few configurations;
`goals()` are the thousands of them one by one.
"""

import functools
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adafactor_spec import Recipe, factoring, per_name, schedules
from adafactor_spec.factoring import explicit
from adafactor_torch import Adafactor

from .torch_runs import FLOAT64, GAPS, Shape, values

Goal = dict[str, int]  # fields, and the places of their values among all values of each

# A stack of two, columns in groups of 32 and beside them, matrices too small for a loop of their own, what is not
# factored, and a stack without elements.
SHAPES: dict[str, Shape] = {
    "a": (6, 40),
    "b": (6, 40),
    "kernels": (18, 2, 3),
    "vector": (5,),
    "scalar": (),
    "empty": (0, 3),
    "empty too": (0, 3),
}
SIZES = {"a": 1.0, "b": 0.1, "kernels": 0.3, "vector": 1.0, "scalar": 0.5, "empty": 1.0, "empty too": 1.0}
GROUPS = 60  # of one optimizer
GRADIENTS = (1.0, 30.0, 0.01)  # their sizes step by step: what is averaged, clipped and the largest so far all matter


def _lr_of_t(t: Any) -> Any:
    return 0.3 / t


AS_MATRIX = factoring.as_matrix
# The first value of each is the default of these tests.
FIELDS: dict[str, list[Any]] = {
    "lr": [0.1, _lr_of_t],
    "relative_step": [True, False],
    "multiply_by_parameter_scale": [True, False, per_name({"b": False}, default=True)],
    "eps2": [1e-3, 0.4],
    "max_parameter_scale": [None, 0.5],
    "beta2": [schedules.power_decay(), schedules.adam_decay(0.99), 0.9],
    "factoring": [
        factoring.last_two,
        factoring.no_factoring,
        AS_MATRIX,
        factoring.by_name({"kernels": explicit(1, 2, 0), "^a$": explicit((), (), 0)}),
    ],
    "eps1": [1e-30, 0.3, None],
    "eps1_mode": ["add", "floor"],
    "amsgrad": [False, True],
    "clipping_threshold": [1.0, 0.3, None, float("inf")],
    "beta1": [None, 0.9, schedules.adam_decay(0.8)],
    "momentum_of": ["update", "grad", "step"],
    "debias": [False, True],
    "momentum_dtype": [None, "bfloat16", "float32"],
    "momentum_rounding": ["store", "use", "decay"],
    "weight_decay": [0.0, 0.1, per_name({"b": 0.0}, default=0.2)],
    "weight_decay_by": ["step", "lr", "one", "grad", 2],
    "decay_before_scale": [False, True],
    "state_dtype": [None, "param"],
}
OPTIONS: dict[str, list[Any]] = {
    "rounding": ["nearest", "stochastic", "kahan"],
    "maximize": [False, True],
    "telemetry": [False, True],
    "nonfinite": ["propagate", "skip"],
    "grad_scale": [None, 8.0],
}
ALL = FIELDS | OPTIONS
# What else has to be set for a field to have an effect.
NEEDS: dict[str, Goal] = {
    "momentum_of": {"beta1": 1},
    "debias": {"beta1": 1},
    "momentum_dtype": {"beta1": 1},
    "momentum_rounding": {"beta1": 1, "momentum_dtype": 1},
    "weight_decay_by": {"weight_decay": 1},
    "decay_before_scale": {"weight_decay": 1, "weight_decay_by": 1},
}


class Cases(NamedTuple):
    """Which configurations to step: all goals packed, or each one alone; every so many of those; parameters by name."""

    one_by_one: bool = False
    every: int = 1
    names: tuple[str, ...] = tuple(SHAPES)


def chosen(goal: Goal) -> dict[str, Any]:
    """The values of a configuration, those that it leaves open at their first."""
    return {name: given[goal.get(name, 0)] for name, given in ALL.items()}


def recipe_of(goal: Goal) -> Recipe | None:
    """The recipe of a configuration, None where its values contradict each other."""
    try:
        return Recipe(**{name: value for name, value in chosen(goal).items() if name in FIELDS})
    except ValueError:
        return None


@functools.cache
def goals() -> list[Goal]:
    """All pairs of values of two fields or options, each also with what they need to have an effect."""
    found: list[Goal] = []
    for one, other in itertools.combinations(ALL, 2):
        for i, j in itertools.product(range(len(ALL[one])), range(len(ALL[other]))):
            pair = {one: i, other: j}
            for goal in (pair, NEEDS.get(one, {}) | NEEDS.get(other, {}) | pair):
                if goal not in found[-2:] and recipe_of(goal) is not None:
                    found.append(goal)
    return found


@functools.cache
def rows() -> list[Goal]:
    """Configurations in which every goal is met, the same ones at every call."""
    left, found = sorted(goals(), key=len, reverse=True), []
    while left:
        row: Goal = {}
        for goal in left:
            if all(row.get(name, place) == place for name, place in goal.items()):
                if recipe_of(row | goal) is not None:
                    row |= goal
                if len(row) == len(ALL):
                    break
        left = [goal for goal in left if any(row.get(name) != place for name, place in goal.items())]
        found.append(row)
    return found


def start(dtype: torch.dtype, names: tuple[str, ...]) -> list[Tensor]:
    """The parameters before the first step."""
    return [torch.tensor(SIZES[name] * values(SHAPES[name], i)).to(dtype) for i, name in enumerate(names)]


@functools.cache
def gradients(dtype: torch.dtype, names: tuple[str, ...], t: int) -> list[Tensor]:
    """The gradients of step t."""
    size = GRADIENTS[t - 1]
    return [torch.tensor(size * values(SHAPES[name], 100 * t + i)).to(dtype) for i, name in enumerate(names)]


@functools.cache
def batches(cases: Cases) -> list[list[Goal]]:
    """The configurations in batches that one optimizer can have as its groups."""
    found, all_of_them = [], goals() if cases.one_by_one else rows()
    for scale in range(len(OPTIONS["grad_scale"])):
        alike = [goal for goal in all_of_them[:: cases.every] if goal.get("grad_scale", 0) == scale]
        found += [alike[first : first + GROUPS] for first in range(0, len(alike), GROUPS)]
    return found


def stepped(
    cases: Cases, batch: list[Goal], dtype: torch.dtype, laid: Any = lambda goal, i, x: x, **path: Any
) -> Adafactor:
    """An optimizer, with a group for each configuration, after a step for each of GRADIENTS.

    `laid` gives the i-th parameter, or its gradient, as it is stepped in a configuration.
    """
    groups, scale = [], chosen(batch[0])["grad_scale"]
    for goal in batch:
        params = [torch.nn.Parameter(laid(goal, i, x)) for i, x in enumerate(start(dtype, cases.names))]
        groups.append({**chosen(goal), "params": list(zip(cases.names, params, strict=True))})
        del groups[-1]["grad_scale"]
    optimizer = Adafactor(groups, seed=7, **path)
    if scale is not None:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)  # type: ignore[attr-defined]
    for t in range(1, len(GRADIENTS) + 1):
        for goal, group in zip(batch, optimizer.param_groups, strict=True):
            for i, (p, g) in enumerate(zip(group["params"], gradients(dtype, cases.names, t), strict=True)):
                p.grad = laid(goal, i, g * (scale or 1.0))
        optimizer.step()
    return optimizer


@functools.cache
def _reference(cases: Cases, number: int, dtype: torch.dtype) -> list[list[Tensor]]:
    optimizer = stepped(cases, batches(cases)[number], dtype, foreach=False, fused=False)
    return [[p.detach() for p in group["params"]] for group in optimizer.param_groups]


def difference(x: Tensor, y: Tensor, before: Tensor, goal: Goal, dtype: torch.dtype) -> str:
    """What is wrong with x, where the reference has y; empty where nothing is.

    Two orders of the same arithmetic differ by last bits of what a step computes. Where that is rounded to 16 bits, the
    last bits decide now and then which neighbour is taken: in one element of a tensor as small as these, off by
    a spacing (2^-7 of itself, at most) of the parameter, or of the distance travelled where it is the first moment.
    """
    if not x.numel():
        return ""
    x, y, before = x.detach().double(), y.double(), before.double()
    size, distance = float(y.abs().max()), float((y - before).abs().max())
    near = FLOAT64 * size if dtype is torch.float64 else 2 * len(GRADIENTS) * GAPS * 2.0**-24 * size
    deviation = (x - y).abs()
    far = int(torch.sum(~(deviation <= near)))
    narrow = 2.0**-7 * size if dtype is torch.bfloat16 else 0.0
    if chosen(goal)["momentum_dtype"] == "bfloat16" or (narrow and chosen(goal)["beta1"] is not None):
        narrow += 2.0**-7 * distance
    if far <= (1 if narrow else 0) and bool(torch.all(deviation <= near + len(GRADIENTS) * narrow)):
        return ""
    return f"{far} elements are further than {near} away, the worst one {float(deviation.max())}"


def wrong(cases: Cases, dtype: torch.dtype, *, laid: Any = None, part: Any = lambda x, p: x, **path: Any) -> list[str]:
    """The parameters, in all of these configurations, that another way leaves elsewhere than the reference.

    `part(x, p)` is what this process holds of x, which lies as the parameter p does.
    """
    found = []
    for number, batch in enumerate(batches(cases)):
        optimizer = stepped(cases, batch, dtype, **({} if laid is None else {"laid": laid}), **path)
        expected = _reference(cases, number, dtype)
        for goal, group, theirs in zip(batch, optimizer.param_groups, expected, strict=True):
            begun = start(dtype, cases.names)
            for who, p, q, before in zip(cases.names, group["params"], theirs, begun, strict=True):
                what = difference(part(p, p), part(q, p), part(before, p), goal, dtype)
                if what:
                    found.append(f"{who}: {what}, with { {name: chosen(goal)[name] for name in goal} }")
    return found
