"""Runs one optimizer step: builds a task for each parameter, and hands the tasks to backends."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backends.protocol import Phases
from .._param_groups import Group, check_lr, check_options, counts_on_device, learning_rate, named, plain_form
from .._sharding.dtensor import is_dtensor
from .._task.memory import has_address
from .._task.task import COUNT, NO_AMP, Amp, ParamConfig, State, Task
from .run import Assigned, Runner
from .state import ensure_state, step_count
from .state import is_asked_for_state as _is_asked_for_state
from .task_cache import TaskCache, can_be_cached
from .tasks import ConfigCache, Given, build_tasks, checked, members
from .tasks import check_kernels as _check_kernels
from .telemetry import Telemetry
from .undo import Undo, ordinary_mode

States = dict[Tensor, State]  # an optimizer's, which makes an empty one where it has none
# Number of a group, position of its first parameter or None where only some are stepped, tasks of its parameters.
_Found = tuple[int, int | None, list[Task]]


class _Prepared(NamedTuple):
    """A group of which nothing can fail any more."""

    tasks: list[Task]  # sharded ones too, in complete states
    whole: list[Phases]  # the steps of those that are not sharded
    left_out: list[Tensor]  # the counters of steps that are left out, as the host knows
    lr_at: dict[int, float]  # what its schedule says at the steps that it may be at afterwards


class Driver:
    """What an optimizer remembers beside its groups and state; all of it can be made again from them."""

    def __init__(self) -> None:
        self._configs, self._runner, self._telemetry = ConfigCache(), Runner(), Telemetry()
        # The config that a parameter's state was made for, and whether its steps are counted on its device.
        self._has_state: dict[Tensor, tuple[ParamConfig, bool]] = {}
        self._caches: dict[int, TaskCache] = {}  # of a group's last step, for as long as the next is like it
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
                self._caches.clear()
                self._runner.forget_tasks()
                raise
            finally:
                for cache in self._caches.values() if only is None else ():
                    cache.forget_gradients()
        self._runner.warn()

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
        arriving = [task for *_, tasks in found for task in tasks if is_dtensor(task.param)]
        if arriving:
            self._runner.local.receive(arriving)
        prepared = [self._prepare(one, groups[one[0]], states, amp, undo) for one in found]
        tasks = [task for of_group in prepared for task in of_group.tasks]
        sharded = [task for task in tasks if is_dtensor(task.param)]
        step_shards = self._runner.prepare_shards(sharded, amp) if sharded else None
        # Then what the step is; first what other processes take part in, which may fail before it has written anything.
        undo.count(tasks)
        if step_shards is not None:
            step_shards()
            undo.stepped(sharded)
            self._drop_states(states, sharded)
        for steps in [steps for of_group in prepared for steps in of_group.whole]:
            for _ in steps:
                pass  # whole parameters have nothing to add up
        for (number, *_), one in zip(found, prepared, strict=True):
            for skips in one.left_out:
                skips += 1
            self._write_lr(number, groups[number], one)

    def _all(self, groups: list[Group], states: States, already_stepped: Collection[Tensor]) -> list[_Found]:
        found: list[_Found] = []
        first = 0
        for number, group in enumerate(groups):
            check_lr(group)
            check_options(group)
            cache = self._caches.get(number)
            if cache is not None and cache.still_holds(group, first, states, self._configs):
                found.append((number, first, cache.tasks))
            else:
                self._caches.pop(number, None)
                # On no process is there a gradient of what has been stepped: nobody has to be asked.
                given = members(group, first)
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
        self._runner.forget(self._configs.known.keys() - ours)
        mine: tuple[dict[Tensor, Any], ...] = (self._has_state, self._telemetry.values, self._telemetry.skipped)
        for known in (*mine, self._configs.known, self._configs.places):
            for p in known.keys() - ours:
                del known[p]
        self._caches = {number: cache for number, cache in self._caches.items() if number < len(groups)}
        self._latest.clear()  # by the numbers of groups, which may have moved up
        self._runner.forget_shards()  # on all processes, as all have the same groups

    def _some(self, groups: list[Group], states: States, params: Sequence[Tensor]) -> list[_Found]:
        given: dict[int, list[Given]] = {}
        for p in params:
            number, place, position = self._configs.place_of(p, groups)
            names = groups[number].get("param_names")
            given.setdefault(number, []).append((position, names[place] if names else "", p))
        found: list[_Found] = []
        for number, some in given.items():
            group = groups[number]
            check_lr(group)
            check_options(group)
            self._caches.pop(number, None)
            found.append((number, None, self._anew(states, group, some)))
        return found

    def _anew(self, states: States, group: Group, given: list[Given]) -> list[Task]:
        tasks = build_tasks(group, checked(group, self._configs, given), states, self._configs)
        _check_kernels(group, tasks)
        return tasks

    def _prepare(self, found: _Found, group: Group, states: States, amp: Amp, undo: Undo) -> _Prepared:
        """A group's tasks in complete states, none of them counted, and how to step them."""
        number, first, tasks = found
        skips, left_out = group["nonfinite"] == "skip", list[Tensor]()
        alone = [task for task in tasks if not is_dtensor(task.param)]
        if amp.found_inf is not None and not all(counts_on_device(group, task.param) for task in alone):
            if float(amp.found_inf):  # who counts steps on the host has to know there whether one is left out
                left_out += [self._telemetry.skips_of(task.param, undo) for task in alone] if skips else []
                tasks = [task for task in tasks if is_dtensor(task.param)]
            amp = amp._replace(found_inf=None)
        cache = self._caches.get(number)
        if cache is None and tasks:
            if skips:  # whether a sharded one is finite is no matter of this process alone
                bad = [
                    w for w in tasks if not (is_dtensor(w.param) or counts_on_device(group, w.param) or _is_finite(w))
                ]
                left_out += [self._telemetry.skips_of(task.param, undo) for task in bad]
                tasks = [task for task in tasks if task not in bad]
            self._complete(states, group, tasks, skips, undo)
            if first is not None and can_be_cached(group, tasks):
                cache = self._caches[number] = TaskCache(group, tasks)
        alone = [task for task in tasks if not is_dtensor(task.param)]
        whole = self._runner.prepare(self._assigned(alone, cache), amp, undo.stepped) if alone else []
        return _Prepared(tasks, whole, left_out, self._lr_at(states, number, group, tasks))

    def _assigned(self, tasks: list[Task], cache: TaskCache | None) -> Assigned:
        """The backends of whole parameters of one group, found once for as long as the same tasks come again."""
        if cache is None:
            return self._runner.assign(tasks)
        if cache.assigned is None:
            cache.assigned = self._runner.assign(tasks)
        return cache.assigned

    def _drop_states(self, states: States, tasks: list[Task]) -> None:
        """Those of sharded parameters that have not taken a first step."""
        for task in tasks:
            if task.state["step"].is_cpu and not step_count(task.state):  # there was no gradient anywhere, or a bad one
                del states[task.param]
                self._has_state.pop(task.param)

    def _complete(self, states: States, group: Group, tasks: list[Task], skips: bool, undo: Undo) -> None:
        """Give tasks complete states, and tensors for their telemetry."""
        for task in tasks:
            there = counts_on_device(group, task.param)
            known = self._has_state.get(task.param) == (task.config, there)
            complete = len(task.state) == 1 + len(task.config.layout) and task.state["step"].dtype == COUNT
            if not known or not complete:
                undo.entry(self._has_state, task.param, task.param)
                undo.entry(states, task.param, task.param)
                task.stored, task.counter = ensure_state(states[task.param], task.config, task.param, there), None
                task.state = task.stored
                self._has_state[task.param] = task.config, there
                task.by_address &= is_dtensor(task.param) or all(map(has_address, task.state.values()))
            if skips and (there or is_dtensor(task.param)):
                task.skipped = self._telemetry.skips_of(task.param, undo)
            if group["telemetry"]:
                task.telemetry = self._telemetry.of(task, undo)

    def _lr_at(self, states: States, number: int, group: Group, tasks: list[Task]) -> dict[int, float]:
        """What a group's schedule says at the last step of its parameters as the host counts them, now and after."""
        steps = {task.t for task in tasks if task.t}
        if group["lr_schedule"] is None or not steps:
            return {}
        lr = learning_rate(group)
        if not callable(lr):
            return {}
        if number not in self._latest:
            there = [p for p in group["params"] if not counts_on_device(group, p)]
            self._latest[number] = max(step_count(states.get(p, {})) for p in there)
        latest = self._latest[number]
        return {t: float(lr(t)) for t in (steps | {latest} if latest > min(steps) else steps)}

    def _write_lr(self, number: int, group: Group, prepared: _Prepared) -> None:
        steps = [task.t for task in prepared.tasks if task.t]
        if prepared.lr_at and steps:
            self._latest[number] = latest = max(self._latest[number], *steps)
            group["lr"] = group["lr_of_schedule"] = prepared.lr_at[latest]

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
                    config = self._configs.of(p, name, form, group["rounding"])
                    ensure_state(states[p], config, p, counts_on_device(group, p))

    def telemetry(self, groups: list[Group]) -> dict[str, dict[str, Tensor]]:
        """See `Adafactor.telemetry`."""
        return self._telemetry.by_name(groups, self._configs)


def _is_finite(task: Task) -> bool:
    if not task.grad.numel():
        return True
    lowest, highest = torch.aminmax(task.grad)
    return math.isfinite(lowest) and math.isfinite(highest)  # a NaN is both
