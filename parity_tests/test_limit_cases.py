"""The definition where a recipe is something that we know already: exact where exact."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import adafactor_jax._kernels as jax_kernels
import adafactor_torch._kernels as torch_kernels
from adafactor_spec import Recipe, dtypes, factoring, oracle, schedules
from parity_tests.test_oracle import CLOSE, plain, steps

RNG = np.random.default_rng(1)
MATRIX, GRADS = RNG.standard_normal((5, 4)), RNG.standard_normal((3, 5, 4))


def test_an_outer_product_is_factored_without_loss() -> None:
    g = np.outer([1.0, 2.0, 4.0], [1.0, 0.5, 8.0, 2.0])
    factored, _ = steps(plain(eps1=1e-30), np.zeros((3, 4)), g)
    np.testing.assert_allclose(factored, -np.ones((3, 4)), rtol=CLOSE)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_a_size_1_axis_makes_a_matrix_a_vector(shape: tuple[int, int]) -> None:
    p, grads = RNG.standard_normal(6), RNG.standard_normal((3, 6))
    vector, _ = steps(Recipe(), p, *grads)
    matrix, _ = steps(Recipe(), p.reshape(shape), *(g.reshape(shape) for g in grads))
    np.testing.assert_allclose(matrix.ravel(), vector, rtol=CLOSE)


@pytest.mark.parametrize("momentum_of", ["grad", "update", "step"])
def test_beta1_0_is_no_momentum(momentum_of: Any) -> None:
    np.testing.assert_array_equal(
        steps(Recipe(beta1=0.0, momentum_of=momentum_of, debias=True), MATRIX, *GRADS)[0],
        steps(Recipe(), MATRIX, *GRADS)[0],
    )


def test_an_infinite_threshold_is_no_clipping() -> None:
    np.testing.assert_array_equal(
        steps(Recipe(clipping_threshold=float("inf")), MATRIX, *GRADS)[0],
        steps(Recipe(clipping_threshold=None), MATRIX, *GRADS)[0],
    )


def test_the_update_does_not_depend_on_the_size_of_the_gradient() -> None:
    np.testing.assert_allclose(
        steps(Recipe(), MATRIX, *(GRADS * 2.0**40))[0], steps(Recipe(), MATRIX, *GRADS)[0], rtol=CLOSE
    )


def test_adam_decay_is_a_debiased_constant() -> None:
    decayed, state = steps(plain(beta2=schedules.adam_decay(0.9)), [0.0], [1.0], [3.0])
    # V_t = (0.9 * 0.1 * 1 + 0.1 * 9) / (1 - 0.81)
    np.testing.assert_allclose(state.v, [(0.09 + 0.9) / 0.19], rtol=CLOSE)
    assert np.isfinite(decayed).all()


BATCHED = factoring.explicit(rows=1, cols=2, batch=0)
FULL: dict[str, Any] = {
    "beta1": 0.9, "weight_decay": 0.1, "clipping_threshold": 0.3, "beta2": 0.9, "debias": True
}  # fmt: skip


@pytest.mark.parametrize("momentum_of", ["grad", "update", "step"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_batch_axis_is_separate_parameters(momentum_of: Any, amsgrad: bool) -> None:
    scale = np.array([1.0, 50.0, 1e-3]).reshape(3, 1, 1)
    p, grads = RNG.standard_normal((3, 5, 4)) * scale, RNG.standard_normal((3, 3, 5, 4)) / scale
    stacked, _ = steps(Recipe(factoring=BATCHED, momentum_of=momentum_of, amsgrad=amsgrad, **FULL), p, *grads)
    for layer in range(3):
        alone, _ = steps(Recipe(momentum_of=momentum_of, amsgrad=amsgrad, **FULL), p[layer], *grads[:, layer])
        np.testing.assert_allclose(stacked[layer], alone, rtol=1e-12)


def test_an_axis_that_is_nothing_shares_rms_but_not_factors() -> None:
    p, g = RNG.standard_normal((2, 5, 4)), RNG.standard_normal((2, 5, 4)) * np.array([1.0, 100.0]).reshape(2, 1, 1)
    together, state = steps(Recipe(clipping_threshold=None), p, g)
    assert state.v_row.shape == (2, 5, 1) and state.v_col.shape == (2, 1, 4)
    rms = np.sqrt(np.mean(p**2))
    for layer in range(2):
        alone, _ = steps(plain(lr=1e-2), p[layer], g[layer])
        np.testing.assert_allclose(together[layer], p[layer] + rms * (alone - p[layer]), rtol=CLOSE)


def test_a_zero_gradient_moves_nothing_and_makes_no_nan() -> None:
    for recipe in (Recipe(), Recipe(eps1=None, eps1_mode="floor"), Recipe(amsgrad=True, beta2=0.9)):
        value, _ = steps(recipe, MATRIX, np.zeros_like(MATRIX), np.zeros_like(MATRIX))
        np.testing.assert_array_equal(value, MATRIX)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    value, state = steps(Recipe(beta1=0.9, weight_decay=0.1), np.zeros(shape), np.zeros(shape))
    assert value.shape == shape
    assert all(np.isfinite(kept).all() for kept in (state.v, state.v_row, state.v_col) if kept is not None)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_range(size: float) -> None:
    grads = (GRADS * size).astype(np.float32)
    state32 = oracle.init(Recipe(), MATRIX, compute=np.float32)
    state64 = oracle.init(Recipe(), MATRIX)
    p32, p64 = MATRIX.astype(np.float32), MATRIX.astype(np.float32).astype(float)
    for g in grads:
        p32, state32 = oracle.step(Recipe(), p32, g, state32, compute=np.float32)
        p64, state64 = oracle.step(Recipe(), p64, g.astype(float), state64)
    assert p32.dtype == np.float32
    # A step of 1e-2 times the weight carries its own relative error of a few 6e-8 and is added to it with another one.
    np.testing.assert_allclose(p32, p64, atol=2 * 2.0**-24 * np.abs(MATRIX).max(), rtol=0)


def test_nothing_is_changed_in_place() -> None:
    p, g = MATRIX.copy(), GRADS[0].copy()
    state = oracle.init(Recipe(beta1=0.9), p)
    oracle.step(Recipe(beta1=0.9), p, g, state)
    np.testing.assert_array_equal(p, MATRIX)
    np.testing.assert_array_equal(g, GRADS[0])
    assert not state.v_row.any() and not state.m.any() and state.step == 0


def test_a_rounded_average_meets_ties_as_torch_does() -> None:
    """0.9 * 209 + 0.1 * 54 = 193.5, between two bfloat16 numbers: the even one. Two float32 products add up to less."""
    m, x = np.float32(209), np.float32(54)
    b: Any = np.float32(0.9)
    rest: Any = np.float32(1 - 0.9)
    assert dtypes.round_to(oracle.ema(m, x, b, rest), "bfloat16") == 193
    assert oracle.average(m, x, b, rest, "use", "bfloat16")[0] == 194
    assert jax_kernels.average(jnp.asarray(m), jnp.asarray(x), b, rest, "use", "bfloat16")[0] == 194
    used, _ = torch_kernels.average(torch.tensor(209.0), torch.tensor(54.0), 0.9, 1 - 0.9, "use", torch.bfloat16)
    assert used == 194
    assert torch.tensor(209.0).bfloat16().lerp(torch.tensor(54.0).bfloat16(), 1 - 0.9) == 194
    # From the other end, too: 0.3 * 10 + 0.7 * 6 = 7.2, which is 6 + 0.3 * 4.
    assert oracle.lerp(np.float64(10), np.float64(6), 0.3, 0.7) == 6 + 0.3 * 4
