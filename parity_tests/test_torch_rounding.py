"""16-bit weights of the torch optimizer are rounded as the oracle rounds them, with the same random bits."""

from typing import Any

import numpy as np
import pytest
import torch

from adafactor_spec import Recipe, oracle
from adafactor_torch import Adafactor

from .torch_runs import values

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHAPES = ((60, 50), (200,), (60, 50), (3, 40, 20))
RECIPE = Recipe(lr=1e-3, relative_step=False, weight_decay=0.1)
# The torch step is computed in float32, the oracle's in float64: a few 2^-24 of the weight apart, where a bfloat16
# spacing is 2^-8 of it. For 2^-16 of all weights, times a few, that decides which neighbour is taken; 2^-9 leaves two
# orders. Another seed, index or step decides for one weight in ten and more.
TURNED = 2.0**-9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("path", PATHS)
def test_a_step_is_the_oracles(path: str, rounding: Any, dtype: str) -> None:
    kind = getattr(torch, dtype)
    ps = [torch.nn.Parameter(torch.tensor(values(shape, i)).to(kind)) for i, shape in enumerate(SHAPES)]
    groups = [{"params": ps[:1]}, {"params": ps[1:]}]
    optimizer = Adafactor(groups, recipe=RECIPE, rounding=rounding, seed=123, **PATHS[path])
    for t in range(1, 4):
        before = [(p.detach().double().numpy(), dict(optimizer.state.get(p, {}))) for p in ps]
        for i, p in enumerate(ps):
            p.grad = torch.tensor(values(SHAPES[i], 10 * t + i)).to(kind)
        states = [{name: x.double().numpy() for name, x in kept.items() if name != "step"} for _, kept in before]
        optimizer.step()
        for index, p in enumerate(ps):
            start = oracle.init(RECIPE, before[index][0], dtype=dtype, rounding=rounding)
            state = oracle.State(t - 1, **states[index]) if t > 1 else start
            assert p.grad is not None
            how: dict[str, Any] = {"dtype": dtype, "rounding": rounding, "seed": 123, "index": index}
            expected, after = oracle.step(RECIPE, before[index][0], p.grad.double().numpy(), state, **how)
            found = p.detach().double().numpy()
            assert np.mean(found != expected) <= TURNED
            if rounding == "kahan":
                whole = found + optimizer.state[p]["compensation"].double().numpy()
                spacing = torch.finfo(kind).eps * np.max(np.abs(expected))
                # Half a spacing in 8 bits: what is cut off is at most half a spacing and has bfloat16's precision.
                assert np.max(np.abs(whole - (expected + after.compensation))) <= spacing * 2.0**-9


@pytest.mark.parametrize("path", PATHS)
def test_a_bfloat16_weight_of_one_moves_as_its_float32_twin_does(path: str) -> None:
    """At lr 1e-4, in 50 steps: on average with "stochastic", closely with "kahan", not at all with "nearest"."""

    def moved(dtype: torch.dtype, rounding: Any) -> torch.Tensor:
        p = torch.nn.Parameter(torch.ones(200, 250, dtype=dtype))
        options: dict[str, Any] = {"relative_step": False, "multiply_by_parameter_scale": False, "weight_decay": 0.5}
        optimizer = Adafactor([p], lr=1e-4, rounding=rounding, **options, **PATHS[path])
        for _ in range(50):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return 1.0 - p.detach().double()

    twin = moved(torch.float32, "nearest")
    assert twin.mean() == pytest.approx(50 * 1.5e-4, rel=1e-2)  # the decay is half as large as the step
    assert not moved(torch.bfloat16, "nearest").any()
    # A rounding of a step s at spacing h has variance s (h - s) <= s h; below 1, h = 2^-8. Five standard errors.
    error = 5 * float((twin.mean() * 2.0**-8 / twin.numel()) ** 0.5)
    assert abs(moved(torch.bfloat16, "stochastic").mean() - twin.mean()) <= error
    # Half a spacing is cut off at the end; what is kept of it, in 8 bits, is wrong by 2^-18 a step at most.
    assert (moved(torch.bfloat16, "kahan") - twin).abs().max() <= 2.0**-9 + 50 * 2.0**-18
