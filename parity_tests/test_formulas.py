"""Schedules as formulas and values as code: what they say is calculated, not read."""

import inspect
import re
from typing import Any

import numpy as np
import pytest

from adafactor_spec import dtypes, factoring, literal, per_name, recipes, schedules
from adafactor_spec._formulas import formula
from parity_tests.random_recipes import BETAS, DECAYS, LRS, RULES


def f_of_t(t: Any) -> Any:
    return 0.3 / t


def calculated(text: str, **known: Any) -> Any:
    """The value of a formula as a description writes it."""
    text = re.sub(r"how many of ([\d, ]+) <= (t( - \d+)?)", r"sum(boundary <= \2 for boundary in [\1])", text)
    text = text.replace("^-1/2", "**-0.5").replace("^", "**")
    text = re.sub(r"mean\((\w+) over (\w+)\)", r"mean_over_\2(\1)", text)
    functions = {
        "mean_over_columns": lambda x: np.mean(x, axis=-1, keepdims=True),
        "mean_over_rows": lambda x: np.mean(x, axis=0, keepdims=True),
        "min": lambda *args: np.min(np.broadcast_arrays(*args), axis=0),
        "max": lambda *args: np.max(np.broadcast_arrays(*args), axis=0),
        "clip": np.clip,
        "cos": np.cos,
        "pi": np.pi,
        "sqrt": np.sqrt,
        "mean": np.mean,
        "RMS": lambda x: np.sqrt(np.mean(np.square(x))),
        "eps": dtypes.epsilon,
        "dtype": "float64",
        "sum": sum,
    }
    return eval(text, {"__builtins__": {}, **functions, **known})


# --- Formulas --------------------------------------------------------------------------------------------------------

KINDS: list[Any] = [
    0.999,
    3,
    schedules.constant(0.25),
    f_of_t,
    schedules.function(f_of_t),
    schedules.zero_based(schedules.linear_warmup(0.1, 10)),
    schedules.zero_based(schedules.zero_based(schedules.power_decay(0.7, offset=3))),
    schedules.zero_based(schedules.piecewise_constant(0.1, (3, 7), 0.5)),
    schedules.zero_based(schedules.inverse_sqrt()),
    schedules.zero_based(schedules.inverse_sqrt(10)),
    schedules.zero_based(schedules.linear_cooldown(0.1, 10, 30)),
    schedules.power_decay(),
    schedules.power_decay(0.5, cap=0.9),
    schedules.power_decay(offset=5),
    schedules.power_decay(offset=-5, cap=0.99),
    schedules.adam_decay(0.9),
    schedules.adam_decay(0),
    schedules.inverse_sqrt(),
    schedules.inverse_sqrt(7),
    schedules.relative_step(schedules.linear_warmup(1.0, 100)),
    schedules.relative_step(schedules.power_decay()),
    schedules.linear_warmup(schedules.power_decay(), 10),
    schedules.linear_cooldown(schedules.inverse_sqrt(), 10, 30),
    schedules.cosine_decay(0.1, 5, 30),
    schedules.product(schedules.cosine_decay(0.1, 0, 30), schedules.power_decay()),
    schedules.piecewise_constant(schedules.power_decay(), (3, 7), 0.5),
    schedules.at_least(schedules.piecewise_constant(schedules.inverse_sqrt(), (3, 7), 0.5), 0.2),
    schedules.product(schedules.power_decay(), schedules.product(2.0, schedules.adam_decay(0.9))),
    schedules.power(schedules.inverse_sqrt(), 2.0),
    schedules.power(schedules.power_decay(), 0.5),
    schedules.power(schedules.relative_step(), 1.5),
    schedules.power(schedules.product(0.5, schedules.inverse_sqrt()), 3),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=literal)
def test_a_formula_gives_the_schedules_numbers(kind: Any) -> None:
    text = formula(kind)
    for t in range(1, 41):
        expected = schedules.as_schedule(kind)(t)
        assert calculated(text, t=t, f_of_t=f_of_t) == pytest.approx(expected, rel=1e-10, abs=1e-12), (text, t)


def test_every_kind_of_schedule_has_a_formula() -> None:
    own = {kind for kind in vars(schedules).values() if inspect.isclass(kind) and issubclass(kind, schedules.Schedule)}
    assert {type(kind) for kind in KINDS} >= own - {schedules.Schedule}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (schedules.power_decay(0.8, cap=0.999), "min(0.999, 1 - t^-0.8)"),
        (schedules.relative_step(schedules.linear_warmup(1.0, 1_000_000)), "min(1, t / 1000000, t^-1/2)"),
        (lambda t: 1.0 / t, "f(t)"),
        (schedules.zero_based(f_of_t), "f_of_t(t - 1)"),
        (np.float64(0.1), "0.1"),
        (1e-30, "1e-30"),
        (schedules.piecewise_constant(0.1, (10, 20), 0.5), "0.1 * 0.5^(how many of 10, 20 <= t)"),
    ],
)
def test_formulas_are_short(kind: Any, text: str) -> None:
    assert formula(kind) == text


EVERY_VALUE = [value for name in recipes.NAMES for value in vars(recipes.shown(name)).values()]


def test_a_literal_builds_the_value_again() -> None:
    names = {name: getattr(module, name) for module in (schedules, factoring) for name in vars(module)}
    values = [*EVERY_VALUE, *LRS, *DECAYS, *BETAS, *RULES, *KINDS, per_name({"a": schedules.power_decay()}, 0.1)]
    for value in values:
        text = literal(value)
        if "<function" in text:
            assert "0x" not in text
        else:
            assert eval(text, names | {"per_name": per_name}) == value, text
    assert literal(schedules.power_decay(cap=0.9)) == "power_decay(cap=0.9)"
    assert literal(factoring.explicit(0, 1)) == "explicit((0,), (1,))"
