"""What a path is given of a sharded parameter: the part that this process holds."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._task.task import NO_GRADIENT, Work
from .dtensor import Lay, local_of


class Held(NamedTuple):
    """The part of a parameter that this process holds, in one step."""

    work: Work  # its tensors are local ones; the gradient is of zeros where there is none here
    lay: Lay  # of the whole parameter; `lay.plan` is the plan of the part
    place: int  # of the parameter among all of the step, by which `Flags` knows it
    of: Tensor  # the whole parameter

    def put_back(self, good: Tensor | None) -> None:
        """Write a part that has been stepped in a copy where it belongs."""
        part = local_of(self.of)
        part.copy_(self.work.p if good is None else torch.where(good, self.work.p, part))


def held(work: Work, lay: Lay, place: int) -> Held:
    """That of a parameter, still without what is of a step alone."""
    state, p = {name: local_of(x) for name, x in work.state.items()}, local_of(work.p)
    if not work.setting.by_address:  # of a class that only torch's operators can read
        p = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    here = Work(p, NO_GRADIENT, state, work.setting, work.now, maximize=work.maximize, fused=work.fused)
    here.telemetry = work.telemetry
    return Held(here, lay, place, work.p)


def take(one: Held, work: Work, grad: Tensor | None) -> None:
    """Take over the numbers of a step, and this part of the gradient, None where there is none here."""
    here = one.work
    if not here.setting.by_address:
        here.p.copy_(local_of(one.of))
    here.grad = here.p.new_zeros(()).expand(here.p.shape) if grad is None else grad
    here.now, here.key, here.t = work.now, work.key, work.t
