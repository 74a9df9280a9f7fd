"""The definition against numbers worked by hand: every field of the recipe, and limit cases where the result is
exact."""

from typing import Any

import numpy as np
import pytest

from adafactor_spec import FIELDS, Recipe, dtypes, factoring, oracle, schedules

# Hand-worked results are written with their closed form, so both sides round a few operations differently.
CLOSE = 1e-14

# One step of this 2x2 matrix: R = (2.5, 12.5), C = (5, 10), mean(R) = 7.5, so V = ((5/3, 10/3), (25/3, 50/3)) and
# u^2 = g^2 / V = ((0.6, 1.2), (1.08, 0.96)); their mean is 0.96, so nothing is clipped.
G = np.array([[1.0, 2.0], [3.0, 4.0]])
P = np.full((2, 2), 2.0)
U = np.sqrt([[0.6, 1.2], [1.08, 0.96]])


def steps(recipe: Recipe, p: Any, *grads: Any, dtype: str = "float64", name: str = "") -> tuple[Any, oracle.State]:
    value, state = np.asarray(p, float), oracle.init(recipe, np.asarray(p, float), dtype=dtype, name=name)
    for g in grads:
        value, state = oracle.step(recipe, value, np.asarray(g, float), state, dtype=dtype, name=name)
    return value, state


def plain(**fields: Any) -> Recipe:
    """A recipe of which only `fields` are switched on: p - lr * g / sqrt(V) with lr = 1 and beta2 = 0."""
    off: dict[str, Any] = {
        "lr": 1.0, "relative_step": False, "multiply_by_parameter_scale": False, "beta2": 0.0,
        "clipping_threshold": None,
    }  # fmt: skip
    return Recipe(**(off | fields))


def test_the_first_step_of_the_paper() -> None:
    value, state = steps(Recipe(), P, G)
    np.testing.assert_allclose(value, 2.0 - 0.02 * U, rtol=CLOSE)  # alpha = min(1e-2, 1) * RMS(p) = 0.02
    np.testing.assert_allclose(state.v_row, [[2.5], [12.5]], rtol=CLOSE)
    np.testing.assert_allclose(state.v_col, [[5.0, 10.0]], rtol=CLOSE)
    assert state.step == 1 and state.v is None and state.m is None and state.v_max is None


def test_the_second_step_mixes_with_beta2() -> None:
    value, state = steps(plain(beta2=0.75), [1.0], [2.0], [4.0])
    # V = 0.25 * 4 = 1, then 0.75 * 1 + 0.25 * 16 = 4.75
    np.testing.assert_allclose(state.v, [4.75], rtol=CLOSE)
    np.testing.assert_allclose(value, [1.0 - 2.0 - 4.0 / np.sqrt(4.75)], rtol=CLOSE)


def test_lr_is_a_number_or_a_schedule_from_t_1() -> None:
    for lr in (lambda t: 10.0 / t, schedules.function(lambda t: 10.0 / t)):
        value, _ = steps(plain(lr=lr), [0.0], [3.0], [3.0])
        np.testing.assert_allclose(value, [-15.0], rtol=CLOSE)


def test_relative_step() -> None:
    value, _ = steps(plain(relative_step=True, lr=0.8), [0.0], [1.0], [1.0])
    np.testing.assert_allclose(value, [-(0.8 + 2**-0.5)], rtol=CLOSE)  # min(0.8, 1), min(0.8, 2^-1/2)


def test_parameter_scale_with_its_bounds() -> None:
    on: dict[str, Any] = {"multiply_by_parameter_scale": True, "lr": 0.5}
    np.testing.assert_allclose(steps(plain(**on), [3.0, 4.0], [1.0, 1.0])[0], np.array([3.0, 4.0]) - 0.5 * 12.5**0.5)
    np.testing.assert_allclose(steps(plain(eps2=0.1, **on), [0.0], [1.0])[0], [-0.05], rtol=CLOSE)
    np.testing.assert_allclose(steps(plain(max_parameter_scale=2.0, **on), [5.0], [1.0])[0], [4.0], rtol=CLOSE)


def test_no_factoring_is_rmsprop() -> None:
    value, state = steps(plain(factoring=factoring.no_factoring), P, G)
    np.testing.assert_allclose(value, P - 1.0, rtol=CLOSE)
    np.testing.assert_allclose(state.v, G**2, rtol=CLOSE)


def test_eps1_is_added_to_the_square() -> None:
    np.testing.assert_allclose(steps(plain(eps1=5.0), [0.0], [2.0])[0], [-2.0 / 3.0], rtol=CLOSE)


def test_eps1_as_a_floor() -> None:
    floor = plain(eps1=0.5, eps1_mode="floor")
    np.testing.assert_allclose(steps(floor, [0.0, 0.0], [0.25, 2.0])[0], [-0.5, -1.0], rtol=CLOSE)
    # Matrix: R = (0.02, 0.02), C = (0.02, 0.02), mean(R) = 0.02 < 0.5, so V = 8e-4 < 0.25 and u = g / 0.5.
    small = np.array([[0.2, 0.0], [0.0, 0.2]])
    np.testing.assert_allclose(steps(floor, np.zeros((2, 2)), small)[0], -2.0 * small, rtol=CLOSE)
    # Only the normaliser at its floor: R = C = (0.25, 0.25), mean(R) = 0.25 < eps1 = 0.3, V = 0.0625 / 0.3 > 0.09.
    half = np.full((2, 2), 0.5)
    root = np.sqrt(0.25 * 0.25 / 0.3)
    np.testing.assert_allclose(
        steps(plain(eps1=0.3, eps1_mode="floor"), np.zeros((2, 2)), half)[0], -half / root, rtol=CLOSE
    )


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_eps1_none_is_the_epsilon_of_the_parameter(dtype: str) -> None:
    epsilon = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    value, _ = steps(plain(eps1=None, eps1_mode="floor", lr=0.5), [0.0], [epsilon / 2], dtype=dtype)
    assert value == [-0.25]


def test_amsgrad_keeps_the_largest_debiased() -> None:
    recipe = plain(amsgrad=True, beta2=0.5, eps1=1e-30)
    value, state = steps(recipe, [0.0], [4.0], [0.0])
    np.testing.assert_allclose([state.v_max, state.v], [[8.0], [4.0]], rtol=CLOSE)  # V = 8, then 4; the maximum stays
    np.testing.assert_allclose(value, [-4.0 / np.sqrt(8.0 / 0.5)], rtol=CLOSE)
    # eps1 is also added to the root: V = 0.5 * (9 + 7) = 8, 8 / (1 - 0.5) = 16, u = 3 / (4 + 7)
    np.testing.assert_allclose(steps(plain(amsgrad=True, beta2=0.5, eps1=7.0), [0.0], [3.0])[0], [-3 / 11], rtol=CLOSE)


def test_clipping_divides_by_the_rms_over_the_threshold() -> None:
    value, _ = steps(plain(clipping_threshold=0.5), [0.0, 0.0], [3.0, -4.0])
    np.testing.assert_allclose(value, [-0.5, 0.5], rtol=CLOSE)
    value, _ = steps(plain(clipping_threshold=2.0), [0.0, 0.0], [3.0, -4.0])
    np.testing.assert_allclose(value, [-1.0, 1.0], rtol=CLOSE)


def test_momentum_of_the_gradient() -> None:
    value, state = steps(plain(beta1=0.5, momentum_of="grad"), [0.0], [4.0], [2.0])
    np.testing.assert_allclose(state.m, [2.0], rtol=CLOSE)  # 0.5*4 = 2, 0.5*2 + 0.5*2 = 2
    np.testing.assert_allclose(value, [-(2.0 / 4.0) - (2.0 / 2.0)], rtol=CLOSE)


def test_momentum_of_the_clipped_update() -> None:
    value, state = steps(plain(beta1=0.5, momentum_of="update", clipping_threshold=0.5), [0.0], [4.0], [-2.0])
    np.testing.assert_allclose(state.m, [-0.125], rtol=CLOSE)  # u = 0.5, -0.5: m = 0.25, -0.125
    np.testing.assert_allclose(value, [-0.125], rtol=CLOSE)


def test_momentum_of_the_step_includes_the_step_size() -> None:
    value, state = steps(plain(beta1=0.5, momentum_of="step", lr=lambda t: 2.0 if t == 1 else 8.0), [0.0], [1.0], [1.0])
    np.testing.assert_allclose(state.m, [4.5], rtol=CLOSE)  # 0.5*2 = 1, 0.5*1 + 0.5*8 = 4.5
    np.testing.assert_allclose(value, [-5.5], rtol=CLOSE)


@pytest.mark.parametrize("what", ["grad", "update", "step"])
def test_debias(what: Any) -> None:
    value, _ = steps(plain(beta1=0.5, momentum_of=what, debias=True), [0.0], [3.0])
    np.testing.assert_allclose(value, [-1.0], rtol=CLOSE)


def test_momentum_dtype_and_what_it_rounds() -> None:
    # bfloat16 has 8 bits: 0.9 is 0.8984375, 1/3 is 0.333984375, 1.01 is 1.0078125.
    base: dict[str, Any] = {"beta1": 0.9, "momentum_of": "step", "momentum_dtype": "bfloat16"}
    lr = {1: 10.0 / 3.0, 2: 10.1}.__getitem__
    value, state = steps(plain(lr=lr, momentum_rounding="store", **base), [0.0], [1.0])
    assert state.m == [0.333984375]
    np.testing.assert_allclose(value, [-1.0 / 3.0], rtol=CLOSE)
    first = value
    value, _ = steps(plain(lr=lr, momentum_rounding="store", **base), [0.0], [1.0], [1.0])
    np.testing.assert_allclose(value - first, [-(0.9 * 0.333984375 + 1.01)], rtol=CLOSE)
    value, _ = steps(plain(lr=lr, momentum_rounding="decay", **base), [0.0], [1.0], [1.0])
    # 0.8984375 * 0.333984375 = 0.30006409, in bfloat16 0.30078125
    np.testing.assert_allclose(value - first, [-(0.30078125 + 1.01)], rtol=CLOSE)
    value, state = steps(plain(lr=lr, momentum_rounding="use", **base), [0.0], [1.0])
    # The step 10/3 is rounded first, to 3.328125; a tenth of it is 0.3328125, rounded 0.33203125, and that is used.
    np.testing.assert_allclose(value, [-0.33203125], rtol=CLOSE)
    assert state.m == [0.33203125]


@pytest.mark.parametrize(("by", "c"), [("step", 0.1 * 0.5 * 2.0), ("lr", 0.1 * 0.5), ("one", 0.1)])
def test_decoupled_decay(by: Any, c: float) -> None:
    recipe = plain(lr=0.5, multiply_by_parameter_scale=True, weight_decay=0.1, weight_decay_by=by)
    np.testing.assert_allclose(steps(recipe, [2.0], [1.0])[0], [2.0 - 0.5 * 2.0 - c * 2.0], rtol=CLOSE)


def test_decay_follows_lr_and_not_the_relative_step() -> None:
    recipe = plain(lr=5.0, relative_step=True, weight_decay=0.1, weight_decay_by="lr")
    np.testing.assert_allclose(steps(recipe, [2.0], [1.0])[0], [2.0 - 1.0 - 0.5 * 2.0], rtol=CLOSE)


def test_l2_is_a_part_of_the_gradient() -> None:
    recipe = plain(weight_decay=0.5, weight_decay_by="grad", eps1=7.0)
    np.testing.assert_allclose(steps(recipe, [4.0], [1.0])[0], [4.0 - 3.0 / 4.0], rtol=CLOSE)


def test_weight_decay_is_a_schedule_too() -> None:
    recipe = plain(lr=0.0, weight_decay=schedules.piecewise_constant(0.5, (2,), 0.5), weight_decay_by="one")
    np.testing.assert_allclose(steps(recipe, [16.0], [1.0], [1.0])[0], [16.0 * 0.5 * 0.75], rtol=CLOSE)


def test_decay_before_scale() -> None:
    recipe = plain(
        lr=0.5, multiply_by_parameter_scale=True, weight_decay=0.5, weight_decay_by="lr", decay_before_scale=True
    )
    # c = 0.25: the decayed parameter is 3, and the step is 0.5 * 3.
    np.testing.assert_allclose(steps(recipe, [4.0], [1.0])[0], [1.5], rtol=CLOSE)


def test_state_dtype_is_what_is_stored_and_used() -> None:
    recipe = plain(beta2=0.0, state_dtype="param")
    _, state = steps(recipe, [0.0], [1.0 + 2.0**-7], dtype="bfloat16")
    # g^2 = 1 + 2^-6 + 2^-14 is 1 + 2^-6 in bfloat16; the root of that is used.
    assert state.v == [1.0 + 2.0**-6]
    wide = steps(plain(beta2=0.0), [0.0], [1.0 + 2.0**-7], dtype="bfloat16")[1]
    assert wide.v == [1.0 + 2.0**-6 + 2.0**-14]


def test_float16_state_stays_wide() -> None:
    _, state = steps(plain(state_dtype="param"), [0.0], [1e-4], dtype="float16")
    assert state.v > 0.0  # 1e-8 is zero in float16


def test_the_result_is_rounded_once() -> None:
    assert steps(plain(lr=0.001), [1.0], [1.0], dtype="bfloat16")[0] == [1.0]  # half an ulp below 1 is 2^-9 = 0.00195
    assert steps(plain(lr=0.003), [1.0], [1.0], dtype="bfloat16")[0] == [1.0 - 2.0**-8]


FIELD_TESTS = {
    "lr": test_lr_is_a_number_or_a_schedule_from_t_1,
    "relative_step": test_relative_step,
    "multiply_by_parameter_scale": test_parameter_scale_with_its_bounds,
    "eps2": test_parameter_scale_with_its_bounds,
    "max_parameter_scale": test_parameter_scale_with_its_bounds,
    "beta2": test_the_second_step_mixes_with_beta2,
    "factoring": test_no_factoring_is_rmsprop,
    "eps1": test_eps1_is_added_to_the_square,
    "eps1_mode": test_eps1_as_a_floor,
    "amsgrad": test_amsgrad_keeps_the_largest_debiased,
    "clipping_threshold": test_clipping_divides_by_the_rms_over_the_threshold,
    "beta1": test_momentum_of_the_gradient,
    "momentum_of": test_momentum_of_the_step_includes_the_step_size,
    "debias": test_debias,
    "momentum_dtype": test_momentum_dtype_and_what_it_rounds,
    "momentum_rounding": test_momentum_dtype_and_what_it_rounds,
    "weight_decay": test_weight_decay_is_a_schedule_too,
    "weight_decay_by": test_decoupled_decay,
    "decay_before_scale": test_decay_before_scale,
    "state_dtype": test_state_dtype_is_what_is_stored_and_used,
}


def test_every_field_has_a_test_by_hand() -> None:
    assert tuple(FIELD_TESTS) == FIELDS
