"""What a step has to do: every check that can refuse it, and then one `Work` for each parameter with a gradient."""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec import PER_NAME, Numbers, Recipe, dtypes, replace, rounding_key
from adafactor_spec.errors import refusal

from .._backends.triton.parts import triton_path
from .._param_groups import Group, counts_on_device, form_of, is_fused, lr_of, named, numbers_of, plan_of
from .._sharding.dtensor import check_current, is_dtensor, is_elsewhere, local_of, takes_part
from .._task.device_schedules import OnDevice, keys_on_device, numbers_on_device, wide
from .._task.memory import called, check_memory, has_address
from .._task.task import COUNT, FLOATS, NO_GRADIENT, Setting, State, Work
from .state import counter_of

Given = tuple[int, str, Tensor]  # position among all parameters, name, parameter
_Ready = tuple[Tensor, Tensor, Setting, int]  # parameter, gradient, setting, position
_NOTHING: State = {}
_MOST_KEPT = 1000  # at once, of the numbers of one recipe, learning rate and step, and of forms of recipes
_LATER = Numbers(**dict.fromkeys(Numbers.__annotations__))  # of works whose steps are counted on a device


class Settings:
    """The settings of parameters, decided once and again only where something has changed."""

    def __init__(self) -> None:
        self.known: dict[Tensor, tuple[Recipe, str, Any, Setting]] = {}
        self._forms: dict[tuple[Any, ...], tuple[Recipe, Recipe]] = {}
        self._settings: dict[tuple[Any, ...], Setting] = {}
        self.places: dict[Tensor, tuple[int, int, int]] = {}
        self._counts: list[int] = []  # of parameters in the groups when the places were taken
        # With what the key names by its address, so that nothing else comes to be there.
        self._numbers: dict[tuple[int, Any, int], tuple[Recipe, Any, Numbers]] = {}

    def place_of(self, p: Tensor, groups: list[Group]) -> tuple[int, int, int]:
        """(number of the group, place in it, position among all parameters) of a parameter of these groups.

        Raises:
            ValueError: it is not one of theirs.
        """
        if not isinstance(p, Tensor):
            raise refusal("p", "a parameter of this optimizer", p)
        number, place, position = self.places.get(p, (0, -1, 0))
        counts = [len(group["params"]) for group in groups]
        if counts != self._counts or place < 0 or groups[number]["params"][place] is not p:
            self.places, self._counts, position = {}, counts, 0
            for number, group in enumerate(groups):
                for place, known in enumerate(group["params"]):
                    self.places.setdefault(known, (number, place, position))
                    position += 1
            if p not in self.places:
                raise refusal("p", "a parameter of this optimizer", f"a tensor of shape {tuple(p.shape)}")
        return self.places[p]

    def numbers(self, recipe: Recipe, lr: Any, t: int) -> Numbers:
        """The numbers of step t of a parameter's recipe under a learning rate, computed once."""
        key = id(recipe), id(lr) if callable(lr) else lr, t
        known = self._numbers.get(key)
        if known is None:
            if len(self._numbers) >= _MOST_KEPT:
                self._numbers.clear()
            known = self._numbers[key] = recipe, lr, numbers_of(replace(recipe, lr=lr), t)
        return known[2]

    def of(self, p: Tensor, name: str, form: Recipe, rounding: str) -> Setting:
        """The setting of one parameter; `form` is its group's recipe as `form_of` gives it."""
        known, held = self.known.get(p), local_of(p)
        where = type(held), held.stride(), held.is_neg()
        if known is not None:
            of_form, of_rounding, before, setting = known
            if of_form is form and of_rounding == rounding and before == where and setting.is_of(p):
                return setting
        by_address = check_memory(called(name, p), p, local_of)
        if len(self._forms) >= _MOST_KEPT:  # of a field without a hash, every step makes a new form
            self._forms.clear()
            self._settings.clear()
        own = form.for_name(name)
        # One object for all names with the same values, by which parameters of one kind are known.
        values = (getattr(own, field) for field in PER_NAME)
        key = id(form), *(id(value) if callable(value) else value for value in values)
        own = self._forms.setdefault(key, (form, own.effective()))[1]
        values_of = own, plan_of(own, name, p), FLOATS[p.dtype], rounding, by_address
        # One object for all parameters of a kind, too.
        setting = self._settings.setdefault((id(own), *values_of[1:]), Setting(*values_of))
        self.known[p] = (form, rounding, where, setting)
        return setting


def given_of(group: Group, first: int) -> list[Given]:
    """The parameters of a group, whose first one has the position `first` among all.

    One that stands there twice, of which torch warns, takes one step: two would have the same number.
    """
    given: dict[Tensor, Given] = {}
    for place, (name, p) in enumerate(named(group)):
        given.setdefault(p, (first + place, name, p))
    return list(given.values())


def ready(group: Group, settings: Settings, given: list[Given]) -> list[_Ready]:
    """Those of the given parameters of a group that have a gradient, after every check that can refuse it.

    A sharded parameter without one is among them: other processes may have one.
    """
    form, rounding, work = form_of(group), group["rounding"], []
    for position, name, p in given:
        grad = p.grad
        if is_elsewhere(p):
            continue
        if grad is not None:
            _check_gradient(name, p, grad)
            # What is in memory is what is meant, for those who read it there.
            grad = grad if is_dtensor(grad) else grad.resolve_neg()
            work.append((p, grad, settings.of(p, name, form, rounding), position))
        elif takes_part(p):
            work.append((p, NO_GRADIENT, settings.of(p, name, form, rounding), position))
        else:
            check_current(called(name, p), p)
    return work


def works_of(group: Group, ready: list[_Ready], states: Any, settings: Settings) -> list[Work]:
    """One step more of every parameter, not yet counted.

    Args:
        group: of the parameters.
        ready: what `ready` found.
        settings: which keep numbers, too.
        states: the optimizer's state; parameters that are new to it are not made known to it here.

    Raises:
        ValueError: a function of t has left the range of its field.
    """
    works, on_device = [], dict[torch.device, list[tuple[Work, int]]]()
    lr = None if all(counts_on_device(group, p) for p, *_ in ready) else lr_of(group)  # of a tensor that is a read
    for p, grad, setting, index in ready:
        state, now, key, counter, t = states.get(p, _NOTHING), _LATER, 0, None, 0
        _check_places(p, state)
        there = counts_on_device(group, p)
        if not there:
            counter = counter_of(state)
            t = 1 if counter is None else int(counter) + 1
            now = settings.numbers(setting.recipe, lr, t)
            if setting.stochastic:
                key = rounding_key(group["seed"], t, index)
        work = Work(p, grad, state, setting, now, key, group["maximize"], counter, t, missing=grad is NO_GRADIENT)
        work.by_address = setting.by_address and (is_dtensor(p) or all(map(has_address, (grad, *state.values()))))
        work.fused = is_dtensor(p) and is_fused(group, p.device.type)
        works.append(work)
        if there:
            on_device.setdefault(p.device, []).append((work, index))
    for device, pairs in on_device.items():
        _number_on_device(group, [work for work, _ in pairs], tuple(index for _, index in pairs), device)
    return works


def _number_on_device(group: Group, works: list[Work], positions: tuple[int, ...], device: torch.device) -> None:
    """Give works whose steps are counted on a device their numbers and keys, as tensors."""
    done = [
        work.state["step"].to(device, COUNT) if "step" in work.state else torch.zeros((), dtype=COUNT, device=device)
        for work in works
    ]
    steps = list(torch._foreach_add(done, 1))
    lr: Any = OnDevice(wide(group["lr"].to(device))) if isinstance(group["lr"], Tensor) else lr_of(group)
    by_recipe: dict[int, list[int]] = {}
    for place, work in enumerate(works):
        by_recipe.setdefault(id(work.setting.recipe), []).append(place)
    for places in by_recipe.values():
        recipe = replace(works[places[0]].setting.recipe, lr=lr)
        for place, now in zip(places, numbers_on_device(recipe, [steps[i] for i in places]), strict=True):
            works[place].now = now
    if any(work.setting.stochastic for work in works):
        for work, key in zip(works, keys_on_device(group["seed"], steps, positions), strict=True):
            work.key = key


def _check_gradient(name: str, p: Any, grad: Any) -> None:
    alike = is_dtensor(grad) == is_dtensor(p)
    if (
        alike
        and (not is_dtensor(grad) or grad.device_mesh == p.device_mesh)
        and grad.layout == torch.strided
        and grad.shape == p.shape
        and grad.dtype in FLOATS
        and grad.device == p.device
        and (not is_dtensor(grad) or has_address(local_of(grad)))
    ):
        return
    who = f"the gradient of {name!r}" if name else f"the gradient of a parameter of shape {tuple(p.shape)}"
    if grad.layout != torch.strided:
        remedy = "Use sparse=False, or torch.optim.SparseAdam for that parameter."
        raise RuntimeError(f"Adafactor does not support sparse gradients, and {who} is {grad.layout}. {remedy}")
    if grad.is_complex():
        raise RuntimeError(f"Adafactor does not support complex gradients, and {who} is {grad.dtype}.")
    if grad.dtype not in FLOATS:
        raise refusal(f"dtype of {who}", "one of " + ", ".join(dtypes.NAMES), str(grad.dtype))
    if grad.device != p.device:
        raise refusal(f"device of {who}", str(p.device), str(grad.device))
    if not alike:
        raise refusal(who, "a DTensor" if is_dtensor(p) else "a plain tensor", type(grad).__name__)
    if is_dtensor(grad) and is_dtensor(p) and grad.device_mesh != p.device_mesh:
        remedy = "Redistribute it, or have it made on the mesh of the parameter."
        raise refusal(f"mesh of {who}", str(p.device_mesh), str(grad.device_mesh), remedy)
    if grad.shape != p.shape:
        raise refusal(f"shape of {who}", str(tuple(p.shape)), tuple(grad.shape))
    raise refusal(f"part of {who} on this process", "a torch.Tensor", type(local_of(grad)).__name__)


def _check_places(p: Tensor, state: State) -> None:
    # A kernel reads what stands at an address, so an address of another device must not get there.
    for entry, x in state.items():
        if entry != "step" and x.device != p.device:
            remedy = "Move the state with the parameter: optimizer.load_state_dict(optimizer.state_dict()) does it."
            who = f"device of the state {entry!r} of a parameter of shape {tuple(p.shape)}"
            raise refusal(who, str(p.device), str(x.device), remedy)


def check_kernels(group: Group, works: list[Work]) -> None:
    """What a GPU needs, before anything is counted."""
    for work in works:
        if work.p.is_cuda:
            if is_fused(group, "cuda"):
                triton_path()
            if torch.cuda.is_current_stream_capturing() and not counts_on_device(group, work.p):
                remedy = "Build the optimizer with it, or set group['capturable'] = True before the first step."
                raise RuntimeError(f"A CUDA graph can hold a step with capturable=True only. {remedy}")
            return
