"""What the tests of rounded 16-bit weights share: leaves, exact steps, the oracle's and torch's answers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from adafactor_spec import Recipe, oracle
from adafactor_spec.factoring import no_factoring
from adafactor_torch import Adafactor

from .jax_steps import Tree
from .test_oracle import plain


# Every operation of a step has an exact result in float32, whatever its order: gradients are 1 or -1 and so is u, and
# p, p / 64 and the step size are multiples of 2^-18 below 2. No bit of the weights is a matter of tolerance.
def exactly(**decay: Any) -> Recipe:
    return plain(lr=11 * 2.0**-15, factoring=no_factoring, **decay)


EXACT = exactly(weight_decay=2.0**-6, weight_decay_by="one")
# A decay of what "kahan" keeps would have further bits every time.
EXACT_SUM = exactly()
# Shape, and dtypes of the parameter and of its gradient.
LEAVES: Tree = {
    "bias": ((7,), "float32", "float32"),
    "embedding": ((30, 40), "bfloat16", "bfloat16"),
    "layer": {"bias": ((), "bfloat16", "float32"), "kernel": ((3, 40, 20), "bfloat16", "float32")},
    "output": ((25, 40), "float16", "float32"),
    "scale": ((257,), "float16", "bfloat16"),
}
STEPS, SEED = 4, 5
ROUNDINGS = ("stochastic", "kahan")


def drawn(values: Callable[[tuple[int, ...], str, str], Any]) -> Tree:
    """A tree of `LEAVES`."""
    return jax.tree.map(lambda leaf: values(*leaf), LEAVES, is_leaf=lambda leaf: isinstance(leaf, tuple))


def weights(low: float = 0.25) -> Tree:
    """From `low` to four times that, of both signs."""
    rng = np.random.default_rng(0)
    size = lambda shape: rng.uniform(low, 4 * low, shape) * rng.choice([-1.0, 1.0], shape)  # noqa: E731
    return drawn(lambda shape, dtype, _: jnp.asarray(size(shape), dtype))


def signs(t: int) -> Tree:
    """The gradients of step t for `EXACT`."""
    rng = np.random.default_rng(t)
    return drawn(lambda shape, _, dtype: jnp.asarray(rng.choice([-1.0, 1.0], shape), dtype))


def normal(t: int) -> Tree:
    """The gradients of step t for `GENERAL`; torch's have the parameter's dtype."""
    rng = np.random.default_rng(t)
    return drawn(lambda shape, dtype, _: jnp.asarray(rng.standard_normal(shape), dtype))


def wide(x: Any) -> Any:
    return np.asarray(x).astype(np.float64)


def by_the_oracle(recipe: Recipe, params: Tree, grads: list[Tree], rounding: str, seed: int) -> list[Any]:
    """(Weight, compensation) of each leaf after these gradients."""
    out = []
    for index, p in enumerate(jax.tree.leaves(params)):
        dtype, x = p.dtype.name, wide(p)
        state = oracle.init(recipe, x, dtype=dtype, rounding=rounding)
        for grad in grads:
            how: dict[str, Any] = {"dtype": dtype, "rounding": rounding, "seed": seed, "index": index}
            x, state = oracle.step(recipe, x, wide(jax.tree.leaves(grad)[index]), state, **how)
        out.append((x, state.compensation))
    return out


def torch_tensor(x: Any, dtype: str) -> torch.Tensor:
    return torch.tensor(np.asarray(x).astype(np.float32)).to(getattr(torch, dtype))


def torch_optimizer(recipe: Recipe, params: Tree, rounding: Any, seed: int) -> tuple[Adafactor, list[Any]]:
    ps = [torch.nn.Parameter(torch_tensor(p, p.dtype.name)) for p in jax.tree.leaves(params)]
    return Adafactor(ps, recipe=recipe, rounding=rounding, seed=seed, foreach=False), ps


def torch_step(optimizer: Adafactor, ps: list[Any], grads: Tree) -> None:
    for p, g in zip(ps, jax.tree.leaves(grads), strict=True):
        p.grad = torch_tensor(g, str(p.dtype).removeprefix("torch."))
    optimizer.step()
