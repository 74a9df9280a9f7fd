"""From gradients to works, and from works to a path: the order of a step over all groups."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._canonical import canonical
from ._groups import Group, counts_on_device, form_of, lr_of, named
from ._paths import Paths
from ._phases import Amp, Setting, Work
from ._works import Settings, count, finished, kept, number_on_device, ready, works_of

if TYPE_CHECKING:
    from ._adafactor import Adafactor

_TOLD = ("step_size", "update_rms", "clip_factor", "parameter_rms")


class Engine:
    """What an optimizer remembers beside its groups and state; all of it can be made again from them."""

    def __init__(self) -> None:
        self._settings, self._paths = Settings(), Paths()
        self._has_state: dict[Tensor, Setting] = {}  # the setting that a parameter's state was made for
        self._told: dict[Tensor, Tensor] = {}
        self._skipped: dict[Tensor, Tensor] = {}
        self._latest: dict[int, int] = {}  # the last step of each group with a schedule

    def step(self, optimizer: "Adafactor", only: Tensor | None = None) -> None:
        """One step of every parameter with a gradient, or of one."""
        found = [
            (group, works_of(group, given, optimizer.state), [position for *_, position in given])
            for group, given in ready(optimizer.param_groups, self._settings, only)
        ]  # every check that can refuse the step is behind us
        amp = Amp(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
        for number, (group, works, positions) in enumerate(found):
            if works:
                self._step_group(optimizer, number, group, works, positions, amp)

    def _step_group(
        self, optimizer: "Adafactor", number: int, group: Group, works: list[Work], positions: list[int], amp: Amp
    ) -> None:
        waits = amp.found_inf is not None and not all(counts_on_device(group, work.p) for work in works)
        if waits and amp.found_inf is not None and float(amp.found_inf):
            return
        if waits:
            amp = amp._replace(found_inf=None)
        if group["nonfinite"] == "skip":
            pairs = list(zip(works, positions, strict=True))
            pairs = [pair for pair in pairs if pair[0].p.device.type != "cpu" or self._is_finite(pair[0])]
            works, positions = [work for work, _ in pairs], [position for _, position in pairs]
        on_device = [counts_on_device(group, work.p) for work in works]
        for work, there in zip(works, on_device, strict=True):
            if self._has_state.get(work.p) is not work.setting or len(work.state) != 1 + len(work.setting.layout):
                work.state = kept(optimizer.state[work.p], work.setting, work.p, there)
                self._has_state[work.p] = work.setting
            if there and group["nonfinite"] == "skip":
                work.skipped = self._skips_of(work.p)
            if group["telemetry"]:
                work.telemetry = self._told_of(work)
        if any(on_device):
            self._number(group, works, positions)
        else:
            for work in works:
                count(work.state)
        self._paths.step(group, works, amp)
        self._write_lr(optimizer, number, group, works)

    @staticmethod
    def _number(group: Group, works: list[Work], positions: list[int]) -> None:
        for device in {work.p.device for work in works}:
            places = [i for i, work in enumerate(works) if work.p.device == device]
            there = [works[i] for i in places]
            if device.type != "cpu":
                number_on_device(group, there, [positions[i] for i in places])
            torch._foreach_add_([work.state["step"] for work in there], 1.0)

    def _write_lr(self, optimizer: "Adafactor", number: int, group: Group, works: list[Work]) -> None:
        lr = lr_of(group)
        steps = [work.state for work in works if not work.state["step"].is_cuda]
        if not callable(lr) or not steps:
            return
        if number not in self._latest:
            self._latest[number] = max(finished(optimizer.state.get(p, {})) for p in group["params"])
        self._latest[number] = latest = max(self._latest[number], *map(finished, steps))
        group["lr"] = group["lr_of_schedule"] = float(lr(latest))

    def tidy(self, optimizer: "Adafactor") -> None:
        """Bring the state of every parameter into the layout of its group as that stands now."""
        for group in optimizer.param_groups:
            form = form_of(group)
            for name, p in named(group):
                if p in optimizer.state:
                    setting = self._settings.of(p, name, form, group["rounding"])
                    kept(optimizer.state[p], setting, p, counts_on_device(group, p))

    def telemetry(self, optimizer: "Adafactor") -> dict[str, dict[str, Tensor]]:
        """See `Adafactor.telemetry`."""
        shown = {}
        for number, group in enumerate(optimizer.param_groups):
            for place, (name, p) in enumerate(named(group)):
                if group["telemetry"] and p in self._told:
                    setting, told = self._settings.of(p, name, form_of(group), group["rounding"]), self._told[p]
                    shape = [p.shape[axis] for axis in setting.plan.batch]
                    columns = {of: told[:, i].reshape(shape) for i, of in enumerate(_TOLD)}
                    shown[name or f"{number}.{place}"] = columns | {"skipped": self._skips_of(p)}
        return shown

    def _told_of(self, work: Work) -> Tensor:
        batch = canonical(work.setting.plan).sizes[0]
        if work.p not in self._told or len(self._told[work.p]) != batch:
            self._told[work.p] = torch.full((batch, len(_TOLD)), math.nan, device=work.p.device)
        return self._told[work.p]

    def _skips_of(self, p: Tensor) -> Tensor:
        if p not in self._skipped:
            self._skipped[p] = torch.zeros((), dtype=torch.int64, device=p.device)
        return self._skipped[p]

    def _is_finite(self, work: Work) -> bool:
        lowest, highest = torch.aminmax(work.grad) if work.grad.numel() else (torch.zeros(()), torch.zeros(()))
        finite = math.isfinite(lowest) and math.isfinite(highest)  # a NaN is both
        if not finite:
            self._skips_of(work.p).add_(1)
        return finite
