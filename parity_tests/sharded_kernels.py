"""Sharded parameters by the Triton kernels, in Triton's interpreter: for processes that were started for it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adafactor_torch import _param_groups as _groups
from adafactor_torch import _saved_state
from adafactor_torch._backends.triton import TritonBackend
from adafactor_torch._step import driver as _driver
from adafactor_torch._step import tasks as _tasks

from . import sharded_behaviour as behaviour
from . import sharded_runs as runs
from .triton_runs import patch_once

_quick = functools.cache(patch_once)


def by_kernels(steps: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns where the kernels step every sharded parameter, and runs take so many steps."""
    _quick()
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(TritonBackend, "why_not", lambda _, task: None if task.shard.is_shared else "it is whole")
        patch.setattr(runs, "STEPS", steps)
        patch.setattr(behaviour, "SHAPES", behaviour.SOME)
        return function(*arguments)


def counted_on_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns where steps are counted as a GPU's would be."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_driver, _groups, _saved_state, _tasks):
            patch.setattr(module, "counts_on_device", lambda *_: True)
        return function(*arguments)
