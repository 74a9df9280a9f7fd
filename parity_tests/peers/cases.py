"""One random case of one original: its arguments, its parameters, its gradients. A case replays from its number."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_tests.peers import arguments
from parity_tests.peers.arguments import Arguments, Random

Array = NDArray[np.float64]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Kind:
    """What the cases of one original have of their own.

    Attributes:
        dtypes: of the parameters: float64 as often as float32 where the original computes in it, else float32 only.
        threshold: the default of min_dim_size_to_factor, None where the original has no such thing.
        external_lr: the argument whose value may be written between two steps.
        maximize: whether the optimizer takes that argument.
        dead: whether the original survives a gradient with a row and a column of zeros.
        pool: how many shapes there are in all, None for any number. JAX compiles each operation for each shape.
    """

    dtypes: tuple[str, ...]
    threshold: int | None = None
    external_lr: str | None = None
    maximize: bool = False
    dead: bool = True
    pool: int | None = None


@dataclass(frozen=True)
class Case:
    """The arguments are those of the constructor and of the recipe; `maximize` and `mask` those of the optimizers.

    Attributes:
        lrs: the learning rate written before each step, or None.
        mask: optax's weight_decay_mask.
        params, grads: values that fit `dtype`, as float64.
    """

    peer: str
    number: int
    dtype: str
    kwargs: Arguments
    lrs: list[float] | None
    maximize: bool
    mask: dict[str, bool] | None
    params: Arrays
    grads: list[Arrays]

    def __str__(self) -> str:
        shapes = {name: p.shape for name, p in self.params.items()}
        options = {"lrs": self.lrs, "maximize": self.maximize, "mask": self.mask}
        used = {name: value for name, value in options.items() if value}
        zero = [t for t, g in enumerate(self.grads, 1) if not any(np.any(x) for x in g.values())]
        return (
            f"{self.peer}, case {self.number} ({self.dtype}): kwargs {self.kwargs}, {used}, shapes {shapes}, "
            f"{len(self.grads)} steps, zero gradients at {zero}"
        )


# RMS(p) and RMS(u) are torch.norm and jnp.mean in the originals, which add float32 squares one after the other; what
# that costs grows with their number. So a float32 tensor is small, unless it is there for the default threshold.
FEW = 128
MANY = 20_000

BOTH = ("float64", "float32")
SINGLE = ("float32",)
# keras computes every mean and beta2 in float32, optax beta2: neither can be held to float64's budget.
KINDS = {
    "torch": Kind(BOTH, external_lr="lr", maximize=True),
    "transformers": Kind(BOTH, external_lr="lr"),
    "timm": Kind(BOTH, threshold=16, external_lr="lr"),
    "timm_big_vision": Kind(BOTH, threshold=16, external_lr="lr"),
    "pytorch_optimizer": Kind(BOTH, external_lr="lr", maximize=True),
    # Of a dead row, eps / mean(r) in optax and r / mean(r) * c in keras leave float32's range, and 0 / 0 is NaN.
    "optax": Kind(SINGLE, threshold=128, dead=False, pool=24),
    "keras": Kind(SINGLE, external_lr="learning_rate", dead=False),
}


def draw(peer: str, number: int) -> Case:
    """The case of that number."""
    rng = np.random.default_rng([*peer.encode(), number])
    kind = KINDS[peer]
    kwargs: Arguments = getattr(arguments, peer)(rng)
    dtype = str(rng.choice(kind.dtypes))
    if dtype == "float64" and "momentum_dtype" in kwargs:
        kwargs["momentum_dtype"] = "float64"  # one of fewer bits rounds 1e-8 or more of every step
    steps = int(rng.integers(3, 9))
    threshold = kwargs.get("min_dim_size_to_factor", kind.threshold)
    names = ("a", "b", "c")[: int(rng.integers(2, 4))]
    most = FEW if dtype == "float32" else MANY
    shapes = {name: _shape(rng, threshold, most) for name in names}
    if kind.pool is not None:
        pool = _pool(peer, kind.pool, kind.threshold)
        shapes = {name: pool[int(rng.integers(kind.pool))] for name in shapes}
    written = kind.external_lr and _written(peer, kwargs) and rng.random() < 0.5
    return Case(
        peer,
        number,
        dtype,
        kwargs,
        lrs=[float(10.0 ** rng.uniform(-4, -1)) for _ in range(steps)] if written else None,
        maximize=kind.maximize and rng.random() < 0.3,
        mask={name: bool(rng.random() < 0.5) for name in shapes} if peer == "optax" and rng.random() < 0.3 else None,
        params={name: _parameter(rng, shape, dtype) for name, shape in shapes.items()},
        grads=_gradients(rng, shapes, steps, dtype, kind.dead),
    )


def _written(peer: str, kwargs: Arguments) -> bool:
    """Whether a learning rate that is written between two steps has an effect, and not a schedule over it."""
    if peer in ("transformers", "pytorch_optimizer"):
        return not kwargs.get("relative_step", True)
    if peer == "timm":
        return kwargs.get("lr") is not None
    return not callable(kwargs.get("learning_rate"))


def _shape(rng: Random, threshold: int | None, most: int) -> tuple[int, ...]:
    """Of rank 0 to 4; with axes of length 1, equally long ones, and ones next to the threshold."""
    rank = int(rng.integers(5))
    lengths = [int(length) for length in rng.integers(1, 8, rank)]
    shorter = list(rng.permutation(rank))  # the last two are what decides
    if rank >= 2 and threshold is not None and rng.random() < 0.6:
        for axis, length in zip(shorter[-2:], max(threshold, 1) + rng.integers(-1, 2, 2), strict=True):
            lengths[axis] = max(int(length), 1)
    if rank >= 2 and rng.random() < 0.3:
        lengths[shorter[-2]] = lengths[shorter[-1]]
    for axis in shorter[:-2]:
        if math.prod(lengths) > most:
            lengths[axis] = 1
    return tuple(lengths)


def _pool(peer: str, size: int, threshold: int | None) -> list[tuple[int, ...]]:
    """Shapes for small thresholds, and a quarter for the original's default."""
    rng = np.random.default_rng([*peer.encode()])
    found: list[tuple[int, ...]] = []
    while len(found) < size:
        large = len(found) % 4 == 0
        shape = _shape(rng, threshold if large else 4, MANY if large else FEW)
        if shape not in found and (not large or math.prod(shape) > FEW):
            found.append(shape)
    return found


def _parameter(rng: Random, shape: tuple[int, ...], dtype: str) -> Array:
    scale = rng.choice([0.0, 1e-8, 1e-4, 1e-3, 0.05, 1.0, 30.0])
    return _fitting(rng.standard_normal(shape) * scale, dtype)


def _gradients(rng: Random, shapes: dict[str, Any], steps: int, dtype: str, dead: bool) -> list[Arrays]:
    exponents = rng.uniform(-12, 8, steps) if dtype == "float64" else rng.uniform(-6, 4, steps)
    if rng.random() < 0.4:
        exponents[int(rng.integers(steps))] = -np.inf
    factors = {name: _factors(rng, shape, dead) for name, shape in shapes.items()}
    return [
        {
            name: _fitting(rng.standard_normal(shape) * factors[name] * 10.0**exponent, dtype)
            for name, shape in shapes.items()
        }
        for exponent in exponents
    ]


def _factors(rng: Random, shape: tuple[int, ...], dead: bool) -> Array:
    """Two orders of magnitude along every axis; sometimes an index of an axis is zero in every step."""
    factors = np.ones(shape)
    for axis, length in enumerate(shape):
        weights = 10.0 ** rng.uniform(-1, 1, length)
        if dead and length > 1 and rng.random() < 0.15:
            weights[int(rng.integers(length))] = 0.0
        factors = factors * weights.reshape([length if a == axis else 1 for a in range(len(shape))])
    return factors


def _fitting(x: Any, dtype: str) -> Array:
    return np.asarray(x, dtype).astype(np.float64)
