"""Every way to compute a step does the same with every field and option: all pairs of their values, on every path.

By default every pair stands in one of some sixty configurations; `--thorough` steps each one alone.
"""

from typing import Any

import pytest
import torch

from adafactor_torch._backends.eager import backend as _eager_backend

from . import field_pairs as pairs
from . import sharded_pairs
from .profiles import examples
from .two_processes import Ranks

PATHS: dict[str, dict[str, Any]] = {"stacks": {}, "small blocks": {}, "compiled": {"fused": True}}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CASES = pairs.Cases(one_by_one=bool(examples(0, 1)))


def test_every_pair_is_in_a_configuration() -> None:
    """Also each value of each field with an effect: what NEEDS says of it is in one, too."""
    packed = pairs.rows()
    assert len(packed) < 100
    for goal in pairs.goals():
        assert any(goal.items() <= row.items() for row in packed), goal
    assert all(pairs.recipe_of(row) is not None for row in packed)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_whole_parameters(path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "small blocks":
        monkeypatch.setattr(_eager_backend, "BLOCK", 40)
        monkeypatch.setattr(_eager_backend, "SMALL", 16)
    found = pairs.wrong(CASES, dtype, **PATHS[path])
    assert not found, "\n".join([f"{len(found)} differ", *found[:5]])


@pytest.mark.sampled
@pytest.mark.xdist_group("four_processes")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
def test_parts(four: Ranks, fused: bool, dtype: torch.dtype) -> None:
    for found in four(sharded_pairs.wrong, CASES, dtype, fused):
        assert not found, "\n".join([f"{len(found)} differ", *found[:5]])
