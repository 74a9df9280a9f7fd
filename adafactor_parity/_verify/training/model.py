"""The sizes and the initial weights of the character transformer, which are the same in both frameworks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """Sizes. `width` must be divisible by `heads`."""

    vocabulary: int
    context: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2


def initial_weights(config: Config, seed: int) -> Weights:
    """Float32 weights by name, in the order in which the forward pass uses them.

    Matrices are normal with variance 1 / fan-in. There is no bias on keys: its gradient is zero but for
    rounding, and an optimizer that divides by the gradient's size would turn that rounding into full steps.
    """
    rng = np.random.default_rng([seed, 0])
    width = config.width

    def matrix(*shape: int, fan_in: int = width) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    weights = {"embed": matrix(config.vocabulary, width), "position": matrix(config.context, width)}
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        weights |= _norm(f"{block}.norm1", width)
        weights[f"{block}.qkv"] = matrix(3, width, width)
        weights[f"{block}.out"] = matrix(width, width)
        weights |= _norm(f"{block}.norm2", width)
        weights[f"{block}.up"] = matrix(width, 4 * width)
        weights[f"{block}.down"] = matrix(4 * width, width, fan_in=4 * width)
    weights |= _norm("norm", width)
    weights["unembed"] = matrix(width, config.vocabulary)
    return weights


def _norm(name: str, width: int) -> Weights:
    return {f"{name}.scale": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}
