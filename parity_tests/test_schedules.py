"""Schedules: their values, their complements, that they are data, and that they run under a JAX trace."""

import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adafactor_spec import from_plain, recipes, schedules, to_plain
from adafactor_spec.schedules import (
    adam_decay,
    at_least,
    bias_correction,
    constant,
    cosine_decay,
    inverse_sqrt,
    linear_cooldown,
    linear_warmup,
    piecewise_constant,
    power,
    power_decay,
    product,
    relative_step,
    zero_based,
)

ALL = [
    constant(0.3),
    power_decay(),
    power_decay(0.5, cap=0.99, offset=-10),
    power_decay(0.8, offset=5),
    adam_decay(0.999),
    adam_decay(0.0),
    inverse_sqrt(),
    relative_step(),
    relative_step(linear_warmup(1.0, steps=1_000_000)),
    linear_warmup(relative_step(1e-2), steps=10),
    piecewise_constant(1e-2, (3, 10), 0.5),
    piecewise_constant(inverse_sqrt(), (9, 4, 4), 0.5),
    piecewise_constant(1e-2, (), 0.5),
    piecewise_constant(piecewise_constant(inverse_sqrt(), [4], 0.1), [2, 5], 3.0),
    at_least(piecewise_constant(inverse_sqrt(), (3, 10), 0.5), 1e-2),
    product(2.0, inverse_sqrt()),
    zero_based(inverse_sqrt(5)),
    cosine_decay(0.1, 3, 11),
    linear_cooldown(cosine_decay(0.1, 0, 11), 4, 12),
    power(linear_warmup(1.0, steps=10), 1.5),
]
STEPS = [1, 2, 3, 4, 5, 6, 9, 10, 11, 100, 20_000]


@pytest.mark.parametrize(
    ("schedule", "t", "value"),
    [
        (power_decay(), 1, 0.0),
        (power_decay(), 32, 1 - 1 / 16),
        (power_decay(0.5, cap=0.5), 100, 0.5),
        (power_decay(1.0, offset=-10), 10, 1 - 1 / 20),
        (power_decay(1.0, offset=5), 6, 0.0),  # up to the offset a fresh run starts over at every step
        (power_decay(1.0, offset=5), 3, 0.0),
        (power_decay(1.0, offset=5), 9, 1 - 1 / 4),
        (adam_decay(0.5), 1, 0.0),
        (adam_decay(0.5), 2, 0.5 * 0.5 / 0.75),
        (adam_decay(0.5), 3, 0.5 * 0.75 / 0.875),
        (inverse_sqrt(), 16, 0.25),
        (inverse_sqrt(9), 4, 1 / 3),
        (inverse_sqrt(9), 16, 0.25),
        (zero_based(inverse_sqrt(9)), 10, 1 / 3),
        (cosine_decay(2.0, 4, 10), 4, 2.0),
        (cosine_decay(2.0, 4, 10), 6, 1.5),  # a third of the way: cos(pi / 3) = 1/2
        (cosine_decay(2.0, 4, 10), 7, 1.0),
        (cosine_decay(2.0, 4, 10), 11, 0.0),
        (linear_cooldown(2.0, 4, 10), 6, 2.0),
        (linear_cooldown(2.0, 4, 10), 9, 0.5),
        (linear_cooldown(2.0, 4, 10), 11, 0.0),
        (power(linear_warmup(1.0, steps=4), 2.0), 2, 0.25),
        (power(9.0, 0.5), 7, 3.0),
        (relative_step(), 1, 1e-2),
        (relative_step(), 1_000_000, 1e-3),
        (linear_warmup(2.0, steps=4), 1, 0.5),
        (linear_warmup(2.0, steps=4), 9, 2.0),
        (piecewise_constant(8.0, (3, 5), 0.5), 2, 8.0),
        (piecewise_constant(8.0, (3, 5), 0.5), 3, 4.0),  # the factor applies from the boundary on
        (piecewise_constant(8.0, (3, 5), 0.5), 4, 4.0),
        (piecewise_constant(8.0, (3, 5), 0.5), 5, 2.0),
        # In any order, and what stands twice counts twice: 4, 4 and 9 passed are none, two and three factors of 1/2.
        (piecewise_constant(8.0, (9, 4, 4), 0.5), 3, 8.0),
        (piecewise_constant(8.0, (9, 4, 4), 0.5), 4, 2.0),
        (piecewise_constant(8.0, (9, 4, 4), 0.5), 9, 1.0),
        (piecewise_constant(8.0, (3,), 0.0), 2, 8.0),
        (piecewise_constant(8.0, (3,), 0.0), 3, 0.0),
        (piecewise_constant(8.0, (), 0.5), 7, 8.0),
        (piecewise_constant(inverse_sqrt(), (4,), 0.1), 16, 0.025),
        (piecewise_constant(lambda t: 10.0 * t, (2,), 0.5), 3, 15.0),
        (at_least(inverse_sqrt(), 0.5), 100, 0.5),
        (zero_based(lambda count: 10.0 + count), 1, 10.0),
        (product(3.0, lambda t: t + 1), 4, 15.0),
    ],
)
def test_values_by_hand(schedule: Any, t: int, value: float) -> None:
    assert schedule(t) == pytest.approx(value, rel=1e-15, abs=1e-16)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_the_same_on_the_host_and_in_a_trace(schedule: Any) -> None:
    with jax.enable_x64(True):
        # Power and expm1 are not rounded the same everywhere: a few ulp, and 1 - complement is known to an ulp of 1.
        for of_t in (schedule, schedule.complement, lambda t: bias_correction(schedule, t)):
            traced = jax.jit(lambda t, of_t=of_t: jnp.asarray(of_t(t)))
            for t in STEPS:
                assert float(traced(jnp.float64(t))) == pytest.approx(float(of_t(t)), rel=1e-14, abs=2.0**-52)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_are_data(schedule: Any) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and hash(again) == hash(schedule)
    assert eval(repr(schedule), vars(schedules)) == schedule
    assert from_plain(to_plain(schedule)) == schedule
    assert schedule != constant(17.0)


def test_a_plain_function_is_kept_by_whoever_has_it() -> None:
    inner = piecewise_constant(math.sqrt, (3,), 0.5)
    assert from_plain(to_plain(inner), inner) == inner


def test_complements_do_not_lose_the_small_difference() -> None:
    """1 - beta_t at t = 20,000 in float32: directly it is exact to rounding, as a difference it is wrong by 1e-4."""
    late = range(20_000, 20_100)
    for t in late:
        assert float(power_decay().complement(np.float32(t))) == pytest.approx(t**-0.8, rel=4 * 2.0**-24)
    assert max(abs(float(np.float32(1) - power_decay()(np.float32(t))) / t**-0.8 - 1) for t in late) > 5e-5
    small = np.float32(3)
    exact = 0.001 / (1 - 0.999**3)
    assert float(adam_decay(0.999).complement(small)) == pytest.approx(exact, rel=4 * 2.0**-24)


def test_bias_correction() -> None:
    for t in STEPS:
        assert bias_correction(0.9, t) == pytest.approx(1 - 0.9**t, rel=1e-13)
    assert bias_correction(adam_decay(0.9), 1) == 1.0  # beta_1 = 0


def test_bad_schedules_are_refused() -> None:
    for make, message in [
        (lambda: power_decay(-0.8), r"exponent must be at least 0, got -0.8. .*opposite sign: use 0.8"),
        (lambda: power_decay(cap=1.5), r"cap must be in \[0, 1\], got 1.5"),
        (lambda: adam_decay(1.0), r"b must be in \[0, 1\), got 1.0"),
        (lambda: piecewise_constant(0.1, (0,), 0.5), r"boundaries must be at least 1, got 0. t = 1 is the first"),
        (lambda: piecewise_constant(0.1, 5, 0.5), r"boundaries must be a sequence of steps, got 5. Write \(5,\)"),  # type: ignore[arg-type]
        (lambda: piecewise_constant(0.1, iter((3, 5)), 0.5), r"boundaries must be a sequence of steps, got <tuple_it"),  # type: ignore[arg-type]
        (lambda: piecewise_constant(0.1, (3,), -1.0), r"factor must be at least 0, got -1.0"),
        (lambda: piecewise_constant(float("nan"), (3,), 0.5), r"base must be at least 0, got nan"),
        (lambda: linear_warmup(0.1, steps=0), r"steps must be positive, got 0"),
        (lambda: relative_step("fast"), r"base must be a number, a schedule or a function of t, got 'fast'"),  # type: ignore[arg-type]
        (lambda: relative_step(inverse_sqrt), r"base must be a number or a schedule, got .* Call it: inverse_sqrt"),
        (lambda: zero_based(0.1), r"of_count must be a function of the count, got 0.1"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_the_starting_points_list_of_steps_may_be_any() -> None:
    """max(1e-2, t^-1/2 / 2^k) by hand, k of the listed steps passed; the issue's own example is [9, 4]."""

    def at(steps: Any, *ts: int, factor: float = 0.5) -> list[float]:
        lr: Any = recipes.adafactor_pytorch(lr_decay_step=steps, lr_decay_factor=factor).lr
        return [float(lr(t)) for t in ts]

    assert at([9, 4], 1, 4, 9, 16) == pytest.approx([1.0, 1 / 2 / 2, 1 / 3 / 4, 1 / 4 / 4])
    assert at([4, 4], 1, 4, 16) == pytest.approx([1.0, 1 / 2 / 4, 1 / 4 / 4])
    assert at([0, -3, 1, 2.5], 1, 2, 4) == pytest.approx([1 / 8, 2**-0.5 / 8, 1 / 2 / 16])  # 2.5 is passed at t = 3
    assert at([], 1, 100, 10**6) == pytest.approx([1.0, 0.1, 1e-2])  # never below the floor
    assert at({9, 4}, 9) == at((4, 9), 9) == at(np.array([9, 4]), 9) == at([9, 4], 9)
    assert at([math.inf, 2.0**40, -math.inf], 1, 4) == pytest.approx([1 / 2, 1 / 4])
    assert at([2], 1, 2, factor=0.0) == [1.0, 1e-2]


def test_the_starting_points_piecewise_schedule_has_a_floor_and_ours_has_none() -> None:
    theirs: Any = recipes.adafactor_pytorch(lr_decay_step=(3, 10), lr_decay_factor=1e-3).lr
    ours = piecewise_constant(relative_step(), (3, 10), 1e-3)
    assert theirs(1) == 1.0 and theirs(3) == 1e-2 and theirs(10) == 1e-2
    assert ours(1) == 1e-2 and ours(3) == pytest.approx(1e-5) and ours(10) == pytest.approx(1e-8)
