"""What a path is given of a sharded parameter: the part that this process holds."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._task.task import NO_GRADIENT, Task
from .dtensor import Lay, local_of


class Held(NamedTuple):
    """The part of a parameter that this process holds, in one step."""

    task: Task  # its tensors are local ones; the gradient is of zeros where there is none here
    lay: Lay  # of the whole parameter; `lay.plan` is the plan of the part
    place: int  # of the parameter among all of the step, by which `StepMask` knows it
    of: Tensor  # the whole parameter

    def put_back(self, good: Tensor | None) -> None:
        """Write a part that has been stepped in a copy where it belongs."""
        part = local_of(self.of)
        part.copy_(self.task.p if good is None else torch.where(good, self.task.p, part))


def held(task: Task, lay: Lay, place: int) -> Held:
    """That of a parameter, still without what is of a step alone."""
    state, p = {name: local_of(x) for name, x in task.state.items()}, local_of(task.p)
    if not task.config.by_address:  # of a class that only torch's operators can read
        p = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    here = Task(p, NO_GRADIENT, state, task.config, task.now, maximize=task.maximize, fused=task.fused)
    here.telemetry = task.telemetry
    return Held(here, lay, place, task.p)


def take(one: Held, task: Task, grad: Tensor | None) -> None:
    """Take over the numbers of a step, and this part of the gradient, None where there is none here."""
    here = one.task
    if not here.config.by_address:
        here.p.copy_(local_of(one.of))
    here.grad = here.p.new_zeros(()).expand(here.p.shape) if grad is None else grad
    here.now, here.key, here.t = task.now, task.key, task.t
