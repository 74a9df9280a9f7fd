"""Checks the saved state of parameters, and brings it to the form that the optimizer keeps."""

import math
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import dtypes
from adafactor_spec.errors import check_whole, is_number, refusal

from ._param_groups import Group, counts_on_device, named, plan_of, recipe_of
from ._sharding.dtensor import is_dtensor, local_of, placed_like_state
from ._task.task import COUNT, FLOATS, ParamConfig, State

_SECOND_MOMENTS = ("v_row", "v_col", "v", "v_max")
# Where the state is not what the recipe in use keeps, and where it is not what the saved one does.
_REMEDIES = (
    "Build the optimizer with the recipe that the state was saved with.",
    "The groups of the state dict say another recipe than its state: save and load both as they are.",
)
_MOST_STEPS = 2**53  # up to here a number of a step is exact in float64


def restored(saved: dict[Any, Any], numbers: list[Any], before: list[Group], after: list[Group]) -> dict[Tensor, State]:
    """The state of every parameter that has one, on its device and in the dtype in which the recipe keeps it.

    torch casts floating-point state to the parameter's dtype when it loads; here float32 state stays float32.

    Args:
        saved: the states, by the numbers of parameters.
        numbers: of the parameters of all groups, in order.
        before: the groups that are loaded into.
        after: what they will be.

    Raises:
        ValueError: the saved state of a parameter is not the one that its group's recipe keeps, before and after, or
            is one that no step leaves behind. Nothing has been made then.
    """
    made, number = [], iter(numbers)
    for ours, theirs in zip(before, after, strict=True):
        recipe, stored = recipe_of(ours), recipe_of(theirs)
        for (name, p), (new_name, _) in zip(named(ours), named(theirs), strict=True):
            key = next(number)
            if key not in saved:
                continue
            who = f"state of parameter {name!r}" if name else f"state of parameter {key}"
            configs = [
                ParamConfig(of.for_name(n), plan_of(of, n, p), FLOATS[p.dtype], theirs["rounding"])
                for of, n in ((recipe, name), (stored, new_name))
            ]
            there = counts_on_device(theirs, p)
            _check_state(who, saved[key], configs, p, there)
            made.append((p, saved[key], configs[1], there))
    return {p: _kept(state, config, p, there) for p, state, config, there in made}


def check_tensor(who: str, x: Any, *, values: bool = True) -> None:
    """Refuse what is not a tensor of values in memory of its own that can be read: dense and not quantised.

    Without `values` it may be on the device meta, as what is kept there of a parameter that is there, too.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(x, Tensor):
        raise refusal(who, "a tensor", x)
    if not is_dtensor(x) and type(x) not in (Tensor, torch.nn.Parameter):
        raise refusal(who, "a plain tensor or a DTensor", type(x).__name__)
    empty = x.is_meta and values
    kind = "nested" if x.is_nested else "quantized" if x.is_quantized else "meta" if empty else str(x.layout)
    if kind != "torch.strided":
        raise refusal(who, "a dense tensor with values", kind)


def _check_state(who: str, state: Any, configs: list[ParamConfig], p: Tensor, on_device: bool) -> None:
    if not isinstance(state, dict):
        raise refusal(who, "a dict of tensors", state)
    found = {entry: _shape_of(value) for entry, value in state.items()}
    for config, remedy in zip(configs, _REMEDIES, strict=True):
        expected = {"step": (), **{entry: shape for entry, (shape, _) in config.layout.items()}}
        if found != expected:
            raise refusal(who, f"tensors of shapes {expected}", found, remedy)
    if not (p.is_meta and on_device and getattr(state["step"], "is_meta", False)):
        steps_of(who, state["step"])
    moments = {entry: x for entry, x in state.items() if entry != "step"}
    for entry, x in moments.items():
        check_tensor(f"{entry} of the {who}", x, values=not p.is_meta)
    kept = {entry: x.dtype for entry, x in moments.items()}
    if not any(kept == _dtypes(configs[1], dtype) for dtype in dtypes.NAMES):
        names = {entry: str(dtype) for entry, dtype in kept.items()}
        must = f"those that its recipe keeps, such as {_dtypes(configs[1], configs[1].dtype)}"
        raise refusal(f"dtypes of the {who}", must, names, "Save and load state without casting it.")
    for entry in moments.keys() & _SECOND_MOMENTS:
        if _has_negative(moments[entry]):
            remedy = "It is an average of squares: no step has left it behind."
            raise refusal(f"{entry} of the {who}", "without a negative number", moments[entry], remedy)


def _shape_of(value: Any) -> Any:
    if is_number(value):
        return ()
    return tuple(value.shape) if isinstance(value, Tensor) and not value.is_nested else type(value).__name__


def _dtypes(config: ParamConfig, dtype: str) -> dict[str, torch.dtype]:
    """The dtypes of the state, but for the count, that the same config keeps of a parameter of another dtype."""
    other = ParamConfig(config.recipe, config.plan, dtype, config.rounding)
    return {entry: stored for entry, (_, stored) in other.layout.items()}


def _has_negative(x: Tensor) -> bool:
    """Whether a number is below 0. An infinity or a NaN is none: a run that has blown up is saved as it is."""
    own = local_of(x).detach()
    if own.is_meta or not own.numel():
        return False
    lowest = float(own.min())
    return lowest < 0 or (math.isnan(lowest) and bool((own < 0).any()))


def steps_of(who: str, step: Any) -> int:
    """The number of finished steps that a saved state says.

    Raises:
        ValueError: it is not one.
    """
    who = f"step of the {who}"
    if isinstance(step, Tensor):
        check_tensor(who, step)
        step = step.item()
    if isinstance(step, int) and abs(step) > _MOST_STEPS:
        raise refusal(who, f"at most {_MOST_STEPS}", f"a number of {step.bit_length()} bits")
    steps: int = check_whole(who, step, at_least=0, at_most=_MOST_STEPS)
    return steps


def _kept(state: State, config: ParamConfig, p: Tensor, on_device: bool) -> State:
    kept = {}
    for entry, (_, dtype) in config.layout.items():
        x = state[entry].detach()
        x = x if is_dtensor(x) else x.contiguous()
        kept[entry] = placed_like_state(x.to(p.device, dtype, copy=True), p, entry, config.plan)
    steps = 0 if getattr(state["step"], "is_meta", False) else steps_of("", state["step"])  # nothing can be read there
    step = torch.tensor(steps, dtype=COUNT, device=p.device if on_device else "cpu")
    return {"step": step, **kept}
