"""Stochastic rounding: the hash and the rounding by hand, and the same bits in the oracle, JAX and torch."""

import functools
import inspect
import math
from itertools import pairwise
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import adafactor_jax._kernels as jax_kernels
import adafactor_torch._kernels as torch_kernels
from adafactor_spec import dtypes, oracle, rounding_key

# A mean of n independent draws leaves 5 standard deviations once in 1.7 million; the seeds are fixed, so it never does.
SIGMAS = 5.0
NARROW = ("bfloat16", "float16")
COUNTERS = [(0, 1, 0), (2**32 - 1, 7, 3), (123, 2**31 + 5, 99), (5, 2**32 + 1, 2**40)]
NEVER, ALWAYS = np.uint32(0), np.uint32(2**32 - 1)  # r = 0 and r = 1 - 2^-24


def rounded(x: Any, bits: Any, dtype: str) -> Any:
    return oracle.round_stochastically(np.asarray(x, np.float64), np.asarray(bits, np.uint32), dtype)


def r(value: float) -> np.uint32:
    """The bits that give this r; the lowest eight play no part."""
    return np.uint32(int(value * 2**24) << 8 | 0xFF)


# -------------------------------------------------------------------------------------------------------- the hash


def mixed(x: int) -> int:
    """The hash again, in another form: by division and remainder."""
    for power, factor in ((2**16, 0x7FEB352D), (2**15, 0x846CA68B)):
        x = (x ^ x // power) * factor % 2**32
    return x ^ x // 2**16


def test_the_hash_by_hand() -> None:
    # seed = 0x9e3779b9, step = 0, index = 0 give key = mix(mix(mix(0))) = 0, so the bits of element e are mix(e).
    # mix(1): 1 ^ 0 = 1, times 7feb352d is that; ^ ffd6, its shift by 15, = 7febcafb; times 846ca68b = 422bdf5b6889f849,
    # of which the low half stays; ^ 6889, its shift by 16, = 688990c0.
    assert rounding_key(0x9E3779B9, 0, 0) == 0
    bits = oracle.random_bits(0x9E3779B9, 0, 0, (2,))
    assert bits.dtype == np.uint32
    np.testing.assert_array_equal(bits, [0, 0x688990C0])


@pytest.mark.parametrize("counters", COUNTERS)
def test_the_key_and_the_bits(counters: tuple[int, int, int]) -> None:
    seed, step, index = counters
    key = mixed(mixed(mixed(seed ^ 0x9E3779B9) ^ step % 2**32) ^ index % 2**32)
    assert rounding_key(*counters) == key
    expected = np.array([mixed(e ^ key) for e in range(24)]).reshape(2, 3, 4)
    np.testing.assert_array_equal(oracle.random_bits(*counters, (2, 3, 4)), expected)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 3), (4, 25), (2, 3, 5, 7)])
@pytest.mark.parametrize("counters", COUNTERS)
def test_the_bits_are_the_same_everywhere(counters: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    expected = oracle.random_bits(*counters, shape)
    assert expected.shape == shape
    low = [np.uint32(counter % 2**32) for counter in counters]
    bits = functools.partial(jax_kernels.random_bits, shape=shape)
    np.testing.assert_array_equal(bits(*low), expected)
    np.testing.assert_array_equal(jax.jit(bits)(*low), expected)

    elements, key = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape), rounding_key(*counters)
    for given in (key, torch.tensor(key, dtype=torch.int64).to(torch.int32)):
        as_int32 = torch_kernels.random_bits(given, elements)
        assert as_int32.dtype == torch.int32
        np.testing.assert_array_equal(as_int32.numpy().view(np.uint32), expected)


def test_jax_takes_signed_and_python_counters() -> None:
    expected = oracle.random_bits(2**32 - 1, 6, 7, (3, 2))
    np.testing.assert_array_equal(jax_kernels.random_bits(2**32 - 1, 6, 7, (3, 2)), expected)
    traced = jax.jit(lambda step: jax_kernels.random_bits(2**32 - 1, step, 7, (3, 2)))
    np.testing.assert_array_equal(traced(jnp.int32(6)), expected)


def test_torch_makes_the_bits_of_a_part() -> None:
    whole, key = oracle.random_bits(3, 1, 4, (8, 5)).ravel(), rounding_key(3, 1, 4)
    some = [7, 39, 0, 12]
    bits = torch_kernels.random_bits(key, torch.tensor(some, dtype=torch.int32))
    np.testing.assert_array_equal(bits.numpy().view(np.uint32), whole[some])
    # Beyond 2^31 the flat index is negative as an int32: -2 is element 2^32 - 2.
    last = torch_kernels.random_bits(key, torch.tensor([-2], dtype=torch.int32))
    assert int(last.numpy().view(np.uint32)[0]) == mixed((2**32 - 2) ^ key)


N = 2**16


def test_the_bits_are_uniform() -> None:
    bits = oracle.random_bits(0, 1, 0, (N,))
    # A uniform number in [0, 1) has standard deviation 12^-1/2, each of its bits 1/2.
    assert abs(np.mean(bits / 2.0**32) - 0.5) < SIGMAS / math.sqrt(12 * N)
    each = bits[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
    assert np.all(np.abs(np.mean(each, axis=0) - 0.5) < SIGMAS * 0.5 / math.sqrt(N))


def test_successive_counters_are_not_correlated() -> None:
    """Nor are neighbours. A correlation of n independent pairs has standard deviation n^-1/2."""
    along = {
        "seed": [oracle.random_bits(at, 1, 0, (N,)) for at in range(4)],
        "step": [oracle.random_bits(0, at, 0, (N,)) for at in range(1, 5)],
        "index": [oracle.random_bits(0, 1, at, (N,)) for at in range(4)],
        "element": [oracle.random_bits(0, 1, 0, (N + 4,))[at : at + N] for at in range(4)],
    }
    for counter, drawn in along.items():
        for one, other in pairwise(drawn):
            assert abs(np.corrcoef(one, other)[0, 1]) < SIGMAS / math.sqrt(N), counter
    assert not np.any(oracle.random_bits(0, 1, 2, (N,)) == oracle.random_bits(0, 2, 1, (N,)))


# --------------------------------------------------------------------------------------- stochastic rounding by hand


def test_spacing() -> None:
    values = np.array([1.0, 1.99, -2.0, 0.99, 0.0, 2.0**-140])
    spacings = [2.0**-7, 2.0**-7, 2.0**-6, 2.0**-8, 2.0**-133, 2.0**-133]
    np.testing.assert_array_equal(dtypes.spacing(values, "bfloat16"), spacings)
    assert dtypes.spacing(np.float64(2.0**-14), "float16") == dtypes.spacing(np.float64(1e-7), "float16") == 2.0**-24


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_quarter_of_the_way_goes_up_one_time_in_four(sign: float) -> None:
    # 1 + 2^-9 lies a quarter of the way from 1 to 1 + 2^-7: away from zero where r >= 3/4.
    x, far = sign * (1 + 2.0**-9), sign * (1 + 2.0**-7)
    draws = [r(0), r(0.5), r(0.75 - 2.0**-24), r(0.75), r(1 - 2.0**-24)]
    np.testing.assert_array_equal(rounded([x] * 5, draws, "bfloat16"), [sign, sign, sign, far, far])
    # In float16 it is a number, and stays.
    np.testing.assert_array_equal(rounded([x] * 5, draws, "float16"), [x] * 5)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_number_of_the_format_never_moves(dtype: str) -> None:
    x = dtypes.round_to(np.random.default_rng(0).standard_normal(1000) * 2.0 ** np.arange(-30, 10).repeat(25), dtype)
    for bits in (NEVER, ALWAYS):
        np.testing.assert_array_equal(rounded(x, np.full(x.shape, bits), dtype), x)


def test_below_the_smallest_normal_number_the_spacing_stays() -> None:
    # float16: the spacing is 2^-24, so 5.5 * 2^-24 lies half of the way, and 2^-25 half of the way from 0.
    for units, near, far in ((5.5, 5.0, 6.0), (0.5, 0.0, 1.0), (-0.5, -0.0, -1.0), (1023.5, 1023.0, 1024.0)):
        x, draws = [units * 2.0**-24] * 2, [r(0.5 - 2.0**-24), r(0.5)]
        np.testing.assert_array_equal(rounded(x, draws, "float16") * 2.0**24, [near, far])
    # bfloat16: the spacing is 2^-133.
    np.testing.assert_array_equal(rounded([2.5 * 2.0**-133] * 2, [r(0.25), r(0.5)], "bfloat16") * 2.0**133, [2, 3])


def test_a_fraction_below_the_resolution_of_r_is_never_enough() -> None:
    """f + r >= 1 is decided exactly: f = 2^-25 + 2^-40 and the largest r add up to less than 1, f = 2^-24 to 1."""
    x = [(2.0**-25 + 2.0**-40) * 2.0**-24, 2.0**-48]
    for value in (rounded(x, [ALWAYS] * 2, "float16"), _in_torch(x, [ALWAYS] * 2), _in_jax(x, [ALWAYS] * 2)):
        np.testing.assert_array_equal(value, [0.0, 2.0**-24])


def _in_torch(x: Any, bits: Any) -> Any:
    as_int32 = torch.from_numpy(np.asarray(bits, np.uint32).view(np.int32))
    return torch_kernels.round_stochastically(torch.tensor(x), as_int32, torch.float16).numpy()


def _in_jax(x: Any, bits: Any) -> Any:
    return jax_kernels.round_stochastically(jnp.asarray(x, jnp.float32), jnp.asarray(np.asarray(bits)), "float16")


@pytest.mark.parametrize(("dtype", "largest", "far"), [("float16", 65504.0, 65536.0), ("bfloat16", 255 * 2.0**120, 0)])
def test_non_finite_and_too_large(dtype: str, largest: float, far: float) -> None:
    special = np.array([np.inf, -np.inf, np.nan, largest, -largest])
    for bits in (NEVER, ALWAYS):
        np.testing.assert_array_equal(rounded(special, np.full(5, bits), dtype), special)
    if far:  # 65520 lies half of the way from the largest number to what would be the next
        draws = [r(0.25), r(0.5), NEVER]
        np.testing.assert_array_equal(rounded([65520.0, -65520.0, 1e6], draws, dtype), [largest, -np.inf, np.inf])
    beyond = np.float64(np.finfo(np.float32).max)  # nearly all of the way from bfloat16's largest number to 2^128
    np.testing.assert_array_equal(rounded([beyond], [ALWAYS], dtype), [np.inf])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_formats_are_rounded_to_nearest(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(50)
    np.testing.assert_array_equal(rounded(x, np.full(50, ALWAYS), dtype), dtypes.round_to(x, dtype))
    ints = torch.full((50,), -1, dtype=torch.int32)
    narrow = torch_kernels.round_stochastically(torch.from_numpy(x), ints, getattr(torch, dtype))
    np.testing.assert_array_equal(narrow.numpy(), dtypes.round_to(x, dtype))
    single = x.astype(np.float32)
    kept = jax_kernels.round_stochastically(jnp.asarray(single), jnp.full(50, ALWAYS), "float32")
    np.testing.assert_array_equal(kept, single)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("fraction", [1 / 16, 0.3, 0.5, 0.9])
def test_it_is_unbiased(dtype: str, fraction: float) -> None:
    """Each of n draws is up with probability f, so that their share has standard deviation (f (1 - f) / n)^1/2."""
    unit = dtypes.epsilon(dtype)
    value = float(np.float32(1 + fraction * unit))
    f, bits = (value - 1) / unit, oracle.random_bits(11, 1, 2, (N,))
    share = np.mean(rounded(np.full(N, value), bits, dtype) > 1)
    assert abs(share - f) < SIGMAS * math.sqrt(f * (1 - f) / N)


# --------------------------------------------------------------------------------------------- the three columns agree


def _kernels(module: ModuleType) -> list[str]:
    found = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in found if inspect.isfunction(getattr(module, name)) and not name.startswith("_")]


def test_the_kernels_have_the_same_names_in_the_same_order() -> None:
    assert _kernels(jax_kernels) == _kernels(torch_kernels)
    assert ["round_to", *_kernels(oracle)] == [
        *_kernels(jax_kernels),
        "numbers",
        "init",
        "step",
    ]  # the oracle's is in `dtypes`


def _inputs() -> Any:
    """Every exponent of float32 with random mantissas and signs, and what is special."""
    rng = np.random.default_rng(5)
    exponents, low = rng.integers(0, 255, 20_000), rng.integers(0, 2**23, 20_000)
    patterns = (rng.integers(0, 2, 20_000) << 31 | exponents << 23 | low).astype(np.uint32)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 65535, 65536, 1e30, 2.0**-14, 2.0**-24]
    near_float16 = rng.uniform(-1, 1, 20_000) * 2.0 ** rng.integers(-52, 17, 20_000)
    largest = [np.finfo(np.float32).max, -np.finfo(np.float32).max, 255 * 2.0**120, 2.0**-126, 2.0**-149]
    return np.concatenate([patterns.view(np.float32), np.array([*special, *largest, *near_float16], np.float32)])


def _same(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("counters", COUNTERS[:3])
@pytest.mark.parametrize("dtype", NARROW)
def test_stochastic_rounding_is_the_same_everywhere(dtype: str, counters: tuple[int, int, int]) -> None:
    x = _inputs()
    bits = oracle.random_bits(*counters, x.shape)
    expected = oracle.round_stochastically(x, bits, dtype)
    numbers = ~np.isnan(expected)
    with np.errstate(over="ignore"):
        _same(dtypes.round_to(expected, dtype)[numbers], expected[numbers])  # numbers of the format
    assert np.sum(expected[numbers] != dtypes.round_to(x, dtype)[numbers]) > 1000  # to the farther neighbour

    for_jax, for_torch = jax_kernels.random_bits(*counters, x.shape), torch.from_numpy(bits.view(np.int32))
    _same(jax_kernels.round_stochastically(jnp.asarray(x), for_jax, dtype), expected)
    compiled = jax.jit(lambda x, bits: jax_kernels.round_stochastically(x, bits, dtype))
    _same(compiled(x, for_jax), expected)
    _same(torch_kernels.round_stochastically(torch.from_numpy(x), for_torch, getattr(torch, dtype)), expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_nan_stays_one(dtype: str) -> None:
    """Also those that differ from infinity, or from 0 of the other sign, in nothing but the bits that are cut off."""
    x = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    for draw in (NEVER, ALWAYS):
        bits = np.full(x.shape, draw)
        assert np.isnan(jax_kernels.round_stochastically(jnp.asarray(x), jnp.asarray(bits), dtype)).all()
        ints = torch.from_numpy(bits.view(np.int32))
        to = getattr(torch, dtype)
        assert torch_kernels.round_stochastically(torch.from_numpy(x), ints, to).isnan().all()


@pytest.mark.parametrize("dtype", NARROW)
def test_float64_goes_through_float32(dtype: str) -> None:
    x = np.random.default_rng(6).standard_normal(5000)
    bits = oracle.random_bits(0, 1, 0, x.shape)
    expected = rounded(x, bits, dtype)
    _same(expected, rounded(x.astype(np.float32), bits, dtype))
    ints = torch.from_numpy(bits.view(np.int32))
    _same(torch_kernels.round_stochastically(torch.from_numpy(x), ints, getattr(torch, dtype)), expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_layout_in_memory_plays_no_part(dtype: str) -> None:
    x = torch.from_numpy(_inputs()[:600].reshape(2, 3, 10, 10).copy())
    elements = torch.arange(600, dtype=torch.int32).reshape(2, 3, 10, 10)
    bits, to = torch_kernels.random_bits(9, elements), getattr(torch, dtype)
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    _same(torch_kernels.round_stochastically(strided, bits, to), torch_kernels.round_stochastically(x, bits, to))
