"""Which sharded parameters take a step, and that a device is not waited for to know it: meta tensors have no values."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adafactor_spec import Recipe, factoring
from adafactor_torch._sharding.step_mask import Flags
from adafactor_torch._task.task import NO_AMP, Amp, Setting, Work

from .test_torch_numbers import NoReads

SETTING = Setting(Recipe(lr=0.1), factoring.plan(factoring.last_two, (4,)), "float32")
LAY: Any = SimpleNamespace(mesh="the mesh", dims={0: 0}, several=(0, 1))
WIRES: Any = SimpleNamespace(of=lambda mesh, dims: [tuple(dims)])
MISSING: Any = None
STEPS = 2**24 + 2  # float32 has no number between this and 2^24
FINE, BAD = torch.ones(4), torch.tensor([1.0, torch.inf, 1.0, 1.0])


def work(skips: bool, t: int = 0, device: str = "cpu") -> Work:
    p = torch.ones(4, device=device)
    count = torch.full((), STEPS, dtype=torch.int64, device=device)
    made = Work(p, p, {"step": count}, SETTING, SETTING.recipe.at(1), t=t)
    made.skipped = torch.zeros((), dtype=torch.int64, device=device) if skips else None
    return made


def flags_of(works: list[Work], grads: list[Tensor | None], amp: Amp = NO_AMP) -> Flags:
    return Flags(works, [LAY] * len(works), grads, WIRES, amp)


def steps(works: list[Work]) -> list[int]:
    """1 where the step counts, 0 where it has been taken back."""
    return [int(one.state["step"]) - (STEPS - 1) for one in works]


@pytest.mark.parametrize("t", [0, 1], ids=["counted on a device", "counted on the host"])
def test_what_is_left_out_is_counted_and_taken_back(t: int) -> None:
    works = [work(skips, t) for skips in (True, True, False, True)]
    grads = [FINE, BAD, BAD, MISSING]
    flags = flags_of(works, grads)
    ((asked, wires, _),) = flags.ask()
    assert asked.tolist() == [[1, 0], [1, 1], [1, 0], [0, 0]] and len(wires) == 1
    good = flags.good(range(4))
    assert good is not None and good.tolist() == [True, False, True, False]  # who propagates is not left out
    flags.settle()
    assert steps(works) == [1, 0, 1, 0]
    assert [int(one.skipped) for one in works if one.skipped is not None] == [0, 1, 0]
    assert [one.t for one in works] == [t, 0, t, 0]


def test_another_process_may_have_the_gradient_or_a_bad_one() -> None:
    works = [work(True), work(True), work(False)]
    flags = flags_of(works, [FINE, MISSING, MISSING])
    ((asked, *_),) = flags.ask()
    asked += torch.tensor([[1, 1], [1, 0], [1, 0]])
    flags.settle()
    assert steps(works) == [0, 1, 1]


def test_found_inf_leaves_out_every_parameter() -> None:
    works = [work(True), work(False)]
    flags = flags_of(works, [FINE, FINE], Amp(None, torch.ones(())))
    wires: Any = flags.ask()[0].wires
    assert wires == [(0, 1)]  # those too that hold the same part
    flags.settle()
    assert steps(works) == [0, 0]


def test_nobody_looks_at_a_gradient_twice() -> None:
    works = [work(True), work(True)]
    flags = flags_of(works, [BAD, FINE])
    flags.tell([0, 1], torch.tensor([False, True]))  # the opposite of what is there
    ((asked, *_),) = flags.ask()
    assert asked[:, 1].tolist() == [0, 1]


def test_nothing_is_asked_where_nobody_doubts() -> None:
    flags = flags_of([work(False)] * 2, [BAD, FINE])
    ((asked, *_),) = flags.ask()
    assert asked.tolist() == [[1, 0], [1, 0]] and flags.good([0, 1]) is None


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
        works = [work(True, device="meta") for _ in range(number)]
        grads = [one.grad for one in works]
        amp = Amp(None, torch.ones((), device="meta")) if found_inf else NO_AMP
        with NoLists(), Operators() as operators:
            flags = flags_of(works, [*grads[:-1], MISSING], amp)
            flags.ask()
            assert flags.good(range(number)) is not None
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
