"""`torch.compile(optimizer.step)`: one graph, compiled once whatever the learning rate does, and the same numbers."""

import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from adafactor_spec import schedules
from adafactor_torch import Adafactor

from .torch_runs import all_parameters, frozen, parameters, set_gradients, snapshot

STEPS = 11
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "eager": {},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "maximize": {"maximize": True},
    "skip": {"nonfinite": "skip", "telemetry": True},
    "momentum": {"beta1": 0.9, "debias": True, "weight_decay": 0.1},
    "momentum of the gradient": {"beta1": schedules.power_decay(exponent=0.5), "momentum_of": "grad", "eps1": 1e-6},
    "amsgrad": {"amsgrad": True, "relative_step": False, "eps1_mode": "floor", "weight_decay_by": "grad"},
    "stochastic": {"rounding": "stochastic", "seed": 7, "weight_decay": 0.1},
    "stochastic, plain": {"rounding": "stochastic", "foreach": False},
    "kahan": {"rounding": "kahan", "momentum_dtype": "bfloat16", "beta1": 0.9},
}


def halves(t: int) -> float:
    """A function that only a host can compute."""
    return 0.1 if t < 4 else 0.1 / (t // 2)


@contextmanager
def compiled(step: Callable[..., Any], backend: str = "eager", graphs: int = 1) -> Iterator[Callable[..., Any]]:
    """A step without a graph break, which has to be compiled that many times."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
        yield torch.compile(step, backend=counter, fullgraph=True)
    assert counter.frame_count == graphs


def run(optimizer: Adafactor, step: Callable[[], Any], change: Callable[[int], Any]) -> Any:
    for t in range(1, STEPS + 1):
        set_gradients(t, all_parameters(optimizer))
        if t == 3 and optimizer.param_groups[0]["nonfinite"] == "skip":
            next(p.grad for p in all_parameters(optimizer) if p.grad is not None).fill_(math.nan)
        step()
        change(t)
    return snapshot(optimizer), frozen(optimizer.telemetry())


def writes_lr(optimizer: Adafactor) -> Callable[[int], None]:
    """Another learning rate in every group after every step."""

    def write(t: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (t + 1)

    return write


def two_groups(dtype: torch.dtype, **options: Any) -> Adafactor:
    given = parameters(dtype)
    return Adafactor([{"params": given[:2]}, {"params": given[2:], "lr": 0.3, "beta2": 0.9}], lr=0.1, **options)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_is_stepped_as_without_compilation(options: str, dtype: torch.dtype) -> None:
    eager, traced = (two_groups(dtype, **OPTIONS[options]) for _ in range(2))
    expected = run(eager, eager.step, writes_lr(eager))
    with compiled(traced.step) as step:
        assert run(traced, step, writes_lr(traced)) == expected


@pytest.mark.parametrize("lr", [halves, schedules.piecewise_constant(0.1, (3, 6), 0.5)], ids=["function", "schedule"])
def test_a_schedule_is_one_compilation(lr: Any) -> None:
    eager, traced = (Adafactor(parameters(), lr=lr) for _ in range(2))
    expected = run(eager, eager.step, lambda t: None)
    with compiled(traced.step) as step:
        assert run(traced, step, lambda t: None) == expected
    assert traced.param_groups[0]["lr"] == lr(STEPS)


@pytest.mark.parametrize("scheduler_first", [True, False])
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
def test_a_scheduler_is_one_compilation_whenever_it_was_made(kind: Any, scheduler_first: bool) -> None:
    eager, traced = (Adafactor(parameters(), lr=kind(0.1)) for _ in range(2))
    schedule = torch.optim.lr_scheduler.ExponentialLR(eager, 0.9)
    expected = run(eager, eager.step, lambda t: schedule.step())
    made = torch.optim.lr_scheduler.ExponentialLR(traced, 0.9) if scheduler_first else None
    with compiled(traced.step) as step:
        made = made or torch.optim.lr_scheduler.ExponentialLR(traced, 0.9)
        assert run(traced, step, lambda t: made.step()) == expected
    assert float(traced.param_groups[0]["lr"]) == pytest.approx(0.1 * 0.9**STEPS)


def test_a_scheduler_still_says_when_it_comes_before_the_first_step() -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR(Adafactor(parameters(), lr=0.1), 0.9)
    with pytest.warns(UserWarning, match=r"before `optimizer\.step\(\)`"):
        schedule.step()


def test_a_tensor_that_is_filled_is_one_compilation() -> None:
    numbers = [torch.tensor(0.1, dtype=torch.float64) for _ in range(2)]
    eager, traced = (Adafactor(parameters(), lr=number) for number in numbers)
    expected = run(eager, eager.step, lambda t: numbers[0].fill_(0.1 / t))
    with compiled(traced.step) as step:
        assert run(traced, step, lambda t: numbers[1].fill_(0.1 / t)) == expected


def test_a_loaded_state_is_no_new_compilation() -> None:
    eager, traced = (Adafactor(parameters(), lr=halves) for _ in range(2))
    expected = run(eager, eager.step, lambda t: None)
    with compiled(traced.step) as step:
        assert run(traced, step, lambda t: traced.load_state_dict(copy.deepcopy(traced.state_dict()))) == expected


def test_what_a_scaler_says_is_read_in_every_step() -> None:
    optimizer: Any = Adafactor(parameters(), lr=0.1, fused=True)
    with compiled(optimizer.step) as step:
        set_gradients(1, all_parameters(optimizer))
        step()
        before = snapshot(optimizer)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
        step()
        assert snapshot(optimizer) == before
        optimizer.found_inf.zero_()
        step()
        assert snapshot(optimizer) != before


def test_another_set_of_gradients_and_another_group_are_compiled_anew() -> None:
    eager, traced = (Adafactor(parameters()[:2], lr=0.1) for _ in range(2))

    def vary(optimizer: Adafactor, step: Callable[[], Any]) -> Any:
        for t in range(1, 7):
            set_gradients(t, all_parameters(optimizer))
            if t in (2, 3):
                optimizer.param_groups[0]["params"][0].grad = None
            if t == 5:
                optimizer.add_param_group({"params": parameters()[2:], "lr": 0.3})
                set_gradients(t, all_parameters(optimizer))
            step()
        return snapshot(optimizer)

    expected = vary(eager, eager.step)
    with compiled(traced.step, graphs=3) as step:
        assert vary(traced, step) == expected


def test_without_any_gradient_nothing_moves() -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    before = snapshot(optimizer)
    with compiled(optimizer.step) as step:
        step()
    assert snapshot(optimizer) == before


def test_a_refusal_comes_through_and_changes_nothing() -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    set_gradients(1, all_parameters(optimizer))
    # Of torch's backends "eager" alone, which is for debugging, leaves gradients off where an operator raises.
    with compiled(optimizer.step, "aot_eager") as step:
        step()
        before, places = snapshot(optimizer), [p.data_ptr() for p in all_parameters(optimizer)]
        beta2, optimizer.param_groups[0]["beta2"] = optimizer.param_groups[0]["beta2"], 2.0
        with pytest.raises(ValueError, match="beta2 must be"):
            step()
        optimizer.param_groups[0]["beta2"] = beta2
        assert snapshot(optimizer) == before
        assert [p.data_ptr() for p in all_parameters(optimizer)] == places
        assert torch.is_grad_enabled()


def test_a_copy_is_another_optimizer() -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    twin = copy.deepcopy(optimizer)
    before = snapshot(optimizer)
    set_gradients(1, all_parameters(twin))
    with compiled(twin.step) as step:
        step()
    assert snapshot(optimizer) == before
    assert snapshot(twin) != before


def test_no_graph_keeps_an_optimizer_alive() -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    with compiled(optimizer.step) as step:
        step()
    known = weakref.ref(optimizer)
    del optimizer, step
    torch._dynamo.reset()
    gc.collect()
    assert known() is None


def test_a_closure_breaks_the_graph_and_is_right() -> None:
    def losses(compile_it: bool) -> list[float]:
        optimizer = Adafactor(parameters(), lr=0.1)
        given = all_parameters(optimizer)

        @torch.compiler.disable
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.stack([p.square().sum() for p in given]).sum()
            loss.backward()
            return loss.detach()

        torch._dynamo.reset()
        step: Any = torch.compile(optimizer.step, backend="eager") if compile_it else optimizer.step
        return [float(step(closure)) for _ in range(4)]

    assert losses(compile_it=True) == losses(compile_it=False)


def in_a_larger_graph(optimizer: Adafactor, scale: Tensor) -> None:
    """Gradients that are made, and weights that are changed, in the graph of the step."""
    given = [p for group in vars(optimizer)["param_groups"] for p in group["params"]]
    for p in given:
        p.grad = p.detach() * scale
    with torch.no_grad():
        for p in given:
            p.mul_(0.5)
        optimizer.step()
        for p in given:
            p.mul_(2.0)


def test_a_refusal_in_a_larger_graph_leaves_no_gradient_of_it() -> None:
    optimizer = Adafactor(parameters(), lr=0.1)
    optimizer.param_groups[0]["beta2"] = 2.0
    with compiled(in_a_larger_graph, "aot_eager") as step, pytest.raises(ValueError, match="beta2 must be"):
        step(optimizer, torch.tensor(1.0))
    assert all(p.grad is None for p in all_parameters(optimizer))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_finds_its_place_in_a_larger_graph(backend: str) -> None:
    eager, traced = (Adafactor(parameters(), lr=halves) for _ in range(2))
    with compiled(in_a_larger_graph, backend) as step:
        for t in range(1, 5):
            in_a_larger_graph(eager, torch.tensor(1.0 / t))
            step(traced, torch.tensor(1.0 / t))
    assert snapshot(traced) == snapshot(eager)


INDUCTOR = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # its own


@INDUCTOR
def test_inductor_compiles_it_once_and_copies_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, traced = (Adafactor(parameters(torch.bfloat16), lr=0.1, rounding="stochastic") for _ in range(2))
    expected = run(eager, eager.step, writes_lr(eager))
    places, of_class, seen = [p.data_ptr() for p in all_parameters(traced)], Adafactor._step_now, []

    def look(optimizer: Adafactor) -> None:
        seen.append([p.data_ptr() for p in all_parameters(optimizer)])
        of_class(optimizer)

    monkeypatch.setattr(Adafactor, "_step_now", look)
    with compiled(traced.step, "inductor") as step:
        assert run(traced, step, writes_lr(traced)) == expected
    assert seen == [places] * STEPS


@INDUCTOR
def test_inductor_trains_a_compiled_model_with_a_compiled_step() -> None:
    def losses(step_of: Callable[[Adafactor], Callable[[], Any]]) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        x = torch.linspace(-1, 1, 256).reshape(32, 8)
        optimizer = Adafactor(model.parameters(), lr=0.03, relative_step=False)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        step, run_model, seen = step_of(optimizer), torch.compile(model), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = (run_model(x) - x.mean(1, keepdim=True)).square().mean()
            loss.backward()
            step()
            schedule.step()
            seen.append(loss.item())
        return seen

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        traced = losses(lambda optimizer: torch.compile(optimizer.step, fullgraph=True))
        torch._dynamo.reset()
        assert traced == losses(lambda optimizer: optimizer.step)
    assert traced[-1] < 0.1 * traced[0]
