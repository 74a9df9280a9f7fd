"""A step under `torch.compile`: one operator in the graph, which runs the step that would have run without it.

Much of a step is ordinary Python: learning rates, functions of t, checks, new state. Traced, it would be repeated as it
was in the first step, or traced anew whenever a number changes. So the graph is told only which parameters the step
writes and which gradients it reads, and guards on these; everything else is looked up when the operator runs. The
arithmetic is that of the group's own path, which is faster than the loops that Inductor makes of the plain formulas
(docs/compile.md has the measurement).

Sharded parameters and those of other tensor subclasses end the graph: the operator would be one of DTensors, and a
graph might order its sums over processes otherwise on another process; of a tensor that stands for two, each would take
a step.
"""

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._compile import _disable_dynamo


class SteppedInGraph(Protocol):
    """What an operator of a graph needs of an optimizer; `Adafactor` has it."""

    param_groups: list[dict[str, Any]]

    def _step_now(self) -> None:
        """The step as it is without `torch.compile`."""


_OPTIMIZERS: "weakref.WeakValueDictionary[int, SteppedInGraph]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
_ORDINARY = (Tensor, torch.nn.Parameter)


def number_of(optimizer: SteppedInGraph) -> int:
    """A number by which graphs know an optimizer that is new.

    It counts optimizers and is no address, so that the next process finds on disk what this one has compiled.
    """
    number = next(_NUMBERS)
    _OPTIMIZERS[number] = optimizer
    return number


def step(number: int, groups: Sequence[dict[str, list[Tensor]]]) -> None:
    """What dynamo traces of a step. It guards on everything that is read here.

    Args:
        number: what `number_of` gave the optimizer.
        groups: the optimizer's.
    """
    if any(type(p) not in _ORDINARY for group in groups for p in group["params"]):
        step_between_graphs(number)
        return
    parameters, gradients, positions, position = [], [], [], 0
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                parameters.append(p)
                gradients.append(p.grad)
                positions.append(position)
            position += 1
    torch.ops.adafactor_torch.step(parameters, gradients, positions, number)


@_disable_dynamo  # as torch.compiler.disable, which imports dynamo, and Triton with it, at once
def step_between_graphs(number: int) -> None:
    """The step as it is without `torch.compile`; a graph ends before it and another one begins after it."""
    with torch.no_grad():
        _OPTIMIZERS[number]._step_now()


def _step(parameters: list[Tensor], gradients: list[Tensor], positions: list[int], number: int) -> None:
    optimizer = _OPTIMIZERS[number]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    values, grads = (dict(zip(positions, given, strict=True)) for given in (parameters, gradients))
    with torch.no_grad(), _as_in_the_graph(own, values, grads):
        optimizer._step_now()


@contextmanager
def _as_in_the_graph(own: list[Tensor], values: dict[int, Tensor], grads: dict[int, Tensor]) -> Iterator[None]:
    """Let parameters have the values and gradients that they have at this place of a graph, by position.

    Most often they have them already. But a backend may step a copy and write that back later, and a gradient that
    was made in the same graph is not in `grad` yet.
    """
    copied = [(own[i], own[i].data, x) for i, x in values.items() if x.data_ptr() != own[i].data_ptr()]
    changed = [(p, p.grad, grads.get(i)) for i, p in enumerate(own) if p.grad is not grads.get(i)]
    try:
        for p, _, value in copied:
            p.data = value
        for p, _, grad in changed:
            p.grad = grad
        yield
    finally:
        for p, own_value, _ in copied:
            p.data = own_value
        for p, own_grad, _ in changed:
            p.grad = own_grad


_LIBRARY = torch.library.Library("adafactor_torch", "DEF")
_LIBRARY.define(
    "step(Tensor(a!)[] parameters, Tensor[] gradients, int[] positions, int number) -> ()",
    # A CUDA graph made by torch.compile would repeat one step's numbers. Older releases of torch lack the tag.
    tags=[torch.Tag.cudagraph_unsafe] if hasattr(torch.Tag, "cudagraph_unsafe") else [],
)
_LIBRARY.impl("step", _step, "CompositeExplicitAutograd")
torch.library.register_fake("adafactor_torch::step", lambda *_: None, lib=_LIBRARY)
