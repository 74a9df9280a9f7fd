"""Builds the tasks of a step, one for each parameter with a gradient, after every check that can refuse the step."""

from typing import Any

import torch
from torch import Tensor

from adafactor_spec import PER_NAME, Numbers, Recipe, dtypes, replace, rounding_key
from adafactor_spec.errors import refusal

from .._backends.triton import triton_path
from .._param_groups import (
    Group,
    counts_on_device,
    is_fused,
    learning_rate,
    named,
    numbers_of,
    plan_of,
    recipe_without_lr,
)
from .._sharding.dtensor import check_current, is_dtensor, is_off_mesh, local_of, may_get_gradient
from .._task.device_schedules import OnDevice, keys_on_device, numbers_on_device, wide
from .._task.memory import called, check_memory, has_address
from .._task.task import COUNT, FLOATS, NO_GRADIENT, ParamConfig, State, Task
from .state import counter_of

Given = tuple[int, str, Tensor]  # position among all parameters, name, parameter
_Checked = tuple[Tensor, Tensor, ParamConfig, int]  # parameter, gradient, config, position
_NOTHING: State = {}
_MOST_KEPT = 1000  # at once, of the numbers of one recipe, learning rate and step, and of forms of recipes
_LATER = Numbers(**dict.fromkeys(Numbers.__annotations__))  # of tasks whose steps are counted on a device


class ConfigCache:
    """The `ParamConfig`s of parameters, which are made anew only where something has changed."""

    def __init__(self) -> None:
        self.known: dict[Tensor, tuple[Recipe, str, Any, ParamConfig]] = {}
        self._forms: dict[tuple[Any, ...], tuple[Recipe, Recipe]] = {}
        self._configs: dict[tuple[Any, ...], ParamConfig] = {}
        self.places: dict[Tensor, tuple[int, int, int]] = {}
        self._counts: list[int] = []  # of parameters in the groups when the places were taken
        # The key holds ids; the value keeps those objects alive, so that an id cannot be used again for another object.
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

    def of(self, p: Tensor, name: str, form: Recipe, rounding: str) -> ParamConfig:
        """The config of one parameter; `form` is its group's recipe as `recipe_without_lr` gives it."""
        known, held = self.known.get(p), local_of(p)
        where = type(held), held.stride(), held.is_neg()
        if known is not None:
            of_form, of_rounding, before, config = known
            if of_form is form and of_rounding == rounding and before == where and config.is_of(p):
                return config
        by_address = check_memory(called(name, p), p, local_of)
        if len(self._forms) >= _MOST_KEPT:  # of a field without a hash, every step makes a new form
            self._forms.clear()
            self._configs.clear()
        own = form.for_name(name)
        # One object for all names with the same values, by which parameters of one kind are known.
        values = (getattr(own, field) for field in PER_NAME)
        key = id(form), *(id(value) if callable(value) else value for value in values)
        own = self._forms.setdefault(key, (form, own.effective()))[1]
        values_of = own, plan_of(own, name, p), FLOATS[p.dtype], rounding, by_address
        # One object for all parameters of a kind, too.
        config = self._configs.setdefault((id(own), *values_of[1:]), ParamConfig(*values_of))
        self.known[p] = (form, rounding, where, config)
        return config


def members(group: Group, first: int) -> list[Given]:
    """The parameters of a group, whose first one has the position `first` among all.

    One that stands there twice, of which torch warns, takes one step: two would have the same number.
    """
    given: dict[Tensor, Given] = {}
    for place, (name, p) in enumerate(named(group)):
        given.setdefault(p, (first + place, name, p))
    return list(given.values())


def checked(group: Group, configs: ConfigCache, given: list[Given]) -> list[_Checked]:
    """Those of the given parameters of a group that have a gradient, after every check that can refuse it.

    A sharded parameter without one is among them: other processes may have one.
    """
    form, rounding, found = recipe_without_lr(group), group["rounding"], list[_Checked]()
    for position, name, p in given:
        grad = p.grad
        if is_off_mesh(p):
            continue
        if grad is not None:
            _check_gradient(name, p, grad)
            # What is in memory is what is meant, for those who read it there.
            grad = grad if is_dtensor(grad) else grad.resolve_neg()
            found.append((p, grad, configs.of(p, name, form, rounding), position))
        elif may_get_gradient(p):
            found.append((p, NO_GRADIENT, configs.of(p, name, form, rounding), position))
        else:
            check_current(called(name, p), p)
    return found


def build_tasks(group: Group, checked: list[_Checked], states: Any, configs: ConfigCache) -> list[Task]:
    """One step more of every parameter, not yet counted.

    Args:
        group: of the parameters.
        checked: what `checked` found.
        configs: which keep numbers, too.
        states: the optimizer's state; parameters that are new to it are not made known to it here.

    Raises:
        ValueError: a function of t has left the range of its field.
    """
    tasks, on_device = [], dict[torch.device, list[tuple[Task, int]]]()
    on_host = not all(counts_on_device(group, p) for p, *_ in checked)
    lr = learning_rate(group) if on_host else None  # of a tensor that is a read
    for p, grad, config, index in checked:
        state, now, key, counter, t = states.get(p, _NOTHING), _LATER, 0, None, 0
        _check_places(p, state)
        there = counts_on_device(group, p)
        if not there:
            counter = counter_of(state)
            t = 1 if counter is None else int(counter) + 1
            now = configs.numbers(config.recipe, lr, t)
            if config.rounds == "stochastic":
                key = rounding_key(group["seed"], t, index)
        task = Task(p, grad, state, config, now, key, group["maximize"], counter, t, has_grad=grad is not NO_GRADIENT)
        task.by_address = config.by_address and (is_dtensor(p) or all(map(has_address, (grad, *state.values()))))
        task.fused, task.foreach = is_fused(group, p.device.type), group["foreach"]
        tasks.append(task)
        if there:
            on_device.setdefault(p.device, []).append((task, index))
    for device, pairs in on_device.items():
        _number_on_device(group, [task for task, _ in pairs], tuple(index for _, index in pairs), device)
    return tasks


def _number_on_device(group: Group, tasks: list[Task], positions: tuple[int, ...], device: torch.device) -> None:
    """Give tasks whose steps are counted on a device their numbers and keys, as tensors."""
    done = [
        task.state["step"].to(device, COUNT) if "step" in task.state else torch.zeros((), dtype=COUNT, device=device)
        for task in tasks
    ]
    steps = list(torch._foreach_add(done, 1))
    lr: Any = OnDevice(wide(group["lr"].to(device))) if isinstance(group["lr"], Tensor) else learning_rate(group)
    by_recipe: dict[int, list[int]] = {}
    for place, task in enumerate(tasks):
        by_recipe.setdefault(id(task.config.recipe), []).append(place)
    for places in by_recipe.values():
        recipe = replace(tasks[places[0]].config.recipe, lr=lr)
        for place, now in zip(places, numbers_on_device(recipe, [steps[i] for i in places]), strict=True):
            tasks[place].now = now
    if any(task.config.rounds == "stochastic" for task in tasks):
        for task, key in zip(tasks, keys_on_device(group["seed"], steps, positions), strict=True):
            task.key = key


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


def check_kernels(group: Group, tasks: list[Task]) -> None:
    """What a GPU needs, before anything is counted."""
    for task in tasks:
        if task.p.is_cuda:
            if is_fused(group, "cuda"):
                triton_path()
            if torch.cuda.is_current_stream_capturing() and not counts_on_device(group, task.p):
                remedy = "Build the optimizer with it, or set group['capturable'] = True before the first step."
                raise RuntimeError(f"A CUDA graph can hold a step with capturable=True only. {remedy}")
            return
