"""`fused=True` on a CPU for sharded parameters: the C++ of `_native`, phase by phase, on the parts that are held here.

All parts are in one table, so a phase is one call. What it adds up over this process's elements it writes into buffers
that are laid out so that whatever is summed over the same process groups at the same time lies together. The sum of p^2
that is carried from step to step (`_compiled.py`) is that of a part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adafactor_spec.factoring import Shape

from . import _native
from ._canonical import canonical
from ._compiled import Compiled
from ._compiled_table import Table
from ._phases import Amp
from ._sharded_flags import Flags
from ._sharded_held import Held
from ._wires import Asked, Wires

_BEGIN, _MIDDLE, _END = range(3)  # `Phase` of part.cpp


class CompiledParts:
    """Steps parts of parameters on a CPU, and remembers between steps what it has to know of each."""

    def __init__(self) -> None:
        self.compiled = Compiled()
        self._table: _Table | None = None

    def takes(self, one: Held, wires: Wires) -> bool:
        """Whether a part is stepped here, on every process alike; which, is asked for once on each mesh.

        A tensor without elements is not, nor one of which rows and columns are split and kept in 16 bits: what has been
        rounded to them is another sum.
        """
        work, lay = one.work, one.lay
        if not work.fused or not work.p.is_cpu or 0 in lay.whole.shape:
            return False
        if _splits_both(one) and work.state["v_row"].dtype != work.setting.compute:
            return False
        return wires.all_have("library", lay.mesh, lambda: _native.library("part") is not None)

    def steps(self, held: list[Held], flags: Flags, wires: Wires, amp: Amp) -> Iterator[list[Asked]]:
        """One step, in place; see `_sharded_step.py` for where it pauses."""
        library, works = _native.library("part"), [one.work for one in held]
        assert library is not None
        table = self._table_of(held, wires)
        table.begin(works, amp, self.compiled.carries)
        table.run(library, _BEGIN)
        yield table.asked[_BEGIN]
        table.leave_out(flags.good([one.place for one in held]))
        yield []
        table.run(library, _MIDDLE)
        yield table.asked[_MIDDLE]
        table.run(library, _END)
        self.compiled.notice(table.end(works))

    def _table_of(self, held: list[Held], wires: Wires) -> "_Table":
        """The table of the last step, where the same parts are stepped again."""
        if self._table is None or self._table.held is not held or not self._table.lasts:
            rows = [self.compiled.row(one.of, one.work, one.lay) for one in held]
            if self._table is None or self._table.rows != rows:
                self._table = _Table(held, rows, wires)
            self._table.held = held
        return self._table


class _Table(Table):
    """The arguments of the C++ for some parts, and the buffers of what they share."""

    def __init__(self, held: list[Held], rows: list[Any], wires: Wires) -> None:
        super().__init__([one.work for one in held], rows)
        self.held = held
        self.asked: dict[int, list[Asked]] = {_BEGIN: [], _MIDDLE: []}
        self._told = any(one.work.telemetry is not None for one in held)
        kinds: dict[tuple[Any, ...], list[tuple[int, str, int]]] = {}
        for row, one in enumerate(held):
            piece, whole = one.lay.piece, one.lay.whole
            self._of["all_rows"][row], self._of["all_cols"][row] = piece.count(whole.rows), piece.count(whole.cols)
            self._of["all"][row] = piece.per_batch
            for field, count, over, gone in _shares(one):
                phase = _MIDDLE if field == "u_means" else _BEGIN
                groups = tuple(wires.of(one.lay.mesh, one.lay.dims_of(over)))
                kind = one.work.setting.compute, phase, groups, one.lay.is_even((*over, *gone))
                kinds.setdefault(kind, []).append((row, field, count))
        self._buffers = [self._laid(shares, *kind) for kind, shares in kinds.items()]

    def _laid(
        self, shares: list[tuple[int, str, int]], dtype: torch.dtype, phase: int, groups: tuple[Any, ...], even: bool
    ) -> Tensor:
        buffer = torch.zeros(sum(count for _, _, count in shares), dtype=dtype)
        place = buffer.data_ptr()
        for row, field, count in shares:
            self._of[field][row] = place
            place += count * buffer.itemsize
        self.asked[phase].append(Asked(buffer, list(groups), even))
        return buffer

    def begin(self, works: list[Any], amp: Amp, carries: bool) -> None:
        """Write what is of this step alone. A part without elements writes no shares: they are zeros."""
        super().begin(works, amp, carries)
        for buffer in self._buffers:
            buffer.zero_()
        if self._told:
            self._of["telemetry"] = [0 if work.telemetry is None else work.telemetry.data_ptr() for work in works]

    def _versions(self, works: list[Any]) -> list[int]:
        # Operators on a DTensor count as writes of that alone, those on its part as writes of that alone.
        return [one.of._version + one.work.p._version for one in self.held]

    def leave_out(self, good: Tensor | None) -> None:
        """Only what is good is to be written."""
        self._of["skip"] = 0 if good is None else (~good).numpy()


def _shares(one: Held) -> list[tuple[str, int, Shape, Shape]]:
    """What a part writes into buffers: field of the table, elements, axes of the parameter that are summed over, and
    further ones that it has no longer."""
    setting, whole = one.work.setting, one.lay.whole
    batch, lead, rows, cols = canonical(one.lay.plan).sizes
    told, shares = one.work.telemetry is not None, list[tuple[str, int, Shape, Shape]]()
    if whole.factored:
        shares += [
            ("row_means", batch * lead * rows, whole.cols, ()),
            ("col_means", batch * lead * cols, whole.rows, ()),
            ("norms", batch * lead, (), ()),
        ]
        if one.lay.piece.is_split(whole.rows):
            shares.append(("means", batch * lead, whole.rows, whole.cols))
        if _splits_both(one):
            shares.append(("square_means", batch * lead, (*whole.rows, *whole.cols), ()))
    if setting.recipe.multiply_by_parameter_scale or told:
        shares.append(("p_means", batch, whole.rms_axes, ()))
    if setting.clips or told:
        shares.append(("u_means", batch, whole.rms_axes, ()))
    return shares


def _splits_both(one: Held) -> bool:
    whole, piece = one.lay.whole, one.lay.piece
    return whole.factored and piece.is_split(whole.rows) and piece.is_split(whole.cols)
