"""Reuses the tasks of the step before, as long as nothing but values has changed.

Most steps have the same parameters, options and memory layouts as the step before, and new gradients. To check that
takes a few microseconds per parameter, a fraction of what it takes to build the tasks again.
"""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec import rounding_key

from .._param_groups import OPTIONS, Group, learning_rate, recipe_without_lr
from .._sharding.dtensor import is_dtensor, local_of, may_get_gradient
from .._task.memory import has_address
from .._task.task import NO_GRADIENT, State, Task
from .run import Assigned
from .state import counter_of
from .tasks import ConfigCache

_ADDRESS = Tensor.data_ptr


class TaskCache:
    """The tasks of a group on a CPU whose steps the host counts, and all that they were made from.

    Args:
        group: of the parameters.
        tasks: of those of its parameters that have a gradient, their states complete.
    """

    def __init__(self, group: Group, tasks: list[Task]) -> None:
        self.tasks = tasks
        self.assigned: Assigned | None = None  # the backends of those of the tasks that are whole
        self._form, self._options = recipe_without_lr(group), _options_of(group)
        by_parameter = {task.param: task for task in tasks}
        # A parameter that is listed twice has one task, so that its second place is None and `still_holds` never true.
        self._places = [by_parameter.pop(p, None) for p in group["params"]]
        # Held, so that no other tensor comes to have the address of one of these.
        self._held = [(local_of(task.param)._base, *task.stored.values()) for task in tasks]
        self._guards = [
            None if task is None else _guards(task.param, _grad_of(task), task.stored) for task in self._places
        ]
        for task in tasks:
            task.counter = counter_of(task.state)

    def still_holds(self, group: Group, first: int, states: dict[Tensor, State], configs: ConfigCache) -> bool:
        """Whether nothing but values has changed; then the tasks are those of the next step, not yet counted.

        `first` is the position of the group's first parameter among all parameters.

        Raises:
            ValueError: a function of t has left the range of its field.
        """
        same = self._form is recipe_without_lr(group) and self._options == _options_of(group)
        if not same or len(group["params"]) != len(self._places):
            return False
        for p, task, facts in zip(group["params"], self._places, self._guards, strict=True):
            grad = p.grad
            if (grad is None) != (task is None):
                return False
            if grad is None or task is None:
                if may_get_gradient(p):
                    return False
                continue
            # Another object may have the state and the memory of this one, but it has a version counter of its own.
            if p is not task.param or states.get(p) is not task.stored or grad.layout is not torch.strided:
                return False
            if facts != _guards(p, grad, task.stored):
                return False
            task.grad = grad
        self._number(group, first, configs)
        return True

    def _number(self, group: Group, first: int, configs: ConfigCache) -> None:
        lr, recipe, t = learning_rate(group), None, 0
        for place, task in enumerate(self._places):
            if task is not None:
                task.t = int(task.counter) + 1
                if task.config.recipe is not recipe or task.t != t:
                    recipe, t = task.config.recipe, task.t
                    now = configs.numbers(recipe, lr, t)
                task.now = now
                if task.config.rounds == "stochastic":
                    task.key = rounding_key(group["seed"], t, first + place)

    def forget_gradients(self) -> None:
        """Hold no gradient from one step to the next: whoever sets `grad` to None frees it."""
        for task in self.tasks:
            task.grad = NO_GRADIENT


def can_be_cached(group: Group, tasks: list[Task]) -> bool:
    """Whether a step of a group may be like the one before without a look at its values."""
    alike = all(task.param.is_cpu and task.t and _has_own_grad(task) and task.by_address for task in tasks)
    return group["nonfinite"] == "propagate" and alike


def _has_own_grad(task: Task) -> bool:
    """Whether the optimizer's parameter has a gradient here; one of a shared parameter may have been moved here."""
    return not task.shard.is_shared or task.param.grad is not None


def _grad_of(task: Task) -> Any:
    """The gradient as it arrives."""
    return task.param.grad if task.shard.is_shared else task.grad


def _options_of(group: Group) -> list[Any]:
    return [group[option] for option in OPTIONS]


def _guards(p: Tensor, grad: Tensor, state: State) -> tuple[Any, ...]:
    """What a step takes for granted of the tensors of one parameter. Any of it can change under the same object.

    `tensor.data = ...` changes all of it, `set_` and `resize_` sizes, strides and addresses.
    """
    if is_dtensor(p):
        return _facts_of_part(p, grad, state)
    return (*_facts_of_tensors(p, grad), *map(_ADDRESS, state.values()))


def _facts_of_part(p: Any, grad: Any, state: State) -> tuple[Any, ...]:
    part = local_of(p)
    # What is put in a part's place may have its address, but has a version counter of its own, that of its base.
    how = id(p.device_mesh), p.placements, grad.placements, id(part._base)
    addresses = [local_of(x).data_ptr() for name, x in state.items() if name != "step"]
    return (*how, *_facts_of_tensors(part, local_of(grad)), *addresses)


def _facts_of_tensors(p: Tensor, grad: Tensor) -> tuple[Any, ...]:
    return (
        *(p.data_ptr(), p.shape, p.stride(), p.dtype, p.device),
        *(p.is_neg(), grad.shape, grad.stride(), grad.dtype, grad.device, grad.is_neg(), has_address(grad)),
    )
