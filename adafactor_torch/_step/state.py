"""The state of parameters: makes it, brings it into the layout of the group, and counts steps."""

import sys
from typing import Any

import torch
from torch import Tensor

from .._sharding.dtensor import is_placed_like_state, local_of, new_state_tensor, placed_like_state
from .._task.memory import outside_modes, zeros_like
from .._task.task import COUNT, ParamConfig, State, Task


def counter_of(state: State) -> Any:
    """The steps that a parameter has taken as a NumPy array on the same memory, None before the first.

    So no operator runs and nothing can be a device read; a count on a device is copied, and waited for.
    """
    step = state.get("step")
    if step is None or not step.is_cpu:
        return None if step is None else step.cpu().numpy()
    with outside_modes():
        return step.numpy()


def step_count(state: State) -> int:
    """The steps that a parameter has taken, of which the host may know."""
    counter = counter_of(state)
    return 0 if counter is None else int(counter)


def count(tasks: list[Task]) -> None:
    """One step more of each, on the CPU or, with one operation on each, on the devices that count them."""
    on_device: dict[torch.device, list[Tensor]] = {}
    for task in tasks:
        if task.t:
            _write_count(task, task.t)
        else:
            on_device.setdefault(task.p.device, []).append(task.state["step"])
    for steps in on_device.values():
        torch._foreach_add_(steps, 1)


def take_back_count(tasks: list[Task]) -> None:
    """The same steps are taken back."""
    for task in tasks:
        if task.t:
            _write_count(task, task.t - 1)
        else:
            task.state["step"] -= 1


def _write_count(task: Task, t: int) -> None:
    counter = counter_of(task.state) if task.counter is None else task.counter
    counter.fill(t)


def ensure_state(state: State, config: ParamConfig, p: Tensor, on_device: bool) -> State:
    """The state of one parameter with the entries that its config keeps, those that are new at zero."""
    place = p.device if on_device else "cpu"  # where reading it is no transfer
    if "step" not in state:
        state["step"] = _no_steps(p, on_device)
    else:  # of an old version it is float32
        state["step"] = state["step"].to(place, COUNT)
    layout = config.layout
    for entry in [entry for entry in state if entry != "step" and entry not in layout]:
        del state[entry]  # of a field that has been changed since
    for entry in [entry for entry, x in state.items() if x.is_inference()]:
        state[entry] = state[entry].clone()  # made in inference mode, outside of which nobody may write it
    for entry, (shape, dtype) in layout.items():
        if entry not in state or state[entry].shape != shape:
            state[entry] = new_state_tensor(p, entry, config.plan, shape, dtype)
            continue
        if state[entry].dtype != dtype:
            state[entry] = state[entry].to(dtype)
        if not is_placed_like_state(state[entry], p, entry, config.plan):
            state[entry] = placed_like_state(state[entry], p, entry, config.plan)
    return state


def _no_steps(p: Tensor, on_device: bool) -> Tensor:
    """A counter at zero, beside p or where the host reads it. That one is a tensor in memory whatever p is."""
    if on_device:
        return zeros_like(local_of(p), (), COUNT)
    with outside_modes():
        return torch.zeros((), dtype=COUNT, device="cpu")


def is_asked_for_state() -> bool:
    """Whether a step is that of torch.distributed.checkpoint, which wants a new optimizer to have a state to look at.

    Its gradients are zeros and it sets lr = 0, but to decay weights by anything else would move them.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    asks = getattr(getattr(module, "_init_optim_state", None), "__code__", None)
    frame = sys._getframe() if asks is not None else None
    while frame is not None and frame.f_code is not asks:
        frame = frame.f_back
    return frame is not None
