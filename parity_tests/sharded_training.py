"""Ways to train a model under FSDP2 beside the plain loop, for the processes of a test."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.optim.lr_scheduler import ExponentialLR

from adafactor_torch import Adafactor, release_gradients

from . import sharded_models as models
from . import sharded_runs as runs
from .sharded_models import FIELDS, SEQUENCE, STEPS, WIDTH
from .torch_runs import Array, gradient, values


def batch(t: int, part: slice) -> tuple[Tensor, Tensor]:
    return torch.tensor(values((8, SEQUENCE, WIDTH), t))[part], torch.tensor(values((8, SEQUENCE, 7), t))[part]


def loss_of(model: torch.nn.Module, t: int, part: slice) -> Tensor:
    x, y = batch(t, part)
    return torch.nn.functional.mse_loss(model(x), y)


def backward(model: torch.nn.Module, t: int, part: slice) -> None:
    loss_of(model, t, part).backward()


def error_of(model: torch.nn.Module, expected: dict[str, Array]) -> float:
    begun = dict(models.network().named_parameters())
    names = [name for name, _ in model.named_parameters()]
    theirs = [torch.tensor(expected[name]) for name in names]
    return runs.error(model.parameters(), theirs, (begun[name].detach() for name in names))


def accumulated(way: str, expected: dict[str, Array]) -> float:
    """The error of a run in which each batch comes in two halves, whose gradients are added up."""
    model, part = models.rows()
    sharded: Any = model
    optimizer = Adafactor(model.named_parameters(), **FIELDS)
    with release_gradients(model, optimizer) if way == "released" else contextlib.nullcontext():
        for t in range(1, STEPS + 1):
            x, y = batch(t, part)
            for half in (0, 1):
                if way != "reduced":
                    sharded.set_requires_gradient_sync(half == 1)
                (torch.nn.functional.mse_loss(model(x[half : half + 1]), y[half : half + 1]) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    return error_of(model, expected)


def mixed(dtype: torch.dtype, **fields: Any) -> tuple[set[torch.dtype], set[torch.dtype], torch.dtype, float, float]:
    """A run of five steps in mixed precision, against one of one process on the same gradients.

    Returns:
        The dtypes of gradients and of states, the dtype of the output, the error, and the share of elements that
        are not the same.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    model: Any = models.network().to(dtype)
    plain = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    begun = {name: p.detach().clone() for name, p in plain.items()}
    for layer in model:
        fully_shard(layer, mesh=runs.meshes()["line"], mp_policy=policy)
    fully_shard(model, mesh=runs.meshes()["line"], mp_policy=policy)
    ours, theirs = (Adafactor(named, **FIELDS, **fields) for named in (model.named_parameters(), plain.items()))
    grads: set[torch.dtype] = set()
    for t in range(1, 6):
        x, y = batch(t, slice(dist.get_rank(), None, 4))
        out = model(x.float())
        torch.nn.functional.mse_loss(out, y.float()).backward()
        for name, p in model.named_parameters():
            plain[name].grad = p.grad.full_tensor()
            grads.add(p.grad.dtype)
        ours.step()
        theirs.step()
        ours.zero_grad()
    params = dict(model.named_parameters())
    error = runs.error(params.values(), (plain[n].detach() for n in params), (begun[n] for n in params))
    differing = sum(int((runs.local(p) != runs.part_of(plain[n].detach(), p)).sum()) for n, p in params.items())
    states = {x.dtype for state in ours.state.values() for name, x in state.items() if name != "step"}
    return grads, states, out.dtype, error, differing / sum(runs.local(p).numel() for p in params.values())


def mixed_in_16_bits(rounding: str) -> tuple[set[torch.dtype], set[torch.dtype], torch.dtype, float, float]:
    return mixed(torch.bfloat16, rounding=rounding)


def offloaded(expected: dict[str, Array]) -> float:
    """The error of a run with parameters that are offloaded; memory is pinned for an accelerator only."""
    model: Any = models.network()
    for layer in (*model, model):
        fully_shard(layer, mesh=runs.meshes()["line"], offload_policy=CPUOffloadPolicy(pin_memory=False))
    models.train(model, Adafactor(model.named_parameters(), **FIELDS), slice(dist.get_rank(), None, 4))
    return error_of(model, expected)


def offloaded_from_a_gpu() -> tuple[float, set[str]]:
    """The error of parts on the CPU under a mesh of GPUs, as offloading leaves them there, and where their state is."""
    mesh, shape = DeviceMesh("cuda", [0, 1, 2, 3]), (16, 8)

    def laid(whole: Tensor) -> Any:
        spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(whole.shape, whole.stride(), whole.dtype))
        return DTensor(whole.chunk(4)[dist.get_rank()].clone(), spec, requires_grad=False)

    start = torch.tensor(values(shape, 0))
    params = [torch.nn.Parameter(laid(start)), torch.nn.Parameter(start.clone())]
    ours, theirs = (Adafactor([("p", p)], **FIELDS) for p in params)
    for t in range(1, STEPS + 1):
        whole = torch.tensor(gradient(t, 0, shape))
        params[0].grad, params[1].grad = laid(whole), whole
        ours.step()
        theirs.step()
    part = params[1].detach().chunk(4)[dist.get_rank()]
    error = (runs.local(params[0]) - part).abs().max() / (params[1].detach() - start).abs().max()
    return float(error), {runs.local(x).device.type for x in ours.state[params[0]].values()}


def clipped_and_scheduled(name: str) -> float:
    """The error of a run with the usual extras: a clipped norm, a scheduler, unlike groups, one added, a frozen one."""
    sharded, part = models.MODELS[name]()
    both = [(sharded, part), (models.network(), slice(None))]
    for model, own in both:
        named = list(model.named_parameters())
        last = [one for one in named if one[0].startswith("2.")]
        groups: list[dict[str, Any]] = [
            {"params": [one for one in named if ".norm." in one[0]], "weight_decay": None, "lr": 0.01},
            {"params": [one for one in named if ".norm." not in one[0] and one not in last], "beta1": None},
        ]
        optimizer = Adafactor(groups, **FIELDS, eps1=1e-4)  # of the size of gradients, or their norm would not matter
        for t in range(1, 7):
            if t == 3:
                optimizer.add_param_group({"params": last, "lr": 0.02})
            if t in (1, 3):
                scheduler = ExponentialLR(optimizer, 0.9)
            if t == 5:
                named[0][1].requires_grad_(False)
            model.zero_grad()
            backward(model, t, own)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
    return error_of(sharded, {key: p.detach().numpy() for key, p in both[1][0].named_parameters()})


def compiled() -> tuple[float, str] | None:
    """The error of a compiled loop in two processes, and what torch says where the step is to be one graph."""
    mesh = runs.meshes()["pair"]
    if mesh.get_coordinate() is None:
        return None
    ours, theirs = (torch.nn.Sequential(models.Head()).double() for _ in range(2))
    for model in (ours, theirs):
        for seed, p in enumerate(model.parameters()):
            p.data.copy_(torch.tensor(values(tuple(p.shape), seed)))
    begun = [p.detach().clone() for p in theirs.parameters()]
    fully_shard(ours, mesh=mesh)
    optimizers = [Adafactor(model.named_parameters(), **FIELDS) for model in (ours, theirs)]

    def train(x: Tensor, y: Tensor) -> None:
        optimizers[0].zero_grad()
        torch.nn.functional.mse_loss(ours(x), y).backward()
        optimizers[0].step()

    fast = torch.compile(train, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo warns of what it does with FSDP2's own hooks
        for t in (1, 2, 3):
            fast(*batch(t, slice(dist.get_rank(), None, 2)))
            optimizers[1].zero_grad()
            backward(theirs, t, slice(None))
            optimizers[1].step()
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported) as one_graph:
            torch.compile(optimizers[0].step, fullgraph=True, backend="eager")()
    torch._dynamo.reset()
    error = runs.error(ours.parameters(), [p.detach() for p in theirs.parameters()], begun)
    return error, str(one_graph.value)
