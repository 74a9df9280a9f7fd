"""All pairs of fields on sharded parameters, for the processes of a test."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from . import field_pairs as pairs
from . import sharded_runs as runs


def _laid(goal: pairs.Goal, index: int, whole: Tensor) -> Any:
    """By rows; whole on every process where the rule reshapes the parameter."""
    reshaped = pairs.chosen(goal)["factoring"] is pairs.AS_MATRIX and whole.ndim > 2
    return runs.laid("copies" if reshaped else "rows", index, whole)


def _part(x: Tensor, p: Any) -> Tensor:
    return runs.local(x) if isinstance(x, DTensor) else runs.part_of(x, p)


def wrong(cases: pairs.Cases, dtype: torch.dtype, fused: bool) -> list[str]:
    """What differs from the reference on whole parameters, in the part that this process holds."""
    return pairs.wrong(cases, dtype, laid=_laid, part=_part, fused=fused)
