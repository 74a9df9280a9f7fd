"""Pairs of fields and options by the Triton kernels, which whole parameters on the CPU are given to here.

A step of one parameter takes the interpreter a tenth of a second. So there is one parameter, and by default every sixth
configuration; `--thorough` steps all of them.
"""

import functools
from collections.abc import Iterator, Sequence

import pytest
import torch

from adafactor_torch._backends.cpp.compiled import Compiled
from adafactor_torch._backends.triton import launch_group as _fused
from adafactor_torch._task.task import Amp, Work
from parity_tests import field_pairs as pairs
from parity_tests.profiles import examples

CASES = pairs.Cases(every=examples(6, 1), names=("a",))


Prepared = tuple[list[_fused.Group], Amp]


def _ready(compiled: Compiled, works: list[Work], amp: Amp, steady: object) -> Prepared:
    return _fused.ready(works, amp), amp


def _step(compiled: Compiled, prepared: Prepared, works: list[Work]) -> Iterator[Sequence[Work]]:
    groups, amp = prepared
    yield from _fused.steps(groups, works, amp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pairs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "ready", functools.partialmethod(_ready))
    monkeypatch.setattr(Compiled, "step", functools.partialmethod(_step))
    found = pairs.wrong(CASES, dtype, fused=True)
    assert not found, "\n".join([f"{len(found)} differ", *found[:5]])
