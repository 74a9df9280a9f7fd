"""Sharded parameters on CUDA: the Triton kernels, where all processes have them."""

from collections.abc import Iterator

from ._paths import triton_path
from ._phases import Amp
from ._sharded_flags import Flags
from ._sharded_held import Held
from ._wires import Asked, Wires


class TritonParts:
    """Steps parts of parameters by the Triton kernels, which are not imported before they are used."""

    def takes(self, one: Held, wires: Wires) -> bool:
        """Whether a part is stepped here, on every process alike."""
        if not one.work.fused or one.work.p.is_cpu:
            return False
        return wires.all_have("Triton", one.lay.mesh, lambda: triton_path() is not None)

    def steps(self, held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
        """One step, in place; see `_sharded_step.py` for where it pauses."""
        from ._fused_sharded import steps

        return steps(held, flags, wires, amp)
