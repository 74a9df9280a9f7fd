"""The oracle's float32 is float32: the dtype of everything that one step computes, whatever its recipe is made of.

Its distance from float64 is the yardstick of every tolerance, and one float64 scalar would widen all that it meets.
"""

import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from adafactor_spec import Recipe, factoring, oracle, per_name, recipes, replace, schedules

Types = dict[str, set[str]]  # what was called: the dtypes of its floating results

SHAPES = {"scalar": (), "vector": (5,), "matrix": (4, 6), "stack": (2, 3, 4), "empty": (0, 3)}


class Watched(np.ndarray):
    """An array that notes the dtype of whatever is computed from it, and whose results are such arrays, too."""

    seen: ClassVar[Types] = {}

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return (
            tuple(noted(ufunc.__name__, x) for x in result)
            if isinstance(result, tuple)
            else noted(ufunc.__name__, result)
        )

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        return noted(function.__name__, super().__array_function__(function, kinds, args, options))


def noted(what: str, value: Any) -> Any:
    """`value`, watched from now on if it is an array or a NumPy number."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if np.issubdtype(value.dtype, np.inexact):
        Watched.seen.setdefault(what, set()).add(value.dtype.name)
    return np.asarray(value).view(Watched)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Watched) else value


def watching(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose result is watched."""
    return lambda *args, **kwargs: noted(what, function(*args, **kwargs))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Types:
    """Makes every array inside the oracle a watched one. How a value is rounded to a dtype is exact in any arithmetic:
    only its result is looked at."""
    numpy: Any = types.SimpleNamespace(**vars(np))
    numpy.asarray, numpy.zeros = watching("asarray", np.asarray), watching("zeros", np.zeros)
    monkeypatch.setattr(oracle, "np", numpy)
    for name in ("round_to", "round_stochastically"):
        monkeypatch.setattr(oracle, name, watching(name, getattr(oracle, name)))
    monkeypatch.setattr(Watched, "seen", {})
    return Watched.seen


def steps(recipe: Recipe, compute: Any, dtype: str, rounding: str = "nearest") -> None:
    """Two steps on each shape; what they return is looked at, too."""
    for name, shape in SHAPES.items():
        p, g = np.full(shape, 0.5), np.full(shape, 0.25)
        state = oracle.init(recipe, p, name=name, dtype=dtype, compute=compute, rounding=rounding)
        for _ in range(2):
            options: dict[str, Any] = {"name": name, "dtype": dtype, "compute": compute, "rounding": rounding}
            p, state = oracle.step(recipe, p, g, state, **options)
        for value in (p, *vars(state).values()):
            noted("result", value)


def assert_all(seen: Types, compute: Any) -> None:
    assert {"multiply", "add", "sqrt", "result"} <= seen.keys()
    assert {what: found for what, found in seen.items() if found != {np.dtype(compute).name}} == {}


RULE = factoring.by_name({"stack": factoring.explicit(1, 2, 0)}, default=factoring.last_two)
# Everything that a step can have in it is in this one, and each case below changes one field of it.
FULL = Recipe(
    lr=0.1,
    relative_step=False,
    max_parameter_scale=2.0,
    factoring=RULE,
    amsgrad=True,
    beta1=0.9,
    momentum_of="grad",
    debias=True,
    weight_decay=0.1,
)
SCHEDULES = ("lr", "beta2", "beta1", "weight_decay")
NUMBERS = ("eps2", "max_parameter_scale", "eps1", "clipping_threshold", *SCHEDULES)
CHOICES: dict[str, list[Any]] = {
    "relative_step": [True],
    "multiply_by_parameter_scale": [False, per_name({"matrix": False}, default=True)],
    "beta2": [schedules.power_decay(), schedules.adam_decay(0.9)],
    "factoring": [factoring.no_factoring, factoring.as_matrix],
    "eps1": [None],
    "eps1_mode": ["floor"],
    "amsgrad": [False],
    "clipping_threshold": [None, np.inf],
    "beta1": [None, schedules.adam_decay(0.9)],
    "momentum_of": ["update", "step"],
    "debias": [False],
    "momentum_dtype": ["bfloat16", "float64"],
    "weight_decay_by": ["lr", "one", "grad", 2.0, np.float64(1.5)],
    "state_dtype": ["param"],
}
# Numbers as a schedule may give them. A Python number takes the dtype of what it meets, but not in NumPy's functions.
KINDS: dict[str, Callable[[float], Any]] = {
    "Python": float,
    "float64": np.float64,
    "longdouble": np.longdouble,
    "float32": np.float32,
}


def cases() -> Iterator[Any]:
    for name in recipes.NAMES:
        named = recipes.shown(name)
        yield pytest.param(replace(named, factoring=RULE, lr=0.1 if named.lr is None else named.lr), id=name)
    for field, values in CHOICES.items():
        for value in values:
            yield pytest.param(replace(FULL, **{field: value}), id=f"{field}={value!r}")
    for kind, number in KINDS.items():
        fixed = {field: number(getattr(FULL, field)) for field in NUMBERS if field != "beta2"}
        yield pytest.param(replace(FULL, **fixed, beta2=number(0.9)), id=f"numbers {kind}")
        for momentum_of in ("grad", "update", "step"):
            of_t: dict[str, Any] = {field: lambda t, number=number: number(0.1) for field in SCHEDULES}
            yield pytest.param(replace(FULL, **of_t, momentum_of=momentum_of), id=f"functions {kind} {momentum_of}")
    before: dict[str, Any] = {"decay_before_scale": True, "weight_decay_by": "one"}
    yield pytest.param(replace(FULL, **before, weight_decay=lambda t: np.float64(0.1)), id="decay_before_scale")
    narrow: dict[str, Any] = {"momentum_dtype": "bfloat16", "beta1": lambda t: np.float64(0.9)}
    for momentum_rounding in ("store", "use", "decay"):
        yield pytest.param(replace(FULL, **narrow, momentum_rounding=momentum_rounding), id=momentum_rounding)


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize("recipe", list(cases()))
def test_everything_has_the_computing_dtype(recipe: Recipe, compute: Any, seen: Types) -> None:
    steps(recipe, compute, np.dtype(compute).name)
    assert_all(seen, compute)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compute", [np.float32, np.float64])
def test_whatever_is_stored(compute: Any, dtype: str, rounding: str, seen: Types) -> None:
    steps(replace(FULL, state_dtype="param"), compute, dtype, rounding)
    assert_all(seen, compute)


@pytest.mark.parametrize("compute", [np.float32, np.float64])
def test_a_state_of_another_dtype_is_converted(compute: Any, seen: Types) -> None:
    """A framework's state is float32, and a test may hand it to the definition in float64, or the other way round."""
    other, p = np.float64 if compute == np.float32 else np.float32, np.full((4, 6), 0.5)
    options: dict[str, Any] = {"dtype": "bfloat16", "rounding": "kahan"}
    state = oracle.init(FULL, p, compute=other, **options)
    seen.clear()
    p, state = oracle.step(FULL, p, p, state, compute=compute, **options)
    for value in (p, *vars(state).values()):
        noted("result", value)
    assert_all(seen, compute)


def test_the_check_sees_a_wider_number(seen: Types, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: the numbers of a step as the schedules give them."""
    monkeypatch.setattr(oracle, "numbers", lambda recipe, t, compute: recipe.at(compute(t)))
    steps(Recipe(beta1=0.9, debias=True), np.float32, "float32")
    assert "float64" in seen["divide"]
