"""Sharded parameters on CUDA: the Triton kernels, where all processes have them."""

from collections.abc import Iterator

from ._paths import triton_path
from ._phases import Amp
from ._sharded_flags import Flags
from ._sharded_held import Held
from ._wires import Asked, Wires


class TritonParts:
    """Steps parts of parameters by the Triton kernels, which are not imported before they are used."""

    def __init__(self) -> None:
        self._agreed: dict[int, bool] = {}  # of a mesh, whether all its processes have Triton

    def takes(self, one: Held, wires: Wires) -> bool:
        """Whether a part is stepped here, on every process alike; that is asked for once on each mesh."""
        if not one.work.fused or one.work.p.is_cpu:
            return False
        mesh = one.lay.mesh
        if id(mesh) not in self._agreed:
            self._agreed[id(mesh)] = wires.all_agree(mesh, triton_path() is not None)
        return self._agreed[id(mesh)]

    def steps(self, held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
        """One step, in place; see `_sharded_step.py` for where it pauses."""
        from ._fused_sharded import steps

        return steps(held, flags, wires, amp)
