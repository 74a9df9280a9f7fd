"""A step that fails has not happened: nothing is written or counted, and the run goes on as if without it."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adafactor_torch import Adafactor, release_gradients
from adafactor_torch._backends import reference as _reference
from adafactor_torch._backends.cpp import build as _build
from adafactor_torch._backends.cpp import table as _compiled_table
from adafactor_torch._backends.eager import backend as _eager_backend
from adafactor_torch._step import driver as _driver
from adafactor_torch._step import state as _state
from adafactor_torch._step import tasks as _tasks
from adafactor_torch._step.undo import Undo

from .torch_runs import advance, all_parameters, frozen, parameters, set_gradients, snapshot

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHAPES = ((6, 5), (12, 10), (7,), (6, 5), (6, 5))


class Broken(BaseException):
    """As KeyboardInterrupt is, it is no Exception."""


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(_eager_backend, "SMALL", 64)  # so that (12, 10) is stepped in blocks, and the others in stacks
    monkeypatch.setattr(_eager_backend, "BLOCK", 60)
    return PATHS[request.param]


def a_tenth_over_t(t: Any) -> Any:
    return 0.1 / t


def built(path: dict[str, Any], dtype: torch.dtype = torch.float32, **options: Any) -> Adafactor:
    """Two groups, the second one with a schedule; with a momentum."""
    params = parameters(dtype, SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": a_tenth_over_t}]
    return Adafactor(groups, **{"beta1": 0.9, "telemetry": True, **path, **options})


def all_of(optimizer: Adafactor) -> Any:
    return snapshot(optimizer), frozen(optimizer.telemetry())


# ------------------------------------------------------------------------------- what fails before anything is written


def bad_lr(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    optimizer.param_groups[1]["lr"] = -1.0


def raising_schedule(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    def schedule(t: Any) -> Any:
        raise ArithmeticError("no such step")

    optimizer.param_groups[1]["beta1"] = schedule


def answering(value: Any) -> Callable[..., None]:
    def spoil(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
        optimizer.param_groups[1]["weight_decay"] = lambda t: value

    spoil.__name__ = f"schedule says {value!r}"
    return spoil


def sparse(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    p = all_parameters(optimizer)[-1]
    p.grad = torch.ones_like(p).to_sparse()


def of_another_shape(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    p = all_parameters(optimizer)[-1]
    assert p.grad is not None
    p.grad.resize_(3, 2)


def of_another_dtype(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    p = all_parameters(optimizer)[-1]
    if hasattr(p, "grad_dtype"):
        p.grad_dtype = None
        p.grad = torch.ones_like(p, dtype=torch.int32)
    else:
        sparse(optimizer, patch)


def library(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    """The C++ that cannot be built, where warnings are errors; and what takes its place elsewhere."""

    def broken(unit: str = "whole") -> Any:
        raise Broken("no library")

    patch.setattr(_build, "library", broken)
    patch.setattr(_tasks, "is_fused", lambda group, device: True)
    optimizer._driver._caches.clear()  # so that the backends are chosen again


def no_memory_for_state(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    kept, left = _state.ensure_state, [3]

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return kept(*args)

    patch.setattr(_driver, "ensure_state", failing)
    for group in optimizer.param_groups:  # other states than before, so that they have to be completed
        group["amsgrad"] = True


def no_memory_for_the_step(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> Any:
        raise MemoryError

    patch.setattr(_reference, "computed", failing)
    patch.setattr(_eager_backend, "BlockedTask", failing)
    patch.setattr(_compiled_table.TaskTable, "begin", failing)


def counting(optimizer: Adafactor, patch: pytest.MonkeyPatch) -> None:
    count = Undo.count

    def failing(undo: Undo, tasks: Any) -> None:
        count(undo, tasks)
        raise Broken("an interrupt")

    patch.setattr(Undo, "count", failing)


EARLY = [
    *(bad_lr, raising_schedule, sparse, of_another_shape, of_another_dtype),
    *map(answering, (float("nan"), float("inf"), -0.5, 1j, "a word", [0.1, 0.2], None)),
    *(library, no_memory_for_state, no_memory_for_the_step, counting),
]


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("spoil", EARLY, ids=lambda spoil: spoil.__name__)
def test_nothing_has_happened_and_the_run_goes_on(spoil: Any, before: int, path: dict[str, Any]) -> None:
    """Weights, state, counters, learning rates and telemetry, bit for bit; then two good steps as of another run."""
    optimizer, other = built(path), built(path)
    for one in (optimizer, other):
        advance(one, 1, before)
    groups = [dict(group) for group in optimizer.param_groups]
    set_gradients(before + 1, all_parameters(optimizer))
    expected = all_of(optimizer)
    with pytest.MonkeyPatch.context() as patch:
        spoil(optimizer, patch)
        spoiled = frozen(optimizer.param_groups)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - errors of every kind, an interrupt too
            optimizer.step()
        assert frozen(optimizer.param_groups) == spoiled
    for group, was in zip(optimizer.param_groups, groups, strict=True):
        group.update(was)
    assert all_of(optimizer) == expected
    assert len(optimizer.state) == (len(SHAPES) if before else 0)
    for one in (optimizer, other):
        advance(one, before + 1, before + 2)
    assert all_of(optimizer)[0][:2] == all_of(other)[0][:2]
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in other.param_groups]


class FailsAt(TorchDispatchMode):
    """Fails at the operator with that number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if not self.left:
            raise Broken(func)
        return func(*args, **(kwargs or {}))


def one_by_one(optimizer: Adafactor) -> list[Any]:
    return [frozen([p, dict(optimizer.state.get(p, {}))]) for p in all_parameters(optimizer)]


@pytest.mark.parametrize("before", [0, 2])
def test_what_fails_amid_writing_leaves_each_parameter_stepped_and_counted_or_neither(
    before: int, path: dict[str, Any]
) -> None:
    """But for those that were being written: one, or the few of a stack, and of those the counter is as before."""
    start, good = (built(path, telemetry=False) for _ in "12")
    advance(start, 1, before)
    advance(good, 1, before + 1)
    old, new, found = one_by_one(start), one_by_one(good), set()
    lr = [group["lr"] for group in start.param_groups]
    for number in range(1, 2000, 7):
        optimizer = built(path, telemetry=False)
        advance(optimizer, 1, before)
        set_gradients(before + 1, all_parameters(optimizer))
        try:
            with FailsAt(number):
                optimizer._step_now()
        except Broken:
            now = one_by_one(optimizer)
            kinds = [0 if x == was else 1 if x == then else 2 for x, was, then in zip(now, old, new, strict=True)]
            torn = [p for p, kind in zip(all_parameters(optimizer), kinds, strict=True) if kind == 2]
            assert len({tuple(p.shape) for p in torn}) <= 1, "of one stack"
            assert all(int(optimizer.state[p]["step"]) == before for p in torn if p in optimizer.state)
            assert [group["lr"] for group in optimizer.param_groups] == lr
            found.update(kinds)
        else:
            break
    assert one_by_one(optimizer) == new and 0 in found


# ------------------------------------------------------------------------------------------- what is around a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("around", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_around_a_step_is_none_in_it(around: torch.dtype, dtype: torch.dtype, path: dict[str, Any]) -> None:
    """It lets no tensors be stacked that are neither float32 nor of its own dtype."""
    inside, outside = built(path, dtype), built(path, dtype)
    for t in range(1, 4):
        set_gradients(t, all_parameters(inside))
        with torch.autocast("cpu", around):
            if t < 3:
                inside.step()
            else:
                for p in all_parameters(inside):
                    inside.step_param(p)
    advance(outside, 1, 3)
    assert all_of(inside)[0][:2] == all_of(outside)[0][:2]


def test_the_closure_has_the_autocast_that_is_around() -> None:
    optimizer, seen = built({}), list[Any]()

    def closure() -> float:
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        set_gradients(1, all_parameters(optimizer))
        return 0.0

    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step(closure)
    assert seen == [torch.bfloat16]


def test_autocast_around_a_backward_pass_that_steps(path: dict[str, Any]) -> None:
    def stepped(enabled: bool) -> Any:
        optimizer = built(path, torch.bfloat16)
        params = all_parameters(optimizer)
        with release_gradients(params, optimizer):
            for t in (1, 2):
                loss = torch.stack([(t * p * p.detach()).sum() for p in params]).sum()
                with torch.autocast("cpu", torch.float16, enabled=enabled):
                    loss.backward()
                optimizer.step()
        return all_of(optimizer)

    assert stepped(True) == stepped(False)


def test_steps_in_inference_mode_are_steps(path: dict[str, Any]) -> None:
    """What is made there can be written outside: state, and state that was loaded there."""
    one, other = built(path), built(path)
    for t in range(1, 5):
        if t == 2:
            with torch.inference_mode():
                one.load_state_dict(one.state_dict())
        with torch.inference_mode(t < 3):
            set_gradients(t, all_parameters(one))
            one.step()
    advance(other, 1, 4)
    assert all_of(one) == all_of(other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_is_none_of_a_step(dtype: torch.dtype, path: dict[str, Any]) -> None:
    one, other = built(path), built(path)
    torch.set_default_dtype(dtype)
    try:
        advance(one, 1, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    advance(other, 1, 3)
    assert all_of(one) == all_of(other)


def test_a_warning_that_is_an_error_comes_after_the_step() -> None:
    """What it warns of has been found by the step, which is taken wholly."""
    optimizer, other = (built({"fused": True}) for _ in "12")
    for one in (optimizer, other):
        advance(one, 1, 2)
        for p in all_parameters(one):
            p.data.mul_(2.0)
        set_gradients(3, all_parameters(one))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"was written through \.data"):
            optimizer.step()
    with pytest.warns(UserWarning, match=r"was written through \.data"):
        other.step()
    for one in (optimizer, other):
        advance(one, 4, 4)
    assert all_of(optimizer) == all_of(other)


# --------------------------------------------------------------------------------------------------- gradient release


def test_a_failed_step_in_a_backward_pass_may_be_tried_again() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = Adafactor(model.parameters(), lr=0.1)
    with release_gradients(model, optimizer):
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match=r"^lr must be"):
            model(torch.ones(1, 3)).sum().backward()
        assert not optimizer.state
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in model.parameters()] == [1, 1]


# ---------------------------------------------------------------------------------------------- sharded parameters


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_a_sum_over_processes_that_fails_before_anything_is_written(mesh: Any, before: int, fused: bool) -> None:
    from torch.distributed.tensor import DTensor, Shard

    from adafactor_torch._sharding.process_groups import ProcessGroups

    def shared(x: Tensor) -> Tensor:
        return DTensor.from_local(x, mesh, [Shard(0)], run_check=False)

    def made() -> tuple[Adafactor, list[Any]]:
        params: list[Any] = [torch.nn.Parameter(shared(p.detach())) for p in parameters(torch.float32, SHAPES)]
        params.append(torch.nn.Parameter(torch.ones(3, 2)))
        return Adafactor(params, beta1=0.9, fused=fused, lr=a_tenth_over_t), params

    def step(optimizer: Adafactor, params: list[Any], t: int) -> None:
        for i, p in enumerate(params):
            x = torch.full(tuple(p.shape), float(t + i))
            p.grad = shared(x) if isinstance(p, DTensor) else x
        optimizer.step()

    def values(optimizer: Adafactor, params: list[Any]) -> Any:
        own: list[dict[str, Any]] = [dict(optimizer.state.get(p, {})) for p in params]
        local: Any = [[x.to_local() if isinstance(x, DTensor) else x for x in state.values()] for state in own]
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in params]
        return frozen([weights, local, optimizer.param_groups[0]["lr"]])

    (optimizer, params), (other, others) = made(), made()
    for t in range(1, before + 1):
        step(optimizer, params, t)
        step(other, others, t)
    expected, add, calls = values(optimizer, params), ProcessGroups.all_reduce, list[int]()
    for failing in range(1, 4):  # gradients that arrive as sums, and the sums after the statistics

        def broken(process_groups: ProcessGroups, asked: Any, failing: int = failing) -> None:
            calls.append(1)
            if len(calls) == failing:
                raise Broken
            add(process_groups, asked)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProcessGroups, "all_reduce", broken)
            calls.clear()
            with pytest.raises(Broken):
                step(optimizer, params[:-1], before + 1)
        assert values(optimizer, params) == expected
    for t in (before + 1, before + 2):
        step(optimizer, params, t)
        step(other, others, t)
    assert values(optimizer, params) == values(other, others)
