"""Gives the tasks of shared parameters the local tensors of this process: gradients, parameters and states."""

import operator
from collections.abc import Sequence
from typing import Any

import torch

from .._task.shard import Shard
from .._task.task import NO_GRADIENT, ParamConfig, Task
from .dtensor import local_of, shard_of
from .gradient_placements import GradientPlacements
from .process_groups import ProcessGroups
from .step_mask import StepMask


class LocalTensors:
    """What is remembered of shared parameters between steps."""

    def __init__(self, process_groups: ProcessGroups) -> None:
        self._process_groups, self._gradients = process_groups, GradientPlacements()
        self._shards: dict[tuple[Any, ...], Shard] = {}
        self._tasks: list[Task] = []  # of the last step

    def receive(self, tasks: list[Task]) -> None:
        """Give tasks the gradients of the elements that this process holds, before any of them is counted.

        Args:
            tasks: of all groups, in the order of the parameters, those without a gradient here too.

        Raises:
            RuntimeError: processes disagree about how one arrives.
            ValueError: one arrives in a way that it cannot be added up.
        """
        if not self.are_again(tasks):
            for task in tasks:
                task.shard = self._shard(task.param, task.config)
        meshes = {id(task.shard.mesh): task.shard.mesh for task in tasks}.values()
        self._process_groups.begin((mesh, range(mesh.ndim)) for mesh in meshes)
        for task, grad in zip(tasks, self._gradients.of(tasks, self._process_groups), strict=True):
            task.has_grad = grad is not None
            task.grad = NO_GRADIENT if grad is None else grad

    def hold(self, tasks: list[Task], again: bool) -> None:
        """Give tasks, whose states are complete now, the local tensors of their parameters and states.

        `again` says that these are the tasks of the last step.
        """
        if not again:
            for task in tasks:
                _hold(task)
        self._tasks = []
        for task in tasks:
            if not task.config.by_address:
                task.p.copy_(local_of(task.param))
            if not task.has_grad:
                task.grad = task.p.new_zeros(()).expand(task.p.shape)

    def put_back(self, tasks: list[Task], mask: StepMask) -> None:
        """After a step: write what was stepped in a copy to where it belongs, and let go of the gradients."""
        for task in tasks:
            if not task.config.by_address:
                local, applies = local_of(task.param), mask.applies([task])
                local.copy_(task.p if applies is None else torch.where(applies, task.p, local))
            task.grad = NO_GRADIENT
        self._tasks = tasks

    def forget(self) -> None:
        """Hold no task of the last step."""
        self._tasks = []

    def are_again(self, tasks: Sequence[Task]) -> bool:
        """Whether these are the tasks of the last step; a step that had to look at all of them makes new ones."""
        return len(tasks) == len(self._tasks) and all(map(operator.is_, tasks, self._tasks))

    def _shard(self, p: Any, config: ParamConfig) -> Shard:
        key = id(p.device_mesh), p.placements, config.plan
        known = self._shards.get(key)
        if known is None:
            groups = self._process_groups.of(p.device_mesh, range(p.device_mesh.ndim))
            known = self._shards[key] = shard_of(p, config.plan, groups)
        return known


def _hold(task: Task) -> None:
    task.p, task.state = local_of(task.param), {name: local_of(x) for name, x in task.stored.items()}
    if not task.config.by_address:  # of a class that only torch's operators can read: a copy is stepped
        task.p = torch.empty(task.p.shape, dtype=task.p.dtype, device=task.p.device)
