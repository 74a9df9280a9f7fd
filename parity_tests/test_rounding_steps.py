"""16-bit weights that move: the oracle's step with stochastic and with compensated ("kahan") rounding."""

import math
from typing import Any

import numpy as np
import pytest

from adafactor_spec import ROUNDINGS, Recipe, dtypes, oracle
from parity_tests.test_oracle import plain
from parity_tests.test_rounding import NARROW, SIGMAS

SHAPE, STEPS = (100, 200), 50
LR, DECAY = 1e-4, 0.5
DRIFT = plain(lr=LR, weight_decay=DECAY, weight_decay_by="lr")  # every element moves by lr (1 + 0.5 p) a step
ONES = np.ones(SHAPE)


def walked(recipe: Recipe, dtype: str, start: Any = ONES, steps: int = STEPS, **how: Any) -> tuple[Any, oracle.State]:
    rounding = {"rounding": how["rounding"]} if "rounding" in how else {}
    p, state = start, oracle.init(recipe, start, dtype=dtype, **rounding)
    for _ in range(steps):
        p, state = oracle.step(recipe, p, np.ones_like(p), state, dtype=dtype, **how)
    return p, state


def test_one_step_by_hand() -> None:
    # 1 - 2^-10 lies three quarters of the way from 1 - 2^-8 to 1: it stays 1 where r >= 1/4.
    recipe, p = plain(lr=2.0**-10), np.ones(64)
    for seed, index in ((1, 0), (1, 5), (2, 0)):
        how: dict[str, Any] = {"dtype": "bfloat16", "rounding": "stochastic", "seed": seed, "index": index}
        new, state = oracle.step(recipe, p, p, oracle.init(recipe, p, dtype="bfloat16"), **how)
        draws = (oracle.random_bits(seed, 1, index, (64,)) >> 8) * 2.0**-24
        np.testing.assert_array_equal(new, np.where(draws >= 0.25, 1.0, 1 - 2.0**-8))
        assert state.compensation is None
        # The bits of the second step are those of t = 2.
        after, _ = oracle.step(recipe, p, p, state, **how)
        draws = (oracle.random_bits(seed, 2, index, (64,)) >> 8) * 2.0**-24
        np.testing.assert_array_equal(after, np.where(draws >= 0.25, 1.0, 1 - 2.0**-8))


def test_a_small_step_is_lost_to_nearest() -> None:
    np.testing.assert_array_equal(walked(DRIFT, "bfloat16")[0], ONES)


@pytest.mark.parametrize("compute", [np.float64, np.float32])
def test_stochastic_weights_move_as_float32_ones_do(compute: Any) -> None:
    """On average, within the sampling error.

    A weight of the format that is to move by d, less than the spacing h <= 2^-8 there, goes by h with probability d/h,
    which has variance (d/h) (1 - d/h) h^2 < d h. Decay multiplies earlier deviations by less than 1.
    """
    twin, _ = walked(DRIFT, "float32")
    moved, _ = walked(DRIFT, "bfloat16", rounding="stochastic", seed=7, index=3, compute=compute)
    d = LR * (1 + DECAY)
    error = math.sqrt(STEPS * d * 2.0**-8 / ONES.size)
    assert abs(np.mean(moved) - np.mean(twin)) < SIGMAS * error
    assert SIGMAS * error < 0.1 * STEPS * LR * DECAY  # so it would show if decay were not rounded with the rest


def test_kahan_follows_the_float32_weights() -> None:
    """What is kept of at most half a spacing, 2^-9, is rounded by at most 2^-9 of itself, in every step."""
    twin, _ = walked(DRIFT, "float32")
    near, state = walked(DRIFT, "bfloat16", rounding="kahan")
    kept = STEPS * 2.0**-18
    np.testing.assert_allclose(near + state.compensation, twin, atol=kept + STEPS * 2.0**-25, rtol=0)
    np.testing.assert_allclose(near, twin, atol=2.0**-9 + kept + STEPS * 2.0**-25, rtol=0)
    np.testing.assert_array_equal(near, dtypes.round_to(near, "bfloat16"))
    np.testing.assert_array_equal(state.compensation, dtypes.round_to(state.compensation, "bfloat16"))
    assert kept < 0.1 * STEPS * LR * DECAY


def test_kahan_by_hand() -> None:
    # 1 - 2^-10 is 1 with -2^-10 kept; then 1 - 2^-9, half of the way, is 1, which is even; then 1 - 3 * 2^-10 is
    # 1 - 2^-8 with 2^-10 kept.
    recipe, p = plain(lr=2.0**-10), np.ones(1)
    state = oracle.init(recipe, p, dtype="bfloat16", rounding="kahan")
    np.testing.assert_array_equal(state.compensation, [0.0])
    for value, kept in ((1.0, -(2.0**-10)), (1.0, -(2.0**-9)), (1 - 2.0**-8, 2.0**-10)):
        p, state = oracle.step(recipe, p, np.ones(1), state, dtype="bfloat16", rounding="kahan")
        assert (p, state.compensation) == ([value], [kept])


def test_kahan_keeps_bfloat16_of_float16_too() -> None:
    # 1 - 2^-13 - 2^-22 is 1 in float16. The rest has 10 bits, 8 of which bfloat16 has.
    recipe = plain(lr=2.0**-13 + 2.0**-22)
    p, state = walked(recipe, "float16", np.ones(1), 1, rounding="kahan")
    assert p == [1.0] and state.compensation == [-(2.0**-13)]


def test_the_compensated_parameter_is_the_parameter_everywhere() -> None:
    """In RMS(p), in L2, in both forms of decay: a step from p and c is that of a float64 parameter p + c."""
    rng = np.random.default_rng(8)
    p = dtypes.round_to(rng.uniform(1, 2, (6, 5)), "bfloat16")
    c, g = dtypes.round_to(rng.uniform(-1, 1, (6, 5)) * 2.0**-8, "bfloat16"), rng.standard_normal((6, 5))
    fields: list[dict[str, Any]] = [
        {"eps2": 1e-9}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "weight_decay_by": "grad"},
        {"weight_decay": 0.1, "weight_decay_by": "lr", "decay_before_scale": True},
    ]  # fmt: skip
    for each in fields:
        recipe = Recipe(lr=0.1, beta2=0.9, **each)
        start = oracle.init(recipe, p, dtype="bfloat16", rounding="kahan")
        state = oracle.State(**(vars(start) | {"compensation": c}))
        new, after = oracle.step(recipe, p, g, state, dtype="bfloat16", rounding="kahan")
        wide, _ = oracle.step(recipe, p + c, g, oracle.init(recipe, p))
        np.testing.assert_array_equal(new, dtypes.round_to(wide, "bfloat16"))
        np.testing.assert_array_equal(after.compensation, dtypes.round_to(wide - new, "bfloat16"))


def test_kahan_without_a_gradient_keeps_everything() -> None:
    """Also where what was kept is half a spacing after it was rounded: the even neighbour then keeps the other half."""
    rng = np.random.default_rng(9)
    for dtype in NARROW:
        p = dtypes.round_to(rng.standard_normal(2000), dtype)
        half = dtypes.spacing(p, dtype) / 2
        c = dtypes.round_to(rng.choice([-1.0, 0.3, 1.0], 2000) * half, "bfloat16")
        state = oracle.State(**(vars(oracle.init(Recipe(), p, dtype=dtype, rounding="kahan")) | {"compensation": c}))
        whole = p + c
        for _ in range(3):
            p, state = oracle.step(Recipe(), p, np.zeros_like(p), state, dtype=dtype, rounding="kahan")
            np.testing.assert_array_equal(p + state.compensation, whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_parameters_know_one_rounding(dtype: str) -> None:
    rng = np.random.default_rng(10)
    start = dtypes.round_to(rng.standard_normal((6, 5)), dtype)
    values = [walked(Recipe(weight_decay=0.1), dtype, start, 3, rounding=rounding) for rounding in ROUNDINGS]
    for value, state in values:
        np.testing.assert_array_equal(value, values[0][0])
        assert state.compensation is None


def test_bad_arguments_are_refused() -> None:
    p = np.ones(2)
    state = oracle.init(Recipe(), p)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rounding": "stochastik"}, "rounding must be one of 'nearest', 'stochastic', 'kahan', got 'stochastik'"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**32}, "seed must be in"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"index": -1}, "index must be at least 0, got -1"),
        ({"rounding": "kahan", "dtype": "bfloat16"}, "rounding must be the one that `init` was given, got 'kahan'"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            oracle.step(Recipe(), p, p, state, **given)
    with pytest.raises(ValueError, match="rounding must be one of"):
        oracle.init(Recipe(), p, rounding="up")
