"""From gradients to works, and from works to a path: the order of a step over all groups."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._param_groups import Group, check_lr, check_options, counts_on_device, lr_of, named, plain_form
from .._sharding.dtensor import is_dtensor
from .._task.memory import has_address
from .._task.task import COUNT, NO_AMP, Amp, Setting, State, Work
from .paths import Paths, Way
from .state import finished, kept
from .state import is_asked_for_state as _is_asked_for_state
from .task_cache import Steady, can_be_steady
from .tasks import Given, Settings, given_of, ready, works_of
from .tasks import check_kernels as _check_kernels
from .telemetry import Telemetry
from .undo import Undo, ordinary_mode

if TYPE_CHECKING:
    from .sharded import Arrived, Sharded

States = dict[Tensor, State]  # an optimizer's, which makes an empty one where it has none
# Number of a group, position of its first parameter or None where only some are stepped, works of its parameters.
_Found = tuple[int, int | None, list[Work]]


class _Ready(NamedTuple):
    """A group of which nothing can fail any more."""

    works: list[Work]  # sharded ones too, in complete states
    ways: list[Way]  # of those that are not sharded
    left_out: list[Tensor]  # the counters of steps that are left out, as the host knows
    lr_at: dict[int, float]  # what its schedule says at the steps that it may be at afterwards


class Engine:
    """What an optimizer remembers beside its groups and state; all of it can be made again from them."""

    def __init__(self) -> None:
        self._settings, self._paths, self._telemetry = Settings(), Paths(), Telemetry()
        # The setting that a parameter's state was made for, and whether its steps are counted on its device.
        self._has_state: dict[Tensor, tuple[Setting, bool]] = {}
        self._steady: dict[int, Steady] = {}  # of a group's last step, for as long as the next is like it
        self._sharded: Sharded | None = None
        self._latest: dict[int, int] = {}  # the last step of each group with a schedule
        self._ids: list[int] = []  # of all parameters in the last step

    def step(
        self,
        groups: list[Group],
        states: States,
        amp: Amp = NO_AMP,
        *,
        only: Sequence[Tensor] | None = None,
        already_stepped: Collection[Tensor] = (),
    ) -> None:
        """One step, which has not happened if it fails (`undo.py`).

        Args:
            groups: all groups of the optimizer.
            states: its state.
            amp: what a GradScaler says.
            only: the parameters to step; by default all that have a gradient.
            already_stepped: parameters that the backward pass has stepped, on every process that shares them.
        """
        with ordinary_mode():
            if only is None and not states and _is_asked_for_state():
                self._make_state(groups, states)
                return
            undo = Undo()
            try:
                self._step(groups, states, amp, undo, only, already_stepped)
            except BaseException:
                undo.take_back()
                self._steady.clear()
                raise
            finally:
                for steady in self._steady.values() if only is None else ():
                    steady.forget_gradients()
        self._paths.compiled.warn()
        if self._sharded is not None:
            self._sharded.warn()

    def _step(
        self,
        groups: list[Group],
        states: States,
        amp: Amp,
        undo: Undo,
        only: Sequence[Tensor] | None,
        already_stepped: Collection[Tensor],
    ) -> None:
        for group in groups:
            for name in ("lr", "lr_schedule", "lr_of_schedule"):
                undo.entry(group, name)
        # First whatever can refuse the step, or fail.
        found = self._all(groups, states, already_stepped) if only is None else self._some(groups, states, only)
        arrived = self._arrive([work for *_, works in found for work in works if is_dtensor(work.p)])
        ready = [self._ready(one, groups[one[0]], states, amp, undo) for one in found]
        works = [work for of_group in ready for work in of_group.works]
        sharded = [work for work in works if is_dtensor(work.p)]
        of_sharded = None
        if arrived is not None and self._sharded is not None:
            of_sharded = self._sharded.ready(sharded, arrived, amp)
        # Then what the step is; first what other processes take part in, which may fail before it has written anything.
        undo.count(works)
        if of_sharded is not None and self._sharded is not None:
            self._sharded.step(of_sharded)
            undo.stepped(sharded)
            self._drop_states(states, sharded)
        for way in [way for of_group in ready for way in of_group.ways]:
            for done in way():
                undo.stepped(done)
        for (number, *_), stepped in zip(found, ready, strict=True):
            for skips in stepped.left_out:
                skips += 1
            self._write_lr(number, groups[number], stepped)

    def _all(self, groups: list[Group], states: States, already_stepped: Collection[Tensor]) -> list[_Found]:
        found: list[_Found] = []
        first = 0
        for number, group in enumerate(groups):
            check_lr(group)
            check_options(group)
            steady = self._steady.get(number)
            if steady is not None and steady.again(group, first, states, self._settings):
                found.append((number, first, steady.works))
            else:
                self._steady.pop(number, None)
                # On no process is there a gradient of what has been stepped: nobody has to be asked.
                given = given_of(group, first)
                given = [one for one in given if one[2].grad is not None or one[2] not in already_stepped]
                found.append((number, first, self._anew(states, group, given)))
            first += len(group["params"])
        self._hold_only(groups)
        return found

    def _hold_only(self, groups: list[Group]) -> None:
        """Let go of parameters that have left the groups: others may take their places again and again."""
        params = [p for group in groups for p in group["params"]]
        ids = list(map(id, params))
        if ids == self._ids:
            return
        self._ids, ours = ids, set(params)
        mine: tuple[dict[Tensor, Any], ...] = (self._has_state, self._telemetry.told, self._telemetry.skipped)
        for known in (*mine, self._settings.known, self._settings.places, self._paths.compiled.rows):
            for p in known.keys() - ours:
                del known[p]
        self._steady = {number: steady for number, steady in self._steady.items() if number < len(groups)}
        self._latest.clear()  # by the numbers of groups, which may have moved up
        self._sharded = None  # on all processes, as all have the same groups

    def _some(self, groups: list[Group], states: States, params: Sequence[Tensor]) -> list[_Found]:
        given: dict[int, list[Given]] = {}
        for p in params:
            number, place, position = self._settings.place_of(p, groups)
            names = groups[number].get("param_names")
            given.setdefault(number, []).append((position, names[place] if names else "", p))
        found: list[_Found] = []
        for number, some in given.items():
            group = groups[number]
            check_lr(group)
            check_options(group)
            self._steady.pop(number, None)
            found.append((number, None, self._anew(states, group, some)))
        return found

    def _anew(self, states: States, group: Group, given: list[Given]) -> list[Work]:
        works = works_of(group, ready(group, self._settings, given), states, self._settings)
        _check_kernels(group, works)
        return works

    def _ready(self, found: _Found, group: Group, states: States, amp: Amp, undo: Undo) -> _Ready:
        """A group's works in complete states, none of them counted, and how to step them."""
        number, first, works = found
        skips, left_out = group["nonfinite"] == "skip", list[Tensor]()
        alone = [work for work in works if not is_dtensor(work.p)]
        if amp.found_inf is not None and not all(counts_on_device(group, work.p) for work in alone):
            if float(amp.found_inf):  # who counts steps on the host has to know there whether one is left out
                left_out += [self._telemetry.skips_of(work.p, undo) for work in alone] if skips else []
                works = [work for work in works if is_dtensor(work.p)]
            amp = amp._replace(found_inf=None)
        steady = self._steady.get(number)
        if steady is None and works:
            if skips:  # whether a sharded one is finite is no matter of this process alone
                bad = [w for w in works if not (is_dtensor(w.p) or counts_on_device(group, w.p) or _is_finite(w))]
                left_out += [self._telemetry.skips_of(work.p, undo) for work in bad]
                works = [work for work in works if work not in bad]
            self._complete(states, group, works, skips, undo)
            if first is not None and can_be_steady(group, works):
                steady = self._steady[number] = Steady(group, works)
        alone = [work for work in works if not is_dtensor(work.p)]
        ways = self._paths.ways(group, alone, amp, steady) if alone else []
        return _Ready(works, ways, left_out, self._lr_at(states, number, group, works))

    def _arrive(self, works: list[Work]) -> "Arrived | None":
        """The gradients of the sharded works of all groups; None where there is none of these."""
        if not works:
            return None
        if self._sharded is None:
            from .sharded import Sharded  # not before, as it imports torch.distributed

            self._sharded = Sharded()
        return self._sharded.arrive(works)

    def _drop_states(self, states: States, works: list[Work]) -> None:
        """Those of sharded parameters that have not taken a first step."""
        for work in works:
            if work.state["step"].is_cpu and not finished(work.state):  # there was no gradient anywhere, or a bad one
                del states[work.p]
                self._has_state.pop(work.p)

    def _complete(self, states: States, group: Group, works: list[Work], skips: bool, undo: Undo) -> None:
        """Give works complete states, and places for what is to be told."""
        for work in works:
            there = counts_on_device(group, work.p)
            known = self._has_state.get(work.p) == (work.setting, there)
            complete = len(work.state) == 1 + len(work.setting.layout) and work.state["step"].dtype == COUNT
            if not known or not complete:
                undo.entry(self._has_state, work.p, work.p)
                undo.entry(states, work.p, work.p)
                work.state, work.counter = kept(states[work.p], work.setting, work.p, there), None
                self._has_state[work.p] = work.setting, there
                work.by_address &= is_dtensor(work.p) or all(map(has_address, work.state.values()))
            if skips and (there or is_dtensor(work.p)):
                work.skipped = self._telemetry.skips_of(work.p, undo)
            if group["telemetry"]:
                work.telemetry = self._telemetry.of(work, undo)

    def _lr_at(self, states: States, number: int, group: Group, works: list[Work]) -> dict[int, float]:
        """What a group's schedule says at the last step of its parameters as the host counts them, now and after."""
        steps = {work.t for work in works if work.t}
        if group["lr_schedule"] is None or not steps:
            return {}
        lr = lr_of(group)
        if not callable(lr):
            return {}
        if number not in self._latest:
            there = [p for p in group["params"] if not counts_on_device(group, p)]
            self._latest[number] = max(finished(states.get(p, {})) for p in there)
        latest = self._latest[number]
        return {t: float(lr(t)) for t in (steps | {latest} if latest > min(steps) else steps)}

    def _write_lr(self, number: int, group: Group, ready: _Ready) -> None:
        steps = [work.t for work in ready.works if work.t]
        if ready.lr_at and steps:
            self._latest[number] = latest = max(self._latest[number], *steps)
            group["lr"] = group["lr_of_schedule"] = ready.lr_at[latest]

    def _make_state(self, groups: list[Group], states: States) -> None:
        """The state of every parameter with a gradient, as it is before the first step."""
        for group in groups:
            for p in group["params"]:
                if p.grad is not None:
                    states[p]  # which makes an empty one
        self.tidy(groups, states)

    def tidy(self, groups: list[Group], states: States) -> None:
        """Bring the state of every parameter into the layout of its group as that stands now."""
        for group in groups:
            form = plain_form(group)
            for name, p in named(group):
                if p in states:
                    setting = self._settings.of(p, name, form, group["rounding"])
                    kept(states[p], setting, p, counts_on_device(group, p))

    def telemetry(self, groups: list[Group]) -> dict[str, dict[str, Tensor]]:
        """See `Adafactor.telemetry`."""
        return self._telemetry.shown(groups, self._settings)


def _is_finite(work: Work) -> bool:
    if not work.grad.numel():
        return True
    lowest, highest = torch.aminmax(work.grad)
    return math.isfinite(lowest) and math.isfinite(highest)  # a NaN is both
