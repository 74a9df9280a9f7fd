"""The random bits of stochastic rounding: a hash of counters, so that they do not depend on who asks for them, or when.

The bits of an element are a function of (seed, step, index of the parameter, index of the element) in 32-bit integer
arithmetic, which every framework and device has.
"""

from typing import Any

from .errors import check_whole

ROUNDINGS = ("nearest", "stochastic", "kahan")
LOW = 0xFFFFFFFF  # the low 32 bits


def mix(x: Any) -> Any:
    """Hash x in [0, 2^32), a Python int or a uint64 array: the 32-bit integer hash "lowbias32"."""
    x = x ^ x >> 16
    x = x * 0x7FEB352D & LOW
    x = x ^ x >> 15
    x = x * 0x846CA68B & LOW
    return x ^ x >> 16


def check_seed(seed: object) -> Any:
    """The seed as an int, or a traced one as it is; what is not a whole number in [0, 2^32) is refused."""
    return check_whole("seed", seed, at_least=0, at_most=LOW, traced=True)


def rounding_key(seed: int, step: int, index: int) -> int:
    """What the random bits of all elements of one parameter in one step share: an int in [0, 2^32).

    The bits of element e, its index in C order, are `mix(e ^ key)`.

    Args:
        seed: in [0, 2^32).
        step: t, 1 at the first update.
        index: position of the parameter: in torch that in all groups in order, in JAX that of the leaf in the tree.
    """
    return int(mix(mix(seed_key(seed) ^ int(step) & LOW) ^ int(index) & LOW))


def seed_key(seed: int) -> int:
    """What the keys of all steps and parameters under one seed begin with: an int in [0, 2^32)."""
    return int(mix(int(seed) ^ 0x9E3779B9))
