"""What a step by the Triton kernels promises beside its numbers."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adafactor_spec import Recipe, factoring
from adafactor_spec.factoring import explicit
from adafactor_torch._backends import reference as _reference
from adafactor_torch._backends.triton import launch_group as _launch_group
from adafactor_torch._backends.triton.launch_group import step
from adafactor_torch._task.task import Amp, Task
from parity_tests.triton_runs import (
    DEVICE,
    FEW,
    RECIPES,
    array,
    assert_near,
    columns_on_device,
    few,
    kept,
    on_device,
    set_step,
    work_of,
    works_of,
)

# ---------------------------------------------------------------------------------------------- one of many, and alone


def test_a_parameter_alone_is_the_same_bits() -> None:
    """Gradient release steps one parameter at a time, in any order."""
    shapes = [(4, 6), (300, 20), (5,), (4, 6), (3, 2, 3, 3)]
    together, alone, again = (few("average of updates", torch.bfloat16, shapes, rounding="stochastic") for _ in "123")
    for t in (1, 2):
        set_step(together, t)
        set_step(again, t)
        step(together)
        step(again)
        for index in reversed(range(len(shapes))):
            set_step([alone[index]], t, [index])
            step([alone[index]])
    assert [kept(task) for task in together] == [kept(task) for task in alone] == [kept(task) for task in again]


def test_gradients_may_be_other_tensors_at_each_step() -> None:
    tasks, plain = few("paper"), few("paper")
    for t in (1, 2, 3):
        for each in (tasks, plain):
            set_step(each, t)
        for task in tasks:
            task.grad = task.grad.clone()
        step(tasks)
        step(plain)
    assert [kept(task) for task in tasks] == [kept(task) for task in plain]


def test_the_tables_go_with_the_parameter() -> None:
    tasks = few("paper", torch.float32)
    set_step(tasks, 1)
    step(tasks)
    tables = [weakref.ref(group) for group in _launch_group._groups(tasks, Amp(), False)]
    assert all(table() is not None for table in tables)
    tasks.clear()
    gc.collect()
    assert all(table() is None for table in tables)


@pytest.mark.parametrize("name", ["paper", "not factored"])
def test_launches_do_not_depend_on_how_many_parameters_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Any] = []
    monkeypatch.setattr(_launch_group, "launch", lambda kernel, *rest: launches.append(kernel))
    counts = []
    for number in (3, 30):
        tasks = few(name, shapes=[(4, 6)] * number)
        set_step(tasks, 1)
        launches.clear()
        step(tasks)
        counts.append(len(launches))
    assert counts == ([6, 6] if name == "paper" else [4, 4])


def test_nothing_is_read_back() -> None:
    tasks = few("paper", telemetry=True, skipped=True)
    set_step(tasks, 1)
    _launch_group.step(tasks)
    with NoReads():
        for task in tasks:
            task.grad = task.grad.clone()
        for group in _launch_group._groups(tasks, Amp(), False):
            group._tell([tasks[i] for i in group.members], False)


@pytest.mark.parametrize("layout", ["contiguous", "every second"])
def test_autograd_sees_that_weights_are_written(layout: str) -> None:
    """The kernels write them without torch, which by itself would take what a graph has saved for unchanged."""
    (task,) = tasks = few("paper", torch.float32, [(4, 6)])
    if layout != "contiguous":
        (task,) = tasks = [work_of(task.config.recipe, LAYOUTS[layout](task.p))]
    x = torch.ones((4, 6), device=DEVICE, requires_grad=True)
    loss = (x * task.p).sum()
    set_step(tasks, 1)
    step(tasks)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "equal", "nonzero"), func
        return func(*args, **(kwargs or {}))


# -------------------------------------------------------------------------------------- what a step is told and tells


@pytest.mark.parametrize("name", ["paper", "decay before scale", "no clipping"])
def test_telemetry(name: str) -> None:
    fields = {**RECIPES[name], "factoring": explicit(1, 2, 0)}
    recipe = Recipe(lr=0.1, **fields)
    (task,) = tasks = works_of(recipe, [(3, 4, 5)], torch.float64, telemetry=True)
    (reference,) = works_of(recipe, [(3, 4, 5)], torch.float64, telemetry=True)
    for t in (1, 2):
        set_step(tasks, t)
        set_step([reference], t)
        step(tasks)
        _reference.update(reference)
    assert task.telemetry is not None and reference.telemetry is not None
    assert_near(task.telemetry, array(reference.telemetry), 1e-6 * float(reference.telemetry.abs().max()), "telemetry")


@pytest.mark.parametrize(
    ("name", "bad", "dtype"),
    [
        ("paper", float("inf"), torch.int64),
        ("gradients and amsgrad", float("-inf"), torch.int32),
        ("not factored", float("nan"), torch.int64),
    ],
)
def test_a_gradient_that_is_not_finite_is_left_out(name: str, bad: float, dtype: torch.dtype) -> None:
    tasks, other = few(name, skipped=True, telemetry=True), few(name)
    for task in tasks:
        task.skipped = torch.zeros(1, dtype=dtype, device=DEVICE)
    for each in (tasks, other):
        set_step(each, 1)
        step(each)
    before = kept(tasks[0])
    for each in (tasks, other):
        set_step(each, 2)
    tasks[0].grad.view(-1)[-1] = bad
    step(tasks)
    step(other[1:])
    assert kept(tasks[0]) == before
    assert [kept(task) for task in tasks[1:]] == [kept(task) for task in other[1:]]
    assert [int(task.skipped) for task in tasks if task.skipped is not None] == [1, 0, 0]


@pytest.mark.parametrize("name", ["paper", "average of updates"])
def test_found_inf_leaves_everything_as_it_was(name: str) -> None:
    tasks = few(name, shapes=[*FEW, (0, 3)], telemetry=True)
    set_step(tasks, 1)
    before = [kept(task) for task in tasks]
    found = torch.ones((), device=DEVICE)
    for task in tasks:
        task.state["step"] += 1
    step(tasks, Amp(None, found))
    assert [kept(task) for task in tasks] == before
    assert all(task.telemetry is not None and not task.telemetry.any() for task in tasks)
    found.zero_()
    step(tasks, Amp(None, found))
    assert [kept(task) for task in tasks] != before


def test_gradients_are_unscaled() -> None:
    tasks, plain = few("decay of gradients"), few("decay of gradients")
    for each in (tasks, plain):
        set_step(each, 1)
    for task in tasks:
        task.grad *= 1024.0
    step(tasks, Amp(torch.full((), 1024.0, device=DEVICE), None))
    step(plain)
    assert [kept(task) for task in tasks] == [kept(task) for task in plain]


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["average of updates", "amsgrad", "decay by one"])
@pytest.mark.parametrize("own", [False, True], ids=["numbers shared", "numbers of each parameter"])
def test_numbers_and_keys_may_be_tensors(name: str, own: bool) -> None:
    tasks, plain = (few(name, torch.bfloat16, rounding="stochastic") for _ in "12")
    for t in (1, 2):
        for each in (tasks, plain):
            set_step(each, t)
        tell_by_tensors(tasks, own)
        step(tasks)
        step(plain)
    assert [kept(task) for task in tasks] == [kept(task) for task in plain]


def tell_by_tensors(tasks: Sequence[Task], own: bool) -> None:
    keys = torch.tensor([task.key for task in tasks], device=DEVICE).to(torch.int32)
    nows = columns_on_device([task.now for task in tasks]) if own else [on_device(tasks[0].now)] * len(tasks)
    for task, key, now in zip(tasks, keys, nows, strict=True):
        task.key, task.now = key, now


class Operators(TorchDispatchMode):
    """Counts what torch is asked to do."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_operators_do_not_depend_on_how_many_parameters_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch_group, "launch", lambda *_: None)
    counts = []
    for number in (3, 30):
        tasks = few("paper", torch.bfloat16, [(4, 6)] * number, rounding="stochastic")
        set_step(tasks, 1)
        tell_by_tensors(tasks, own=True)
        step(tasks)
        with Operators() as operators:
            step(tasks)
        counts.append(operators.count)
    assert counts[0] == counts[1] > 0


# --------------------------------------------------------------------------------------------------- memory layouts

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: torch.stack([x, x], dim=-1).flatten(-2)[..., ::2],
}


@pytest.mark.sampled
@pytest.mark.parametrize("rule", [factoring.last_two, factoring.as_matrix, factoring.no_factoring], ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept_and_do_not_matter(layout: str, rule: factoring.Rule) -> None:
    recipe, shape = Recipe(lr=0.1, factoring=rule, **RECIPES["gradients and amsgrad"]), (4, 3, 2, 5)
    (plain,) = works_of(recipe, [shape], torch.bfloat16, rounding="stochastic")
    laid = work_of(recipe, LAYOUTS[layout](plain.p.clone()), rounding="stochastic")
    assert not laid.p.is_contiguous()
    where = (laid.p.stride(), laid.p.data_ptr())
    for t in (1, 2):
        set_step([laid], t)
        set_step([plain], t)
        laid.grad = LAYOUTS[layout](plain.grad) if t == 1 else plain.grad
        step([laid])
        step([plain])
    assert (laid.p.stride(), laid.p.data_ptr()) == where
    assert kept(laid) == kept(plain)
