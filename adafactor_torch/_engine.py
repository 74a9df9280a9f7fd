"""From gradients to works, and from works to a path: the order of a step over all groups."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._groups import Group, check_lr, check_options, counts_on_device, form_of, is_fused, lr_of, named, plain_form
from ._memory import has_address
from ._paths import Paths, triton_path
from ._phases import COUNT, Amp, Setting, Work
from ._release import stepped_in_backward
from ._sharded import is_dtensor, local_of
from ._steady import Steady, can_be_steady
from ._works import Given, Settings, count, finished, given_of, kept, ready, works_of

if TYPE_CHECKING:
    from ._adafactor import Adafactor
    from ._sharded_step import Arrived, Sharded

# Number of a group, position of its first parameter or None where only some are stepped, works of its parameters.
_Found = tuple[int, int | None, list[Work]]
_TOLD = ("step_size", "update_rms", "clip_factor", "parameter_rms")


class Engine:
    """What an optimizer remembers beside its groups and state; all of it can be made again from them."""

    def __init__(self) -> None:
        self._settings, self._paths = Settings(), Paths()
        # The setting that a parameter's state was made for, and whether its steps are counted on its device.
        self._has_state: dict[Tensor, tuple[Setting, bool]] = {}
        self._told: dict[Tensor, tuple[Setting, Tensor]] = {}
        self._skipped: dict[Tensor, Tensor] = {}
        self._steady: dict[int, Steady] = {}  # of a group's last step, for as long as the next is like it
        self._sharded: Sharded | None = None
        self._latest: dict[int, int] = {}  # the last step of each group with a schedule
        self._ids: list[int] = []  # of all parameters in the last step

    def step(self, optimizer: "Adafactor", only: Sequence[Tensor] | None = None) -> None:
        """One step of every parameter with a gradient, or of some."""
        if only is None and not optimizer.state and _is_asked_for_state():
            self._make_state(optimizer)
            return
        try:
            found = self._all(optimizer) if only is None else self._some(optimizer, only)
            arrived = self._arrive([work for *_, works in found for work in works if is_dtensor(work.p)])
            # Every check that can refuse the step is behind us.
            amp = Amp(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
            done = [self._step_group(optimizer, number, first, works, amp) for number, first, works in found]
            if arrived is not None:
                sharded = [work for works in done for work in works if is_dtensor(work.p)]
                self._step_sharded(optimizer, sharded, arrived, amp)
            for (number, *_), works in zip(found, done, strict=True):
                self._write_lr(optimizer, number, optimizer.param_groups[number], works)
        finally:
            for steady in self._steady.values() if only is None else ():
                steady.forget_gradients()

    def _all(self, optimizer: "Adafactor") -> list[_Found]:
        found: list[_Found] = []
        first, taken = 0, stepped_in_backward(optimizer)
        for number, group in enumerate(optimizer.param_groups):
            check_lr(group)
            check_options(group)
            steady = self._steady.get(number)
            if steady is not None and steady.again(group, first, optimizer.state, self._settings):
                found.append((number, first, steady.works))
            else:
                self._steady.pop(number, None)
                # On no process is there a gradient of what has been stepped: nobody has to be asked.
                given = [one for one in given_of(group, first) if one[2].grad is not None or one[2] not in taken]
                found.append((number, first, self._anew(optimizer, group, given)))
            first += len(group["params"])
        self._hold_only(optimizer.param_groups)
        return found

    def _hold_only(self, groups: list[Group]) -> None:
        """Let go of parameters that have left the groups: others may take their places again and again."""
        params = [p for group in groups for p in group["params"]]
        ids = list(map(id, params))
        if ids == self._ids:
            return
        self._ids, ours = ids, set(params)
        mine: tuple[dict[Tensor, Any], ...] = (self._has_state, self._told, self._skipped)
        for known in (*mine, self._settings.known, self._settings.places, self._paths.compiled.rows):
            for p in known.keys() - ours:
                del known[p]
        self._steady = {number: steady for number, steady in self._steady.items() if number < len(groups)}
        self._latest.clear()  # by the numbers of groups, which may have moved up
        self._sharded = None  # on all processes, as all have the same groups

    def _some(self, optimizer: "Adafactor", params: Sequence[Tensor]) -> list[_Found]:
        given: dict[int, list[Given]] = {}
        for p in params:
            number, place, position = self._settings.place_of(p, optimizer.param_groups)
            names = optimizer.param_groups[number].get("param_names")
            given.setdefault(number, []).append((position, names[place] if names else "", p))
        found: list[_Found] = []
        for number, some in given.items():
            group = optimizer.param_groups[number]
            check_lr(group)
            check_options(group)
            self._steady.pop(number, None)
            found.append((number, None, self._anew(optimizer, group, some)))
        return found

    def _anew(self, optimizer: "Adafactor", group: Group, given: list[Given]) -> list[Work]:
        works = works_of(group, ready(group, self._settings, given), optimizer.state, self._settings)
        _check_kernels(group, works)
        return works

    def _step_group(
        self, optimizer: "Adafactor", number: int, first: int | None, works: list[Work], amp: Amp
    ) -> list[Work]:
        """The works that are done, sharded ones still to be."""
        group = optimizer.param_groups[number]
        skips = group["nonfinite"] == "skip"
        alone = [work for work in works if not is_dtensor(work.p)]
        if amp.found_inf is not None and not all(counts_on_device(group, work.p) for work in alone):
            if float(amp.found_inf):  # who counts steps on the host has to know there whether one is left out
                for work in alone if skips else ():
                    self._skips_of(work.p).add_(1)
                works = [work for work in works if is_dtensor(work.p)]
            found_inf = None
        else:
            found_inf = amp.found_inf
        steady = self._steady.get(number)
        if steady is None and works:
            works = self._completed(optimizer, group, works, skips)
            if first is not None and can_be_steady(group, works):
                steady = self._steady[number] = Steady(group, works)
        for work in works:
            if work.t:
                count(work)
        alone = [work for work in works if not is_dtensor(work.p)]
        if alone:
            self._paths.step(group, alone, amp._replace(found_inf=found_inf), steady)
        return works

    def _arrive(self, works: list[Work]) -> "Arrived | None":
        """The gradients of the sharded works of all groups; None where there is none of these."""
        if not works:
            return None
        if self._sharded is None:
            from ._sharded_step import Sharded  # not before, as it imports torch.distributed

            self._sharded = Sharded()
        return self._sharded.arrive(works)

    def _step_sharded(self, optimizer: "Adafactor", works: list[Work], arrived: "Arrived", amp: Amp) -> None:
        """The sharded works of all groups together."""
        assert self._sharded is not None
        self._sharded.step(works, arrived, amp)
        for work in works:
            if work.state["step"].is_cpu and not finished(work.state):  # there was no gradient anywhere, or a bad one
                del optimizer.state[work.p]
                self._has_state.pop(work.p)

    def _completed(self, optimizer: "Adafactor", group: Group, works: list[Work], skips: bool) -> list[Work]:
        """The works to be done, with complete states, counted where a device counts."""
        if skips:  # whether a sharded one is finite is no matter of this process alone
            undecided = [is_dtensor(work.p) or counts_on_device(group, work.p) for work in works]
            works = [work for work, later in zip(works, undecided, strict=True) if later or self._is_finite(work)]
        on_device = []
        for work in works:
            there = counts_on_device(group, work.p)
            known = self._has_state.get(work.p) == (work.setting, there)
            complete = len(work.state) == 1 + len(work.setting.layout) and work.state["step"].dtype == COUNT
            if not known or not complete:
                work.state, work.counter = kept(optimizer.state[work.p], work.setting, work.p, there), None
                self._has_state[work.p] = work.setting, there
                work.by_address &= is_dtensor(work.p) or all(map(has_address, work.state.values()))
            if skips and (there or is_dtensor(work.p)):
                work.skipped = self._skips_of(work.p)
            if group["telemetry"]:
                work.telemetry = self._told_of(work)
            if there:
                on_device.append(work.state["step"])
        if on_device:
            torch._foreach_add_(on_device, 1)
        return works

    def _write_lr(self, optimizer: "Adafactor", number: int, group: Group, works: list[Work]) -> None:
        if group["lr_schedule"] is None:
            return
        lr = lr_of(group)
        steps = [work.t for work in works if work.t]
        if not callable(lr) or not steps:
            return
        if number not in self._latest:
            there = [p for p in group["params"] if not counts_on_device(group, p)]
            self._latest[number] = max(finished(optimizer.state.get(p, {})) for p in there)
        self._latest[number] = latest = max(self._latest[number], *steps)
        group["lr"] = group["lr_of_schedule"] = float(lr(latest))

    def _make_state(self, optimizer: "Adafactor") -> None:
        """The state of every parameter with a gradient, as it is before the first step."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    optimizer.state[p]  # which makes an empty one
        self.tidy(optimizer)

    def tidy(self, optimizer: "Adafactor") -> None:
        """Bring the state of every parameter into the layout of its group as that stands now."""
        for group in optimizer.param_groups:
            form = plain_form(group)
            for name, p in named(group):
                if p in optimizer.state:
                    setting = self._settings.of(p, name, form, group["rounding"])
                    kept(optimizer.state[p], setting, p, counts_on_device(group, p))

    def telemetry(self, optimizer: "Adafactor") -> dict[str, dict[str, Tensor]]:
        """See `Adafactor.telemetry`."""
        shown: dict[str, dict[str, Tensor]] = {}
        for number, group in enumerate(optimizer.param_groups):
            for place, (name, p) in enumerate(named(group)):
                if group["telemetry"] and (p in self._told or p in self._skipped):
                    if p not in self._told:  # every step so far was left out
                        setting = self._settings.of(p, name, form_of(group), group["rounding"])
                        self._told[p] = setting, _nothing_told(setting, p)
                    setting, told = self._told[p]
                    shape = _batch_shape(setting, p)
                    columns = {of: told[:, i].reshape(shape) for i, of in enumerate(_TOLD)}
                    who = name or f"{number}.{place}"
                    who = f"{number}.{who}" if who in shown else who  # two models, say, that have a "bias" each
                    shown[who] = columns | {"skipped": self._skips_of(p)}
        return shown

    def _told_of(self, work: Work) -> Tensor:
        known = self._told.get(work.p)
        if known is None or known[0] is not work.setting:
            known = self._told[work.p] = work.setting, _nothing_told(work.setting, work.p)
        return known[1]

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


def _is_asked_for_state() -> bool:
    """Whether a step is that of torch.distributed.checkpoint, which wants a new optimizer to have a state to look at.

    Its gradients are zeros and it sets lr = 0, but to decay weights by anything else would move them.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    asks = getattr(getattr(module, "_init_optim_state", None), "__code__", None)
    frame = sys._getframe() if asks is not None else None
    while frame is not None and frame.f_code is not asks:
        frame = frame.f_back
    return frame is not None


def _check_kernels(group: Group, works: list[Work]) -> None:
    """What a GPU needs, before anything is counted."""
    for work in works:
        if work.p.is_cuda:
            if is_fused(group, "cuda"):
                triton_path()
            if torch.cuda.is_current_stream_capturing() and not counts_on_device(group, work.p):
                remedy = "Build the optimizer with it, or set group['capturable'] = True before the first step."
                raise RuntimeError(f"A CUDA graph can hold a step with capturable=True only. {remedy}")
            return


def _nothing_told(setting: Setting, p: Tensor) -> Tensor:
    count = math.prod(_batch_shape(setting, p))
    return torch.full((count, len(_TOLD)), math.nan, device=p.device)


def _batch_shape(setting: Setting, p: Tensor) -> list[int]:
    """The sizes of the batch axes; of those of a sharded one, what this process holds."""
    shape = local_of(p).shape
    return [shape[axis] for axis in setting.plan.batch]
