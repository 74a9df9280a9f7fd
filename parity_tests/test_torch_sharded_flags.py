"""Which sharded parameters take a step, and that a device is not waited for to know it: meta tensors have no values."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adafactor_spec import Recipe, factoring
from adafactor_torch._sharding.step_mask import StepMask
from adafactor_torch._task.shard import GroupKey, Shard
from adafactor_torch._task.task import NO_AMP, Amp, ParamConfig, Task

from .test_torch_numbers import NoReads

CONFIG = ParamConfig(Recipe(lr=0.1), factoring.plan(factoring.last_two, (4,)), "float32")
GROUPS: tuple[GroupKey, ...] = ((0, 1), "cpu"), ((0, 2), "cpu")
SHARD = Shard(CONFIG.plan, CONFIG.plan, {0: 0}, sizes=(2, 2), groups=GROUPS, mesh="the mesh")
MISSING: Any = None
STEPS = 2**24 + 2  # float32 has no number between this and 2^24
FINE, BAD = torch.ones(4), torch.tensor([1.0, torch.inf, 1.0, 1.0])


def task(skips: bool, t: int = 0, device: str = "cpu") -> Task:
    p = torch.ones(4, device=device)
    count = torch.full((), STEPS, dtype=torch.int64, device=device)
    made = Task(p, p, {"step": count}, CONFIG, CONFIG.recipe.at(1), t=t)
    made.skipped = torch.zeros((), dtype=torch.int64, device=device) if skips else None
    return made


def flags_of(tasks: list[Task], grads: list[Tensor | None], amp: Amp = NO_AMP) -> StepMask:
    for one, grad in zip(tasks, grads, strict=True):
        one.shard, one.has_grad = SHARD, grad is not None
        one.grad = one.grad if grad is None else grad
    return StepMask(tasks, amp)


def steps(tasks: list[Task]) -> list[int]:
    """1 where the step counts, 0 where it has been taken back."""
    return [int(one.state["step"]) - (STEPS - 1) for one in tasks]


@pytest.mark.parametrize("t", [0, 1], ids=["counted on a device", "counted on the host"])
def test_what_is_left_out_is_counted_and_taken_back(t: int) -> None:
    tasks = [task(skips, t) for skips in (True, True, False, True)]
    grads = [FINE, BAD, BAD, MISSING]
    flags = flags_of(tasks, grads)
    ((asked, groups, _),) = flags.partial_sums()
    assert asked.tolist() == [[1, 0], [1, 1], [1, 0], [0, 0]] and groups == GROUPS[:1]
    good = flags.applies(tasks)
    assert good is not None and good.tolist() == [True, False, True, False]  # who propagates is not left out
    flags.settle()
    assert steps(tasks) == [1, 0, 1, 0]
    assert [int(one.skipped) for one in tasks if one.skipped is not None] == [0, 1, 0]
    assert [one.t for one in tasks] == [t, 0, t, 0]


def test_another_process_may_have_the_gradient_or_a_bad_one() -> None:
    tasks = [task(True), task(True), task(False)]
    flags = flags_of(tasks, [FINE, MISSING, MISSING])
    ((asked, *_),) = flags.partial_sums()
    asked += torch.tensor([[1, 1], [1, 0], [1, 0]])
    flags.settle()
    assert steps(tasks) == [0, 1, 1]


def test_found_inf_leaves_out_every_parameter() -> None:
    tasks = [task(True), task(False)]
    flags = flags_of(tasks, [FINE, FINE], Amp(None, torch.ones(())))
    assert flags.partial_sums()[0].groups == GROUPS  # those too that hold the same part
    flags.settle()
    assert steps(tasks) == [0, 0]


def test_nobody_looks_at_a_gradient_twice() -> None:
    tasks = [task(True), task(True)]
    flags = flags_of(tasks, [BAD, FINE])
    flags.report(tasks, torch.tensor([False, True]))  # the opposite of what is there
    ((asked, *_),) = flags.partial_sums()
    assert asked[:, 1].tolist() == [0, 1]


def test_nothing_is_asked_where_nobody_doubts() -> None:
    tasks = [task(False), task(False)]
    flags = flags_of(tasks, [BAD, FINE])
    ((asked, *_),) = flags.partial_sums()
    assert asked.tolist() == [[1, 0], [1, 0]] and flags.applies(tasks) is None


class NoLists(TorchFunctionMode):
    """Refuses lists of the host that become tensors of a device, for which torch waits where nobody sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, device = func.__name__, torch.device((kwargs or {}).get("device") or "cpu")
        assert name not in ("tensor", "as_tensor") or device.type == "cpu", f"{name} on {device}"
        assert name not in ("__getitem__", "__setitem__") or not isinstance(args[1], list), f"{name} of a list"
        return func(*args, **(kwargs or {}))


class Operators(NoReads):
    """Counts what a device is asked to do, without views; refuses reads, and copies that are waited for."""

    VIEWS = ("select", "slice", "unbind", "view", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in self.VIEWS
        out = super().__torch_dispatch__(func, types, args, kwargs)
        devices = {x.device.type for x in (out, *args) if isinstance(x, Tensor) and x.numel() > 1}
        waits = len(devices) > 1 and not (kwargs or {}).get("non_blocking") and True not in args[2:]
        assert not waits, f"{func} moves values between host and device"
        return out


@pytest.mark.parametrize("found_inf", [False, True])
def test_a_device_is_not_waited_for_and_not_asked_for_each_parameter(found_inf: bool) -> None:
    counts = []
    for number in (2, 20):
        tasks = [task(True, device="meta") for _ in range(number)]
        grads = [one.grad for one in tasks]
        amp = Amp(None, torch.ones((), device="meta")) if found_inf else NO_AMP
        with NoLists(), Operators() as operators:
            flags = flags_of(tasks, [*grads[:-1], MISSING], amp)
            flags.partial_sums()
            assert flags.applies(tasks) is not None
            flags.settle()
        counts.append(operators.count)
    assert counts[0] == counts[1] > 0


def test_the_check_sees_a_copy() -> None:
    with Operators(), pytest.raises(AssertionError, match="between host and device"):
        torch.ones(3).to("meta")
    with NoLists(), pytest.raises(AssertionError, match="tensor on meta"):
        torch.tensor([1.0, 2.0], device="meta")
    with NoLists(), pytest.raises(AssertionError, match="of a list"):
        torch.ones(3, device="meta")[[0, 1]] = 0.0
