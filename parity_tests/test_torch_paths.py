"""Every path computes what the plain one does, for every recipe, dtype, layout and option."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adafactor_spec import Recipe
from adafactor_torch import Adafactor

from .random_recipes import any_recipe, problems
from .torch_runs import FLOAT64

PATHS: dict[str, dict[str, Any]] = {"eager": {}, "compiled": {"fused": True}}
PLAIN: dict[str, Any] = {"foreach": False, "fused": False}
FUZZ = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def run(params: Any, grads: Any, dtype: torch.dtype, recipe: Recipe, **options: Any) -> Adafactor:
    """The optimizer after a step for each of `grads`."""
    tensors = {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in params.items()}
    optimizer = Adafactor(tensors.items(), recipe=recipe, **options)
    for now in grads:
        for name, p in tensors.items():
            p.grad = torch.tensor(now[name], dtype=dtype)
        optimizer.step()
    return optimizer


def assert_same(one: Adafactor, other: Adafactor, relative: float) -> None:
    """Parameters and state within `relative` of the largest element."""
    for p, q in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        pairs = {"p": (p.detach(), q.detach())} | {k: (v, other.state[q][k]) for k, v in one.state[p].items()}
        for name, (x, y) in pairs.items():
            x, y = x.double().numpy(), y.double().numpy()
            assert np.array_equal(np.isfinite(x), np.isfinite(y)), name
            deviation = float(np.max(np.abs(x - y), initial=0.0))
            assert deviation <= relative * float(np.max(np.abs(x), initial=0.0)), (name, tuple(p.shape), deviation)


@pytest.mark.parametrize("path", PATHS)
@FUZZ
@given(recipe=any_recipe(), problem=problems(), maximize=st.booleans())
def test_any_recipe_in_float64(path: str, recipe: Recipe, problem: Any, maximize: bool) -> None:
    plain = run(*problem, torch.float64, recipe, maximize=maximize, **PLAIN)
    assert_same(plain, run(*problem, torch.float64, recipe, maximize=maximize, **PATHS[path]), FLOAT64)
