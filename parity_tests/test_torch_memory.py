"""Memory: which a parameter may have, with a place of its own for each element; and what a step by blocks allocates."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adafactor_torch import Adafactor
from adafactor_torch._backends.eager import backend as _eager_backend
from adafactor_torch._task import memory as _memory
from adafactor_torch._task.memory import overlaps
from benchmarks.torch.memory import peak_bytes

from .test_torch_device_steps import count_here
from .torch_runs import snapshot

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHARED = r"^memory of the parameter .* must be one number for each element, got 'a view that is not'\. Give a copy"
AXES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=5)


def listed(axes: list[tuple[int, int]]) -> bool:
    """Whether two elements lie in one place, found by looking at each of them."""
    indices = itertools.product(*(range(size) for size, _ in axes))
    places = [sum(i * stride for i, (_, stride) in zip(index, axes, strict=True)) for index in indices]
    return len(set(places)) < len(places)


@pytest.mark.parametrize("search", [_memory._SEARCH, 1], ids=["solved", "listed"])
def test_overlaps_are_found_exactly(search: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_SEARCH", search)

    @given(AXES)
    def check(axes: list[tuple[int, int]]) -> None:
        _memory._meet.cache_clear()
        assert overlaps([size for size, _ in axes], [stride for _, stride in axes]) == listed(axes)

    check()


# shape, strides, whether elements meet; where sizes are too large to look at each element, by hand.
LAYOUTS = [
    ((4, 3), (3, 1), False),
    ((4, 4), (3, 1), True),  # a row begins where the one before has not ended
    ((2, 3), (3, 2), False),  # interleaved: no stride leads beyond the other axis, and yet nothing meets
    ((3, 4), (3, 2), True),  # two rows are three columns
    ((3, 1, 5), (5, 0, 1), False),  # an axis of size 1 has no other element
    ((0, 4), (0, 0), False),
    ((50_000, 50_000), (49_999, 50_001), False),  # 49,999 and 50,001 have no common factor, so 50,001 steps meet first
    ((50_002, 50_000), (49_999, 50_001), True),
    ((1000, 1000, 1000), (999_983, 1_000_003, 1_000_033), True),  # more elements than places
]


@pytest.mark.parametrize(("shape", "strides", "meet"), LAYOUTS, ids=str)
def test_overlaps_of_some_layouts(shape: tuple[int, ...], strides: tuple[int, ...], meet: bool) -> None:
    assert overlaps(shape, strides) == meet


def strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return torch.ones(100).as_strided(shape, strides)


MEETING = [((4, 4), (3, 1)), ((3, 4), (3, 2)), ((2, 2, 2), (3, 2, 1)), ((4, 4), (0, 1)), ((7,), (0,))]


@pytest.mark.parametrize(("shape", "strides"), MEETING, ids=str)
def test_elements_that_share_memory_are_refused_when_they_are_given(shape: Any, strides: Any) -> None:
    p = torch.nn.Parameter(strided(shape, strides))
    with pytest.raises(ValueError, match=SHARED):
        Adafactor([p])
    optimizer = Adafactor([torch.nn.Parameter(torch.ones(2))])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=SHARED):
        optimizer.add_param_group({"params": [p]})
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [0, 3])
def test_elements_that_share_memory_are_refused_at_the_step_that_meets_them(path: str, steps: int) -> None:
    """Also where the step is like the one before in all but the strides."""
    first, p = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Adafactor([first, p], **PATHS[path])
    for _ in range(steps):
        first.grad, p.grad = torch.ones(5), torch.ones(4, 4)
        optimizer.step()
    first.grad, p.grad = torch.ones(5), torch.ones(4, 4)
    own = p.data
    p.data = strided((4, 4), (3, 1))
    before = snapshot(optimizer)
    for step in (optimizer.step, lambda: optimizer.step_param(p)):
        with pytest.raises(ValueError, match=SHARED):
            step()
    assert snapshot(optimizer) == before
    p.data = own
    optimizer.step()
    assert int(optimizer.state[p]["step"]) == steps + 1


@pytest.mark.parametrize("path", PATHS)
def test_strides_that_interleave_are_stepped(path: str) -> None:
    p, plain = torch.nn.Parameter(strided((2, 3), (3, 2)).clone()), torch.nn.Parameter(torch.ones(2, 3))
    p.data = torch.ones(100).as_strided((2, 3), (3, 2))
    for x in (p, plain):
        optimizer = Adafactor([x], **PATHS[path])
        for _ in range(3):
            x.grad = torch.arange(6.0).view(2, 3)
            optimizer.step()
    assert torch.equal(p, plain)


def made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.nn.Parameter(torch.ones(3, 3))


NOT_WRITABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "lazy module": (
        lambda: torch.nn.LazyLinear(3).weight,
        "parameter must be one with a shape, got 'UninitializedParameter'. Run the model once",
    ),
    "sparse": (
        lambda: torch.ones(3, 3).to_sparse(),
        "layout of the parameter of shape (3, 3) must be torch.strided, got 'torch.sparse_coo'.",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
        "layout of the parameter must be torch.strided, got 'nested'.",
    ),
    "inference": (
        made_in_inference_mode,
        "parameter of shape (3, 3) must be made outside torch.inference_mode, got 'an inference tensor'. Outside",
    ),
}


@pytest.mark.parametrize("kind", NOT_WRITABLE)
def test_what_cannot_be_written_in_place_is_refused(kind: str) -> None:
    made, message = NOT_WRITABLE[kind]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Adafactor([made()])


# ------------------------------------------------------------------------------------------- what a step allocates

# Of a parameter's bytes. A block is a 64th of the parameter here, so that 16 temporaries of a block in float32 stay
# below it, and one temporary of the parameter's size in its own dtype is twice as much.
LARGEST_PEAK = 0.5


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("shape", [(512, 512), (2**18,), (16, 128, 128)], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_eager_step_has_no_temporary_of_a_parameters_size(
    masked: bool, rounding: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a device says whether the step is taken: a CPU stands in for it."""
    monkeypatch.setattr(_eager_backend, "BLOCK", 2**12)
    if masked:
        count_here(monkeypatch)
    p = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    optimizer = Adafactor([p], rounding=rounding, weight_decay=0.1, nonfinite="skip" if masked else "propagate")
    p.grad = torch.ones_like(p)
    optimizer.step()
    if masked:
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    assert peak_bytes(optimizer.step, torch.device("cpu")) < LARGEST_PEAK * p.nbytes
