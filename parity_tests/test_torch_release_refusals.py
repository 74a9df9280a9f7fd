"""What needs all gradients at once, and what is no parameter to release, is refused with the reason and the way out."""

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as imported_before_the_release
from torch.utils.checkpoint import checkpoint

from adafactor_torch import Adafactor, release_gradients

from .release_runs import WIDTH, Net, backward, guarded, small
from .torch_runs import bits, parameter_bits, snapshot


@pytest.fixture(autouse=True)
def no_release_from_before() -> None:
    gc.collect()


def test_accumulation_is_refused() -> None:
    model, optimizer = small()
    handle = release_gradients(model, optimizer)
    backward(model)
    once = snapshot(optimizer)
    for _ in range(2):
        optimizer.zero_grad()  # not the end of a step
        with pytest.raises(RuntimeError, match=r"parameter '\w+' got a second gradient before optimizer.step\(\)"):
            backward(model)
    assert all(p.grad is None for p in model.parameters()) and snapshot(optimizer) == once
    optimizer.step()
    assert snapshot(optimizer) == once
    backward(model)
    assert snapshot(optimizer) != once
    handle.remove()
    backward(model)
    backward(model)


def test_a_shared_parameter_under_reentrant_checkpoints_is_refused() -> None:
    """Its gradient comes in two parts, of which the first would be taken for the whole."""
    net = Net()
    optimizer = Adafactor(net.named_parameters())
    release_gradients(net, optimizer)
    x = torch.ones(5, WIDTH, requires_grad=True)
    for _ in range(2):
        x = checkpoint(lambda x: torch.tanh(net.layers[0](x)), x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        x.sum().backward()


def test_a_closure_that_fails_ends_its_step() -> None:
    model, optimizer = small()
    release_gradients(model, optimizer)

    def closure() -> float:
        backward(model)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)


CLIPPINGS: dict[str, Callable[[Any], Any]] = {
    "clip_grad_norm_": lambda given: torch.nn.utils.clip_grad_norm_(given, 1.0),
    "clip_grad_norm_ imported before": lambda given: imported_before_the_release(parameters=given, max_norm=1.0),
    "clip_grads_with_norm_": lambda given: torch.nn.utils.clip_grads_with_norm_(given, 1.0, torch.ones(())),
    "clip_grad_value_": lambda given: torch.nn.utils.clip_grad_value_(given, clip_value=1.0),
}


@pytest.mark.parametrize("clip", CLIPPINGS)
def test_clipping_is_refused(clip: str) -> None:
    model, optimizer = small()
    handle = release_gradients(model, optimizer)
    backward(model)
    for given in (model.parameters(), list(model.parameters()), model.weight):
        with pytest.raises(RuntimeError, match=rf"{clip.split()[0]} cannot .* clipping_threshold"):
            CLIPPINGS[clip](given)
    other = torch.nn.Linear(3, 2)
    backward(other)
    CLIPPINGS[clip](other.parameters())
    optimizer.step()
    optimizer.zero_grad()
    handle.remove()
    backward(model)
    CLIPPINGS[clip](model.parameters())


def test_clipping_elsewhere_is_what_it_was() -> None:
    """While something is released, too: what it does to other parameters, and its warning and errors."""
    norms, grads = [], []
    for released in (True, False):
        model, optimizer = small()
        other = torch.nn.Linear(3, 2)
        other.load_state_dict(model.state_dict())
        handle = release_gradients(model, optimizer)
        if not released:
            handle.remove()
        backward(other)
        norms.append(bits(torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5, norm_type=3.0)))
        grads.append([bits(p.grad) for p in other.parameters() if p.grad is not None])
        with pytest.warns(UserWarning, match="empty generator"):
            torch.nn.utils.clip_grad_norm_((p for p in list[Tensor]()), 1.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)  # as Trainer does, to log the norm
        with pytest.raises(TypeError, match="max_norm"):
            torch.nn.utils.clip_grad_norm_(other.parameters())  # type: ignore[call-arg]
        handle.remove()
    assert norms[0] == norms[1] and grads[0] == grads[1]


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("unscale", [True, False])
def test_a_grad_scaler_is_refused(fused: bool | None, unscale: bool) -> None:
    model, optimizer = small(fused=fused)
    with release_gradients(model, optimizer):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.ones(4, 3)).sum()).backward()
        if unscale:
            scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="GradScaler does not work with released gradients"):
            scaler.step(optimizer)
    model, optimizer = small(fused=fused)
    with release_gradients(model, optimizer):
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        scaler.scale(model(torch.ones(4, 3)).sum()).backward()
        scaler.step(optimizer)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_refused(one_process: None) -> None:
    model, optimizer = small()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for given in (wrapped, torch.nn.Sequential(wrapped)):
        with pytest.raises(ValueError, match="averages gradients over the processes after they have been released"):
            release_gradients(given, optimizer)


def test_bad_arguments_leave_no_trace() -> None:
    model, optimizer = small()
    alone = torch.nn.Parameter(torch.ones(2))
    first = release_gradients([model.bias], optimizer)
    wrong: list[tuple[Any, Any, str]] = [
        ([model.weight, alone], optimizer, r"a parameter of shape \(2,\) must be a parameter of the optimizer"),
        (torch.nn.ParameterDict({"x": alone}), optimizer, r"parameter 'x' must be .*add_param_group"),
        (model, optimizer, r"parameter 'bias' must be .* whose gradient is kept, got .*remove\(\)"),
        ([], optimizer, "model_or_params must be .* got '0 of which none does'"),
        ([torch.ones(2)], optimizer, "requires a gradient"),
        (torch.nn.ReLU(), optimizer, "requires a gradient"),
        (model.weight, optimizer, r"model_or_params must be a torch.nn.Module or parameters, got 'Parameter'"),
        (None, optimizer, r"got 'NoneType'. Pass model"),
        (np.array(0.5), optimizer, r"got 'ndarray'. Pass model"),
        ("model", optimizer, r"got 'str'. Pass model"),
        ([{"params": [model.weight]}], optimizer, "got 'dict'"),
        ([model.weight], torch.optim.SGD([model.weight]), "optimizer must be an adafactor_torch.Adafactor, got 'SGD'"),
        ([model.weight], None, "Accelerate"),
    ]
    for given, of, message in wrong:
        with pytest.raises(ValueError, match=message):
            release_gradients(given, of)
    backward(model)
    assert model.weight.grad is not None
    first.remove()
    assert not guarded()


def test_frozen_parameters_need_not_be_the_optimizers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3).requires_grad_(False), torch.nn.Linear(3, 2))
    optimizer = Adafactor(model[1].parameters())
    release_gradients(model, optimizer)
    before = parameter_bits(optimizer)
    backward(model)
    assert parameter_bits(optimizer) != before and all(p.grad is None for p in model.parameters())


def test_a_step_that_is_refused_keeps_the_gradient() -> None:
    model, optimizer = small()
    release_gradients([model.weight], optimizer)
    optimizer.param_groups[0]["clipping_threshold"] = 0.0
    with pytest.raises(ValueError, match="clipping_threshold"):
        backward(model)
    assert model.weight.grad is not None
    optimizer.param_groups[0]["clipping_threshold"] = 1.0
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 1
