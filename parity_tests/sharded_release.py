"""Released gradients under FSDP2, for the processes of a test."""

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from adafactor_torch import Adafactor, release_gradients

from . import sharded_models as models
from . import sharded_runs as runs
from .sharded_models import FIELDS, STEPS
from .sharded_training import backward, batch, error_of, loss_of
from .torch_runs import Array, values


def counts_of(mode: CommDebugMode) -> dict[str, int]:
    return {str(kind): count for kind, count in mode.get_comm_counts().items() if count}


def released(
    name: str, expected: dict[str, Array], fused: bool, alone: bool = False
) -> tuple[float, dict[str, int], dict[str, int]]:
    """The error of a run with released gradients, and the collectives of its last backward pass and its last step.

    With `alone`, what is released is the parameters, of which nobody says that they belong together.
    """
    model, part = models.MODELS[name]()
    optimizer = Adafactor(model.named_parameters(), fused=fused, **FIELDS)
    passed, stepped = CommDebugMode(), CommDebugMode()
    with release_gradients(model.parameters() if alone else model, optimizer):
        for t in range(1, STEPS + 1):
            loss = loss_of(model, t, part)
            with passed if t == STEPS else contextlib.nullcontext():
                loss.backward()
            assert all(p.grad is None for p in model.parameters())
            with stepped if t == STEPS else contextlib.nullcontext():
                optimizer.step()
            optimizer.zero_grad()
    return error_of(model, expected), counts_of(passed), counts_of(stepped)


class Spare(models.Head):
    """A head with a parameter that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.nn.Parameter(torch.ones(6, 4))


def with_a_spare() -> tuple[float, set[str], bool]:
    """The error of a released run in which a module lacks a gradient, what kept its own, and whether that one moved."""

    def made() -> Any:
        model: Any = models.network()
        head = Spare().double()
        head.load_state_dict(model[2].state_dict(), strict=False)
        model[2] = head
        return model

    plain, model = made(), made()
    for layer in model:
        fully_shard(layer, mesh=runs.meshes()["line"])
    fully_shard(model, mesh=runs.meshes()["line"])
    ours, theirs = (Adafactor(one.named_parameters(), **FIELDS) for one in (model, plain))
    kept: set[str] = set()
    with release_gradients(model, ours):
        for t in (1, 2, 3):
            backward(model, t, slice(dist.get_rank(), None, 4))
            kept |= {name for name, p in model.named_parameters() if p.grad is not None}
            ours.step()
            ours.zero_grad()
            theirs.zero_grad()
            backward(plain, t, slice(None))
            theirs.step()
    names = [name for name, _ in model.named_parameters() if not name.endswith("spare")]
    ends, begun = dict(plain.named_parameters()), dict(models.network().named_parameters())
    params = dict(model.named_parameters())
    error = runs.error(*([of[name].detach() for name in names] for of in (params, ends, begun)))
    return error, kept, bool((runs.local(model[2].spare) != 1).any())


def used_twice() -> float:
    """The error of a released run of a module that a forward pass goes through twice."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = models.Block()
            for p in self.parameters():
                p.data = torch.tensor(values(tuple(p.shape), p.numel()))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x)).clone()

    plain, model = Twice(), Twice()
    begun = [p.detach().clone() for p in plain.parameters()]
    for layer in (model.block, model):
        fully_shard(layer, mesh=runs.meshes()["line"])
    both = [(model, slice(dist.get_rank(), None, 4)), (plain, slice(None))]
    for net, part in both:
        optimizer = Adafactor(net.named_parameters(), **FIELDS)
        with release_gradients(net, optimizer):
            for t in (1, 2, 3):
                net(batch(t, part)[0].requires_grad_()).square().mean().backward()
                optimizer.step()
    return runs.error(model.parameters(), [p.detach() for p in plain.parameters()], begun)


def refusals() -> list[str]:
    """What is said of gradients that accumulate, or are to be clipped, while they are released."""
    said = []
    model, part = models.rows()
    optimizer = Adafactor(model.named_parameters(), **FIELDS)
    with release_gradients(model, optimizer):
        backward(model, 1, part)
        with pytest.raises(RuntimeError) as clipped:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with pytest.raises(RuntimeError) as second:
            backward(model, 2, part)
        said += [str(clipped.value), str(second.value)]
    model = models.network()
    optimizer = Adafactor(model.named_parameters(), **FIELDS)
    fully_shard(model, mesh=runs.meshes()["line"])
    with pytest.raises(ValueError, match="fully_shard") as early:
        optimizer.step()
    return [*said, str(early.value)]
