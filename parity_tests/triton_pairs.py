"""Pairs of fields and options by the Triton kernels, which whole parameters on the CPU are given to here.

A step of one parameter takes the interpreter a tenth of a second. So there is one parameter, and by default every sixth
configuration; `--thorough` steps all of them.
"""

import pytest
import torch

from parity_tests import field_pairs as pairs
from parity_tests.profiles import examples

CASES = pairs.Cases(every=examples(6, 1), names=("a",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("by_triton")
def test_pairs(dtype: torch.dtype) -> None:
    found = pairs.wrong(CASES, dtype, fused=True)
    assert not found, "\n".join([f"{len(found)} differ", *found[:5]])
