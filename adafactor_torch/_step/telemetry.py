"""Tensors that show what the last step did with each parameter, on the devices of the parameters."""

import math
from typing import Any

import torch
from torch import Tensor

from .._param_groups import Group, named, recipe_without_lr
from .._sharding.dtensor import local_of
from .._task.memory import zeros_like
from .._task.task import ParamConfig, Task
from .tasks import ConfigCache
from .undo import Undo

_COLUMNS = ("step_size", "update_rms", "clip_factor", "parameter_rms")


class Telemetry:
    """Where steps write what they did with each parameter, and how many of its steps were left out."""

    def __init__(self) -> None:
        self.values: dict[Tensor, tuple[ParamConfig, Tensor]] = {}
        self.skipped: dict[Tensor, Tensor] = {}

    def of(self, task: Task, undo: Undo) -> Tensor:
        """Where a step writes what it did with a parameter."""
        known = self.values.get(task.param)
        if known is None or known[0] is not task.config:
            undo.entry(self.values, task.param, task.param)
            known = self.values[task.param] = task.config, _nothing(task.config, task.param)
        return known[1]

    def skips_of(self, p: Tensor, undo: Undo | None = None) -> Tensor:
        """The number of steps of a parameter that have been left out."""
        if p not in self.skipped:
            if undo is not None:
                undo.entry(self.skipped, p, p)
            self.skipped[p] = torch.zeros((), dtype=torch.int64, device=p.device)
        return self.skipped[p]

    def by_name(self, groups: list[Group], configs: ConfigCache) -> dict[str, dict[str, Tensor]]:
        """See `Adafactor.telemetry`."""
        found: dict[str, dict[str, Tensor]] = {}
        for number, group in enumerate(groups):
            for place, (name, p) in enumerate(named(group)):
                if group["telemetry"] and (p in self.values or p in self.skipped):
                    if p not in self.values:  # every step so far was left out
                        config = configs.of(p, name, recipe_without_lr(group), group["rounding"])
                        self.values[p] = config, _nothing(config, p)
                    config, values = self.values[p]
                    shape = _batch_shape(config, p)
                    columns = {of: values[:, i].reshape(shape) for i, of in enumerate(_COLUMNS)}
                    who = name or f"{number}.{place}"
                    who = f"{number}.{who}" if who in found else who  # two models, say, that have a "bias" each
                    found[who] = columns | {"skipped": self.skips_of(p)}
        return found


def _nothing(config: ParamConfig, p: Tensor) -> Tensor:
    count = math.prod(_batch_shape(config, p))
    return zeros_like(local_of(p), (count, len(_COLUMNS)), torch.float32)


def _batch_shape(config: ParamConfig, p: Tensor) -> list[Any]:
    """The sizes of the batch axes; of those of a sharded one, what this process holds."""
    shape = local_of(p).shape
    return [shape[axis] for axis in config.plan.batch]
