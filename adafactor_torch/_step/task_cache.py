"""A step like the one before: what was found out of a group's parameters, for as long as it holds.

Most steps differ from the last one in values alone: same parameters, same options, same layouts, new gradients. To see
that takes some microseconds per parameter, a fraction of what it takes to decide everything again.
"""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec import rounding_key

from .._param_groups import OPTIONS, Group, form_of, lr_of
from .._sharding.dtensor import is_dtensor, local_of, takes_part
from .._task.memory import has_address
from .._task.task import NO_GRADIENT, State, Work
from .state import counter_of
from .tasks import Settings

_ADDRESS = Tensor.data_ptr


class Steady:
    """The works of a group on a CPU whose steps the host counts, and all that they were made from.

    Args:
        group: of the parameters.
        works: of those of its parameters that have a gradient, their states complete.
    """

    def __init__(self, group: Group, works: list[Work]) -> None:
        self.works = works
        self.table: Any = None  # what a path has made of the works
        self._form, self._options = form_of(group), _options_of(group)
        by_parameter = {work.p: work for work in works}
        # A parameter that stands twice in its group has one work; then no step is taken for one like this.
        self._places = [by_parameter.pop(p, None) for p in group["params"]]
        # Held, so that no other tensor comes to have the address of one of these.
        self._held = [(local_of(work.p)._base, *work.state.values()) for work in works]
        self._facts = [None if work is None else _facts(work.p, work.grad, work.state) for work in self._places]
        for work in works:
            work.counter = counter_of(work.state)

    def again(self, group: Group, first: int, states: dict[Tensor, State], settings: Settings) -> bool:
        """Whether nothing but values has changed; then the works are those of the next step, not yet counted.

        `first` is the position of the group's first parameter among all parameters.

        Raises:
            ValueError: a function of t has left the range of its field.
        """
        same = self._form is form_of(group) and self._options == _options_of(group)
        if not same or len(group["params"]) != len(self._places):
            return False
        for p, work, facts in zip(group["params"], self._places, self._facts, strict=True):
            grad = p.grad
            if (grad is None) != (work is None):
                return False
            if grad is None or work is None:
                if takes_part(p):
                    return False
                continue
            # Another object may have the state and the memory of this one, but it has a version counter of its own.
            if p is not work.p or states.get(p) is not work.state or grad.layout is not torch.strided:
                return False
            if facts != _facts(p, grad, work.state):
                return False
            work.grad = grad
        self._number(group, first, settings)
        return True

    def _number(self, group: Group, first: int, settings: Settings) -> None:
        lr, recipe, t = lr_of(group), None, 0
        for place, work in enumerate(self._places):
            if work is not None:
                work.t = int(work.counter) + 1
                if work.setting.recipe is not recipe or work.t != t:
                    recipe, t = work.setting.recipe, work.t
                    now = settings.numbers(recipe, lr, t)
                work.now = now
                if work.setting.stochastic:
                    work.key = rounding_key(group["seed"], t, first + place)

    def forget_gradients(self) -> None:
        """Hold no gradient from one step to the next: whoever sets `grad` to None frees it."""
        for work in self.works:
            work.grad = NO_GRADIENT


def can_be_steady(group: Group, works: list[Work]) -> bool:
    """Whether a step of a group may be like the one before without a look at its values."""
    alike = all(work.p.is_cpu and work.t and not work.missing and work.by_address for work in works)
    return group["nonfinite"] == "propagate" and alike


def _options_of(group: Group) -> list[Any]:
    return [group[option] for option in OPTIONS]


def _facts(p: Tensor, grad: Tensor, state: State) -> tuple[Any, ...]:
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
