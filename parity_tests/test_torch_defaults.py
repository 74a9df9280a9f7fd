"""A step allocates on the device and in the dtype of its parameters, whatever torch's defaults are meanwhile.

The C++ would read a buffer on another device at an address that is none of the CPU's, and one in another dtype
as other numbers.
"""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adafactor_spec import schedules
from adafactor_torch import Adafactor, release_gradients
from adafactor_torch._backends.eager import backend as _eager_backend

from . import sharded_defaults
from .torch_runs import frozen, values
from .two_processes import Ranks

PACKAGE = Path(__file__).parents[1] / "adafactor_torch"
# Functions of torch that allocate where and as the defaults say, unless they are told. Those of a tensor follow that.
ALLOCATING = {"zeros", "ones", "empty", "full", "tensor", "as_tensor", "arange", "linspace", "eye", "rand", "randn"}
SHAPES = ((40, 30), (40, 30), (300, 400), (20, 3, 3), (7,), ())
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}, "on device": {"capturable": True},
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "averages": {"beta1": 0.9, "debias": True, "rounding": "stochastic", "telemetry": True, "nonfinite": "skip"},
    "amsgrad": {"amsgrad": True, "beta2": schedules.adam_decay(0.99), "rounding": "kahan", "weight_decay": 0.1},
}


@contextlib.contextmanager
def defaults(which: str) -> Iterator[None]:
    """torch with another default device or dtype."""
    dtype = torch.get_default_dtype()
    try:
        if which == "set device":
            torch.set_default_device("meta")
        elif which != "device":
            torch.set_default_dtype(getattr(torch, which))
        with torch.device("meta") if which == "device" else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


DEFAULTS = ("set device", "device", "float64", "bfloat16")


def allocations(source: str) -> list[str]:
    """The calls in a source that allocate and leave the device or the dtype open."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ALLOCATING:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and not {"device", "dtype"} <= {keyword.arg for keyword in node.keywords}:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_allocation_names_its_device_and_dtype() -> None:
    assert allocations("torch.zeros(3, dtype=torch.float32)") and allocations("torch.full((), 1.0, device='cpu')")
    found = {path.name: allocations(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(found) > 20
    assert not {name: calls for name, calls in found.items() if calls}


def contents(optimizer: Adafactor) -> Any:
    params = optimizer.param_groups[0]["params"]
    states = [sorted(optimizer.state[p].items()) for p in params]
    return frozen([[p.detach() for p in params], states, optimizer.telemetry()])


def stepped(dtype: torch.dtype, which: str | None, released: bool = False, **options: Any) -> Any:
    """What three steps leave, all of whose work is done under other defaults."""
    with defaults(which) if which else contextlib.nullcontext():
        start = [torch.tensor(values(shape, i), dtype=dtype, device="cpu") for i, shape in enumerate(SHAPES)]
        params = [torch.nn.Parameter(x) for x in start]
        optimizer = Adafactor(params, lr=0.1, seed=3, **options)
        with release_gradients(params, optimizer) if released else contextlib.nullcontext():
            for t in range(1, 4):
                given = [torch.tensor(values(shape, 10 * t), dtype=dtype, device="cpu") for shape in SHAPES]
                if released:
                    torch.autograd.backward([(p * g).sum() for p, g in zip(params, given, strict=True)])
                else:
                    for p, g in zip(params, given, strict=True):
                        p.grad = g
                optimizer.step()
        saved = optimizer.state_dict()
        again = Adafactor(params, lr=0.1, **options)
        again.load_state_dict(saved)
        return contents(optimizer), frozen([sorted(again.state[p].items()) for p in params])


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("which", DEFAULTS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_whole_steps(path: str, name: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eager_backend, "BLOCK", 20_000)
    for dtype in (torch.float32, torch.bfloat16):
        how = {**PATHS[path], **OPTIONS[name]}
        assert stepped(dtype, which, **how) == stepped(dtype, None, **how)


@pytest.mark.sampled
@pytest.mark.parametrize("which", DEFAULTS)
@pytest.mark.parametrize("path", ["plain", "eager", "compiled"])
def test_released_gradients(path: str, which: str) -> None:
    for name in OPTIONS:
        how = {**PATHS[path], **OPTIONS[name], "released": True}
        assert stepped(torch.bfloat16, which, **how) == stepped(torch.bfloat16, None, **how)


@pytest.mark.xdist_group("four_processes")
@pytest.mark.parametrize("which", DEFAULTS)
@pytest.mark.parametrize("fused", [False, True], ids=["eager", "compiled"])
def test_sharded_steps(four: Ranks, fused: bool, which: str) -> None:
    assert all(four(sharded_defaults.is_same, which, fused))
