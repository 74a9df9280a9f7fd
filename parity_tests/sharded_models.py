"""Models trained with torch's own sharding and backward passes, for the processes of a test."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from adafactor_torch import Adafactor

from . import sharded_runs as runs
from .torch_runs import Array, values

STEPS = runs.STEPS
FIELDS: dict[str, Any] = {"lr": 0.05, "beta1": 0.9, "weight_decay": 0.01}
SEQUENCE, WIDTH = 8, 12


class Block(torch.nn.Module):
    """A norm and two linear layers, whose sizes four processes divide and those of its biases and norm two do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.wide, self.narrow = torch.nn.Linear(WIDTH, 20), torch.nn.Linear(20, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.wide(self.norm(x)))).clone()  # FSDP2 warns of a view


class Head(torch.nn.Module):
    """The last layer, of a size that nothing divides."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x).clone()


def network() -> torch.nn.Module:
    """Two blocks and a head; the same weights everywhere."""
    model = torch.nn.Sequential(Block(), Block(), Head()).double()
    for seed, p in enumerate(model.parameters()):
        p.data.copy_(torch.tensor(values(tuple(p.shape), seed)) * 0.3)
    return model


def train(model: torch.nn.Module, optimizer: Adafactor, part: slice = slice(None)) -> dict[str, int]:
    """Ten steps, each on a new batch of 8, of which this process takes a part; the collectives of the last step."""
    counts: dict[str, int] = {}
    for t in range(1, STEPS + 1):
        x = torch.tensor(values((8, SEQUENCE, WIDTH), t))[part]
        y = torch.tensor(values((8, SEQUENCE, 7), t))[part]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        with CommDebugMode() as mode:
            optimizer.step()
        counts = {str(kind): count for kind, count in mode.get_comm_counts().items() if count}
    return counts


def single() -> dict[str, Array]:
    model = network()
    train(model, Adafactor(model.named_parameters(), **FIELDS))
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def _share(rank: int, count: int) -> slice:
    return slice(rank, None, count)


def _fully_sharded(mesh: Any, rank: int, count: int, **more: Any) -> tuple[torch.nn.Module, slice]:
    model: Any = network()
    for layer in model:
        fully_shard(layer, mesh=mesh, **more)
    return fully_shard(model, mesh=mesh, **more), _share(rank, count)


def rows() -> tuple[torch.nn.Module, slice]:
    return _fully_sharded(runs.meshes()["line"], dist.get_rank(), 4)


def columns() -> tuple[torch.nn.Module, slice]:
    # FSDP2 shards other dimensions than the first only where they are divided evenly.
    def placed(p: Tensor) -> Shard | None:
        return Shard(1) if p.ndim == 2 else None

    return _fully_sharded(runs.meshes()["line"], dist.get_rank(), 4, shard_placement_fn=placed)


def hybrid() -> tuple[torch.nn.Module, slice]:
    return _fully_sharded(runs.meshes()["square"], dist.get_rank(), 4)


def _parallel(mesh: Any) -> torch.nn.Module:
    """Tensor parallel with the sequence sharded around the norm, whose gradients so arrive as terms of a sum."""
    model: Any = network()
    for block in (model[0], model[1]):
        plan = {
            "norm": SequenceParallel(),
            "wide": ColwiseParallel(input_layouts=Shard(1)),
            "narrow": RowwiseParallel(output_layouts=Shard(1)),
        }
        parallelize_module(block, mesh, plan)
    parallelize_module(
        model[0], mesh, PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),))
    )
    head = ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())
    return parallelize_module(model, mesh, {"2.last": head})


def tensor_parallel() -> tuple[torch.nn.Module, slice]:
    return _parallel(runs.meshes()["line"]), slice(None)


def both() -> tuple[torch.nn.Module, slice]:
    mesh = runs.meshes()["square"]
    model: Any = _parallel(mesh["tp"])
    for layer in model:
        fully_shard(layer, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"]), _share(mesh.get_local_rank("dp"), 2)


MODELS: dict[str, Callable[[], tuple[torch.nn.Module, slice]]] = {
    "rows": rows,
    "columns": columns,
    "hybrid": hybrid,
    "tensor parallel": tensor_parallel,
    "both": both,
}


def trained(name: str, expected: dict[str, Array]) -> tuple[float, dict[str, int]]:
    """(The error of a sharded model after ten steps, the collectives of the last optimizer step)."""
    model, part = MODELS[name]()
    named = list(model.named_parameters())
    counts = train(model, Adafactor(named, **FIELDS), part)
    begun = dict(network().named_parameters())
    theirs = [torch.tensor(expected[key]) for key, _ in named]
    return runs.error((p for _, p in named), theirs, (begun[key].detach() for key, _ in named)), counts
