"""Runs of sharded parameters, for the processes of a test: how they lie, their gradients, and the run that is not."""

import functools
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

from adafactor_spec import factoring, schedules
from adafactor_spec.factoring import by_name, explicit
from adafactor_torch import Adafactor

from .torch_runs import Array, gradient, values

Shape = tuple[int, ...]
STEPS = 10
# 13, 27 and 45 are no multiple of 2 or 4, and of 3 rows on 4 processes one has none.
SHAPES: tuple[Shape, ...] = (
    (16, 8), (13, 27), (45, 13), (3, 6), (13, 27), (5,), (27,), (3,), (6, 5, 9), (3, 2, 4, 5), (), (0, 3)
)  # fmt: skip


@functools.cache
def meshes() -> dict[str, DeviceMesh]:
    """Made by all four processes in one order, which the making of groups needs; two of them are not in the pair."""
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    pair = DeviceMesh("cpu", [0, 1], mesh_dim_names=("dp",))
    return {"square": square, "line": line, "pair": pair, "side": square["dp"]}


def _along(axis: int, shape: Shape) -> Any:
    return Shard(min(axis, len(shape) - 1)) if shape else Replicate()


def _placements(name: str, index: int, shape: Shape) -> tuple[DeviceMesh, tuple[Any, ...]] | None:
    """Mesh and placements of a parameter in a layout, None for a plain tensor."""
    first, second, last = (_along(axis, shape) for axis in (0, 1, max(len(shape) - 1, 0)))
    turn = [_along((index + i) % max(len(shape), 1), shape) for i in (0, 1)]
    matrix = len(shape) > 1
    if name == "plain" or (name == "beside" and index % 2 == 0):
        return None
    if name == "mixed" and index % 2:
        return meshes()["side"], (first,)
    on_line = {"rows": first, "beside": first, "columns": second, "last": last, "any": turn[0], "copies": Replicate()}
    on_square = {
        "hybrid": (Replicate(), first),
        "row": (first, second if matrix else Replicate()),
        "column": (_StridedShard(0, split_factor=2), first) if shape else (first, first),
        "twice": (first, first),
        "turned": (turn[0], turn[1]),
        "mixed": (first, second if matrix else Replicate()),
    }
    kind = name.removesuffix(" of two")
    if kind in on_line:
        return meshes()["line" if kind == name else "pair"], (on_line[kind],)
    return meshes()["square"], on_square[kind]


LAYOUTS = {  # the process groups over which some parameter is sharded
    "rows of two": 1,
    "columns of two": 1,
    "copies": 0,
    "rows": 1,
    "last": 1,
    "any": 1,
    "hybrid": 1,
    "row": 2,
    "column": 2,
    "twice": 2,
    "turned": 2,
    "mixed": 2,
    "beside": 1,
}


def is_in(name: str) -> bool:
    """Whether this process has a share of the parameters of a layout."""
    return not name.endswith(" of two") or meshes()["pair"].get_coordinate() is not None


def laid(name: str, index: int, whole: Tensor) -> Tensor:
    found = _placements(name, index, tuple(whole.shape))
    return whole if found is None else distribute_tensor(whole, *found, src_data_rank=None)


def start(dtype: torch.dtype, shapes: Iterable[Shape]) -> list[Tensor]:
    return [torch.tensor(values(shape, seed)).to(dtype) for seed, shape in enumerate(shapes)]


def gradients(t: int, dtype: torch.dtype, shapes: Iterable[Shape], scale: float = 1.0) -> list[Tensor]:
    return [torch.tensor(scale * gradient(t, i, shape)).to(dtype) for i, shape in enumerate(shapes)]


def optimizer_of(
    name: str, dtype: torch.dtype, cases: Iterable[str], shapes: Iterable[Shape], fused: bool = False
) -> Adafactor:
    """A group for every case of `FIELDS`, each with parameters of all shapes that lie as the layout says."""
    groups, begun = [], [laid(name, i, x) for i, x in enumerate(start(dtype, shapes))]
    for case in cases:
        params = [torch.nn.Parameter(x.clone()) for x in begun]
        groups.append({"params": [(f"p{i}", p) for i, p in enumerate(params)], **FIELDS[case]})
    return Adafactor(groups, fused=fused)


def advance(name: str, optimizer: Adafactor, first: int, last: int, scale: float = 1.0) -> None:
    """Steps `first` to `last`, every group with the same gradients."""
    params = [group["params"] for group in optimizer.param_groups]
    shapes = [tuple(p.shape) for p in params[0]]
    for t in range(first, last + 1):
        for i, g in enumerate(gradients(t, params[0][0].dtype, shapes, scale)):
            given = laid(name, i, g)
            for own in params:
                own[i].grad = given
        optimizer.step()


@functools.cache
def single(
    dtype: torch.dtype, cases: tuple[str, ...], shapes: tuple[Shape, ...], scale: float = 1.0
) -> list[list[Array]]:
    """The parameters of every case after ten steps of one process."""
    optimizer = optimizer_of("plain", dtype, cases, shapes)
    advance("plain", optimizer, 1, STEPS, scale)
    return [[p.detach().numpy() for p in group["params"]] for group in optimizer.param_groups]


def part_of(x: Tensor, p: Any) -> Tensor:
    """The part of x that this process holds of p."""
    if not isinstance(p, DTensor):
        return x
    return local(distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None))


def local(x: Any) -> Tensor:
    return (x.to_local() if isinstance(x, DTensor) else x).detach()


def error(params: Iterable[Tensor], expected: Iterable[Tensor], begun: Iterable[Tensor]) -> float:
    """How far the parts held here are from another run, relative to the distance travelled; the worst parameter's."""
    worst = 0.0
    for p, theirs, before in zip(params, expected, begun, strict=True):
        if local(p).numel():
            deviation = (local(p) - part_of(theirs, p)).abs().max() / (theirs - before).abs().max()
            worst = max(worst, float(deviation.nan_to_num(nan=torch.inf)))  # Python's max would pass over a NaN
    return worst


def shares(tensors: Iterable[Tensor]) -> list[tuple[Any, str]]:
    """For every tensor which share of it this process holds, and the bits of that: replicas have both in common."""
    found = []
    for x in tensors:
        which: Any = None
        if isinstance(x, DTensor):
            places = zip(x.placements, x.device_mesh.get_coordinate() or (), strict=True)
            which = tuple(place for placement, place in places if not placement.is_replicate())
        raw = local(x).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.append((which, hashlib.sha256(raw).hexdigest()))
    return found


class Compared(NamedTuple):
    """A run of one process."""

    errors: dict[str, float]  # of every case
    shares: list[tuple[Any, str]]  # of parameters and state
    counts: dict[str, int]  # of collectives in the last step


def compared(
    name: str,
    dtype: torch.dtype,
    expected: dict[str, list[Array]],
    shapes: tuple[Shape, ...],
    scale: float = 1.0,
    fused: bool = False,
) -> Compared | None:
    """Ten steps of every case, against those of one process; None where this one is not in the layout."""
    if not is_in(name):
        return None
    optimizer = optimizer_of(name, dtype, expected, shapes, fused)
    advance(name, optimizer, 1, STEPS - 1, scale)
    with CommDebugMode() as mode:
        advance(name, optimizer, STEPS, STEPS, scale)
    counts = {str(kind): count for kind, count in mode.get_comm_counts().items() if count}
    begun, found = start(dtype, shapes), optimizer.param_groups
    errors = {
        case: error(group["params"], map(torch.tensor, theirs), begun)
        for (case, theirs), group in zip(expected.items(), found, strict=True)
    }
    kept = [x for group in found for p in group["params"] for x in (p, *optimizer.state[p].values())]
    return Compared(errors, shares(kept), counts)


FIELDS: dict[str, dict[str, Any]] = {
    "paper": {"lr": 0.05},
    "momentum of the gradient": {"lr": 0.05, "beta1": 0.9, "momentum_of": "grad", "debias": True},
    "momentum of the update": {"lr": 0.05, "beta1": 0.9, "momentum_of": "update", "weight_decay": 0.1},
    "momentum of the step": {"lr": 0.05, "beta1": 0.8, "momentum_of": "step", "weight_decay": 0.1},
    "amsgrad": {"lr": 0.05, "amsgrad": True, "weight_decay": 0.1, "weight_decay_by": "grad"},
    "floor": {"lr": 0.05, "eps1_mode": "floor", "eps1": 0.3, "weight_decay": 0.01, "weight_decay_by": "one"},
    "no clipping": {"lr": 0.05, "clipping_threshold": None, "multiply_by_parameter_scale": False},
    "telemetry": {"lr": 0.05, "telemetry": True, "clipping_threshold": None, "maximize": True},
    "batch": {"lr": 0.05, "factoring": by_name({"p8": explicit(1, 2, 0), "p9": explicit((0, 3), (2,), (1,))})},
    "two axes": {"lr": 0.05, "factoring": by_name({"p9": explicit((0, 2), (1, 3)), "p8": explicit(2, 0)})},
    "tiny": {"lr": 20.0, "relative_step": False},
    "skip": {"lr": 0.05, "nonfinite": "skip"},
    "unfactored": {"lr": schedules.piecewise_constant(0.05, (3, 5), 0.5), "factoring": factoring.no_factoring},
    "keras": {"lr": 0.05, "weight_decay": 0.1, "weight_decay_by": "lr", "decay_before_scale": True},
    "transformers": {"recipe": "transformers"},
    "torch": {"recipe": "torch"},
}  # fmt: skip
