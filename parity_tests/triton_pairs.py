"""All pairs of fields and options by the Triton kernels, which whole parameters on the CPU are given to here."""

import functools

import pytest
import torch

from adafactor_torch import _fused
from adafactor_torch._compiled import Compiled
from adafactor_torch._phases import Amp, Work
from parity_tests import field_pairs as pairs


def _step(compiled: Compiled, works: list[Work], amp: Amp, steady: object) -> bool:
    _fused.step(works, amp)
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pairs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "step", functools.partialmethod(_step))
    found = pairs.wrong(dtype, False, fused=True)
    assert not found, "\n".join([f"{len(found)} differ", *found[:5]])
