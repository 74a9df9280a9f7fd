"""Gradients of DTensors, on the parts that this process holds of the parameters."""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec.errors import refusal

from ._phases import Work
from ._sharded import Lay, local_of
from ._wires import Wires


class Gradients:
    """How gradients arrived last, so that a process without one takes part in the sum of its terms."""

    def __init__(self) -> None:
        self._arrived: dict[Tensor, tuple[Any, tuple[int, ...]]] = {}  # placements, shape of the part

    def of(self, works: list[Work], lays: list[Lay], wires: Wires) -> list[Tensor | None]:
        """The part of every gradient that belongs to the part of its parameter; None where there is none here."""
        found: list[Tensor | None] = []
        terms: list[tuple[int, Tensor, Any]] = []
        for i, (work, lay) in enumerate(zip(works, lays, strict=True)):
            grad: Any = None if work.missing else work.grad
            if grad is not None and grad.placements == lay.placements:
                found.append(local_of(grad))
                self._arrived.pop(work.p, None)
                continue
            found.append(None)
            if grad is not None:
                self._arrived[work.p] = grad.placements, tuple(local_of(grad).shape)
            if work.p in self._arrived:
                placements, shape = self._arrived[work.p]
                term = torch.zeros(shape, dtype=work.setting.compute, device=work.p.device)
                if grad is not None:
                    term.copy_(_scaled(local_of(grad), placements, lay))
                terms.append((i, term, placements))
        wires.add([(term, wires.of(lays[i].mesh, _partial(placements, lays[i]))) for i, term, placements in terms])
        for i, term, placements in terms:
            found[i] = None if works[i].missing else _moved(term, placements, works[i].p, lays[i])
        return found


def _partial(placements: Any, lay: Lay) -> list[int]:
    """The dimensions of the mesh along which a gradient is a sum of terms."""
    return [dim for dim, x in enumerate(placements) if x.is_partial() and lay.mesh.size(dim) > 1]


def _scaled(term: Tensor, placements: Any, lay: Lay) -> Tensor:
    """A term such that all of them add up to the gradient."""
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            if placement.reduce_op not in ("sum", "avg"):
                raise refusal("placements of a gradient", "Partial of sum or avg, Shard or Replicate", placement)
            term = term / lay.mesh.size(dim) if placement.reduce_op == "avg" else term
    return term


def _moved(grad: Tensor, placements: Any, p: Any, lay: Lay) -> Tensor:
    """The part of a gradient that belongs to the part of its parameter, from that with these placements, summed up."""
    from torch.distributed.tensor import DTensor, Replicate

    summed = tuple(Replicate() if placement.is_partial() else placement for placement in placements)
    if summed == lay.placements:
        return grad
    stride = torch.empty(p.shape, device="meta").stride()
    whole = DTensor.from_local(grad, lay.mesh, summed, run_check=False, shape=p.shape, stride=stride)
    return local_of(whole.redistribute(placements=lay.placements))
