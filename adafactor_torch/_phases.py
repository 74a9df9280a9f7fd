"""The three phases of a step of one parameter, from plain numbers and a plan.

Between two phases lies the only thing that shards of one parameter would have to tell each other: sums of g^2 and p^2
after the first, of u^2 after the second. Nothing is read back to the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe
from adafactor_spec.dtypes import at_least_float32
from adafactor_spec.factoring import Plan

from . import _kernels as kernels

State = dict[str, Tensor]  # step and, where the recipe keeps them, v_row and v_col or v, v_max, m


@dataclass(frozen=True)
class Setting:
    """What is decided before a step: everything that is not a tensor."""

    recipe: Recipe
    plan: Plan
    dtype: str  # of the parameter
    now: Numbers

    @property
    def compute(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return torch_dtype(at_least_float32(self.dtype))

    @property
    def eps1(self) -> float:
        """eps1 for this parameter's dtype."""
        return self.recipe.eps1_for(self.dtype)

    @property
    def floor(self) -> float | None:
        """The smallest sqrt(V), where eps1 is a floor."""
        return self.eps1 if self.recipe.eps1_mode == "floor" else None


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def state_layout(recipe: Recipe, plan: Plan, dtype: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor that a parameter's state keeps, but for `step`."""
    stored = torch_dtype(recipe.state_dtype_for(dtype))
    layout = {"v_row": (plan.row_shape, stored), "v_col": (plan.col_shape, stored)}
    if not plan.factored:
        layout = {"v": (plan.matrix_shape, stored)}
    if recipe.amsgrad:
        layout["v_max"] = (plan.matrix_shape, stored)
    if recipe.beta1 is not None:
        layout["m"] = (plan.shape, torch_dtype(recipe.momentum_dtype_for(dtype)))
    return layout


def update(p: Tensor, grad: Tensor, state: State, setting: Setting) -> None:
    """One step of one parameter, in place."""
    wide, g = p.to(setting.compute), grad.to(setting.compute)
    if setting.recipe.decays and setting.recipe.weight_decay_by == "grad":  # L2: a part of the gradient
        g = g + setting.now.weight_decay * wide
    new, p_rms = statistics(wide, g, setting)
    u = norm(g, new, state, setting)
    p.copy_(apply(wide, u, p_rms, state, setting))  # the one rounding to the parameter's dtype


def statistics(p: Tensor, g: Tensor, setting: Setting) -> tuple[tuple[Tensor, ...], Tensor]:
    """Phase 1: means of g^2 for the second moment, and RMS(p)."""
    added = 0.0 if setting.recipe.eps1_mode == "floor" else setting.eps1
    return kernels.statistics(g, added, setting.plan), kernels.rms(p, setting.plan.rms_axes)


def norm(g: Tensor, new: tuple[Tensor, ...], state: State, setting: Setting) -> Tensor:
    """Phase 2: the second moment, and the direction u = x / sqrt(V); what is stored of V is what is used."""
    recipe, plan, now = setting.recipe, setting.plan, setting.now
    stored = [state[key] for key in (("v_row", "v_col") if plan.factored else ("v",))]
    for kept, mean in zip(stored, new, strict=True):
        kept.copy_(kernels.ema(kept.to(g.dtype), mean, now.beta2, now.beta2_complement))
    roots = kernels.root_factors(tuple(kept.to(g.dtype) for kept in stored), setting.floor, plan)
    x = average(g, state, setting) if averages(recipe, "grad") else g
    x = x.reshape(plan.matrix_shape)
    if recipe.amsgrad:
        v_max = state["v_max"]
        v_max.copy_(torch.maximum(v_max.to(g.dtype), kernels.second_moment(roots, setting.floor)))
        u = kernels.precondition_amsgrad(x, v_max.to(g.dtype), now.bias2, setting.eps1)
    else:
        u = kernels.precondition(x, roots, setting.floor)
    return u.reshape(plan.shape)


def apply(p: Tensor, u: Tensor, p_rms: Tensor, state: State, setting: Setting) -> Tensor:
    """Phase 3: clip, scale, average, decay. The new parameter, not yet rounded."""
    recipe, now = setting.recipe, setting.now
    if recipe.clipping_threshold is not None:
        u = kernels.clip(u, recipe.clipping_threshold, setting.plan.rms_axes)
    if averages(recipe, "update"):
        u = average(u, state, setting)
    decoupled = recipe.decays and recipe.weight_decay_by != "grad"
    if decoupled and recipe.decay_before_scale:
        p_rms = p_rms * abs(1.0 - now.weight_decay)
    alpha: Tensor | float = now.rho
    if recipe.multiply_by_parameter_scale:
        alpha = now.rho * kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)
    change = alpha * u
    if averages(recipe, "step"):
        change = average(change, state, setting)
    if decoupled:
        change = change + now.weight_decay * (alpha if recipe.weight_decay_by == "step" else 1.0) * p
    return p - change


def averages(recipe: Recipe, what: str) -> bool:
    """Whether the first moment is one of `what`."""
    return recipe.beta1 is not None and recipe.momentum_of == what


def average(x: Tensor, state: State, setting: Setting) -> Tensor:
    """The first moment with x in it, debiased where the recipe says so; the state keeps it."""
    recipe, now, m = setting.recipe, setting.now, state["m"]
    used, kept = kernels.average(m.to(x.dtype), x, now.beta1, now.beta1_complement, recipe.momentum_rounding, m.dtype)
    m.copy_(kept)
    return used / now.bias1 if recipe.debias else used
