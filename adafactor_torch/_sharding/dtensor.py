"""DTensors, as FSDP2 and tensor parallelism make them: their local tensors, their shards and their state tensors."""

import functools
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from adafactor_spec.errors import refusal
from adafactor_spec.factoring import Plan, Shape

from .._task.matrix_view import reduced_axes
from .._task.memory import zeros_like
from .._task.shard import GroupKey, Shard

DTensor = Any  # torch.distributed is not imported for its name: one exists only where somebody has imported its module


def is_dtensor(x: object) -> TypeGuard[DTensor]:
    """Whether x is a DTensor."""
    return isinstance(x, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def local_of(x: Tensor) -> Tensor:
    """The part that this process holds; of any other tensor, itself. Gradients are off."""
    if not is_dtensor(x):
        return x
    part = x.to_local()
    return part.wait() if hasattr(part, "wait") else part  # where it is still on its way here


def may_get_gradient(p: Tensor) -> bool:
    """Whether a parameter is in every step: that it has no gradient here does not say that it has none elsewhere."""
    return is_dtensor(p) and p.requires_grad


def check_current(who: str, p: Tensor) -> None:
    """Refuse a parameter that FSDP2 has replaced in its model: it gets no gradient, and a step would do nothing.

    Raises:
        ValueError: `fully_shard` has taken it after the optimizer was built.
    """
    if p.grad is None and not is_dtensor(p) and hasattr(p, "_fsdp_orig_uid"):  # the mark is there from torch 2.13 on
        remedy = "Build the optimizer after fully_shard, which replaces parameters."
        raise refusal(who, "a parameter of the sharded model", "one from before fully_shard", remedy)


def is_off_mesh(p: Tensor) -> bool:
    """Whether this process holds nothing of a parameter, as it is not of its mesh."""
    return is_dtensor(p) and p.device_mesh.get_coordinate() is None


def check_parts(who: str, p: Tensor, plan: Plan) -> None:
    """Refuse a parameter whose rows and columns its parts do not show.

    FSDP1 leaves its mark on the original parameters (`use_orig_params=True`) and on the flat ones alike. Sharded by
    FSDP1 after the optimizer was built, a parameter is not seen here.

    Raises:
        ValueError: the parameter is a flat shard of FSDP1, a DTensor of terms of a sum, or a sharded one that its
            factoring rule reshapes.
    """
    if getattr(p, "_fsdp_flattened", False):
        remedy = (
            "Flat shards have neither rows nor columns and cannot be factored. Use FSDP2 "
            "(torch.distributed.fsdp.fully_shard), which keeps both, or torch.nn.parallel.DistributedDataParallel."
        )
        raise refusal(who, "a whole tensor or a DTensor", "a flat shard of FullyShardedDataParallel (FSDP1)", remedy)
    if not is_dtensor(p):
        return
    if any(placement.is_partial() for placement in p.placements):
        remedy = "Redistribute it to Shard or Replicate."
        raise refusal(f"placements of the {who}", "Shard or Replicate", p.placements, remedy)
    if plan.view is not None and _dims(p):
        remedy = "Replicate the parameter, or factor it in its own shape: factoring.last_two or factoring.explicit."
        raise refusal(
            f"placements of the {who}", f"Replicate, as its rule reshapes it to {plan.view}", p.placements, remedy
        )


def new_state_tensor(p: Tensor, entry: str, plan: Plan, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A new tensor of the state of p: placed like p, but replicated along the axes that it has at size 1."""
    if not is_dtensor(p):
        return zeros_like(p, shape, dtype)
    placements = state_placements(p, entry, plan)
    local, reduced = local_of(p), reduced_axes(entry, plan)
    sizes = shape if plan.view else [1 if axis in reduced else size for axis, size in enumerate(local.shape)]
    return _of_parts(p, torch.zeros(sizes, dtype=dtype, device=local.device), placements, shape)


def is_placed_like_state(x: Tensor, p: Tensor, entry: str, plan: Plan) -> bool:
    """Whether a tensor of the state of p has the mesh and placements that `new_state_tensor` gives it."""
    if not is_dtensor(p):
        return not is_dtensor(x)
    return is_dtensor(x) and x.device_mesh == p.device_mesh and x.placements == state_placements(p, entry, plan)


def placed_like_state(x: Tensor, p: Tensor, entry: str, plan: Plan) -> Tensor:
    """A tensor of a state, wherever it was saved, as p's optimizer keeps it: moved by torch where that is needed."""
    if is_placed_like_state(x, p, entry, plan):
        return x
    if is_dtensor(x):
        x = x.full_tensor()
    if not is_dtensor(p):
        return x
    from torch.distributed.tensor import distribute_tensor

    # Every process has all of it: none asks another. Torch moves it to the device of the mesh, which parts that FSDP2
    # offloads to the CPU are not on.
    shape, placements = tuple(x.shape), state_placements(p, entry, plan)
    part = local_of(distribute_tensor(x, p.device_mesh, placements, src_data_rank=None)).to(local_of(p).device)
    return _of_parts(p, part, placements, shape)


def state_placements(p: DTensor, entry: str, plan: Plan) -> tuple[Any, ...]:
    """Those of a tensor of the state of p."""
    from torch.distributed.tensor import Replicate

    reduced, split = reduced_axes(entry, plan), _split_axes(p.placements)
    return tuple(
        Replicate() if axis in reduced else placement for axis, placement in zip(split, p.placements, strict=True)
    )


def shard_of(p: DTensor, plan: Plan, groups: Sequence[GroupKey]) -> Shard:
    """What this process holds of a parameter.

    Args:
        p: the parameter, or one that lies alike.
        plan: of the whole.
        groups: the process group along each dimension of its mesh.
    """
    mesh, split = p.device_mesh, _dims(p)
    own = Plan(tuple(local_of(p).shape), plan.rows, plan.cols, plan.batch, plan.view)
    index = functools.partial(_elements, mesh, p.placements, split, plan.shape, own.shape)
    sizes = tuple(mesh.size(dim) for dim in range(mesh.ndim))
    return Shard(plan, own, split, sizes=sizes, groups=groups, mesh=mesh, placements=p.placements, index=index)


def _elements(
    mesh: Any, placements: tuple[Any, ...], split: dict[int, int], whole: Shape, shape: Shape
) -> Tensor | None:
    """The elements of a shard as indices of the whole, without memory where the shard is one block of it."""
    if not split:
        return None
    index, places = torch.empty(whole, dtype=torch.int32, device="meta"), []
    for axis in range(index.ndim):
        places.append(_places(mesh, placements, split, whole, axis))
        first, count = int(places[-1][0]) if len(places[-1]) else 0, len(places[-1])
        if torch.equal(places[-1], torch.arange(first, first + count, dtype=torch.int64, device="cpu")):
            index = index.narrow(axis, first, count)
    if index.shape == shape:
        return index
    found, stride = torch.zeros(shape, dtype=torch.int64, device="cpu"), 1
    for axis in reversed(range(index.ndim)):
        along = places[axis] * stride
        found = found + along.view([-1 if axis == other else 1 for other in range(index.ndim)])
        stride *= whole[axis]
    return found.to(torch.int32)


def _places(mesh: Any, placements: tuple[Any, ...], split: dict[int, int], whole: Shape, axis: int) -> Tensor:
    """Which places along an axis are held here."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    size, axes = whole[axis], _split_axes(placements)
    if axis not in split.values():
        return torch.arange(size, dtype=torch.int64, device="cpu")
    shape = [size if axis == other else 1 for other in range(len(whole))]
    own = [placement if at == axis else Replicate() for at, placement in zip(axes, placements, strict=True)]
    places = torch.arange(size, dtype=torch.int64, device=mesh.device_type).view(shape)
    return local_of(distribute_tensor(places, mesh, own, src_data_rank=None)).flatten().cpu()


def _of_parts(p: DTensor, local: Tensor, placements: tuple[Any, ...], shape: Shape) -> DTensor:
    from torch.distributed.tensor import DTensor as Made

    sizes, stride = torch.Size(shape), torch.empty(shape, dtype=local.dtype, device="meta").stride()
    if local.device.type == p.device_mesh.device_type:
        return Made.from_local(local, p.device_mesh, placements, run_check=False, shape=sizes, stride=stride)
    # FSDP2 offloads parts to the CPU under a mesh of GPUs. `from_local` would move them back, its own way does not.
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    spec = DTensorSpec(p.device_mesh, placements, TensorMeta(sizes, stride, local.dtype))
    return Made(local, spec, requires_grad=False)


def _dims(p: DTensor) -> dict[int, int]:
    """The dimensions of the mesh that split an axis of a parameter among several processes, and which axis."""
    split = enumerate(_split_axes(p.placements))
    return {dim: axis for dim, axis in split if axis is not None and p.device_mesh.size(dim) > 1}


def _split_axes(placements: tuple[Any, ...]) -> list[int | None]:
    """The axis that each dimension of a mesh splits. A strided shard has one, too, but does not call itself a shard."""
    return [None if x.is_replicate() or x.is_partial() else x.dim for x in placements]
