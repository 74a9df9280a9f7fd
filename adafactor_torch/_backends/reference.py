"""The three phases of a step of one parameter, in plain torch: the reference that every faster path is tested against.

Between two phases lies the only thing that shards of one parameter would have to tell each other: sums of g^2 and p^2
after the first, of u^2 after the second. Nothing is read back to the host: the numbers of a step are Python floats or
0-dimensional tensors, and what makes a parameter stay as it was is a mask.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import Numbers

from .. import _kernels as kernels
from .._task.finite import are_finite
from .._task.task import NO_AMP, Amp, Setting, State, Work, torch_dtype


def update(work: Work, amp: Amp = NO_AMP) -> None:
    """One step of one parameter, in place; the caller has counted it in `state["step"]`."""
    kept, good = computed(work, amp), fine([work], amp)
    old: dict[str, Any] = {**work.state, "p": work.p, "telemetry": work.telemetry}
    for name, value in kept.items():
        x = old[name]
        x.copy_(value if good is None else torch.where(good[0], value, x.to(value.dtype)))
    if good is not None:
        take_back([work], good)


def computed(work: Work, amp: Amp) -> dict[str, Tensor]:
    """What a step of one parameter writes, the parameter first."""
    p, state, setting = work.p, work.state, work.setting
    wide, g = weight(p, state, setting), work.grad.to(setting.compute)
    if amp.grad_scale is not None:
        g = g / amp.grad_scale.to(g)
    if work.maximize:
        g = -g
    if setting.l2:
        g = g + work.now.weight_decay * wide
    means, p_rms = statistics(wide, g, setting)
    u, kept = norm(g, means, state, setting, work.now)
    threshold = setting.recipe.clipping_threshold or math.inf
    clipped = kernels.clip(u, kernels.rms(u, setting.plan.rms_axes), threshold) if setting.clips else u
    new, moved = apply(wide, clipped, p_rms, state, setting, work.now)
    kept = rounded(new, setting, work.key) | kept | moved
    if work.telemetry is not None:
        kept["telemetry"] = told(u, p_rms, setting, work.now)
    return kept


def fine(works: Sequence[Work], amp: Amp) -> Tensor | None:
    """Which parameters may take their steps, as a tensor on their device; None where nobody asks.

    Either all of them ask whether their gradients are finite, or none does.
    """
    good = None if amp.found_inf is None else (amp.found_inf == 0).to(works[0].p.device).expand(len(works))
    if works[0].skipped is not None:
        finite = are_finite([work.grad for work in works])
        good = finite if good is None else finite & good
    return good


def take_back(works: Sequence[Work], good: Tensor) -> None:
    """Say of the steps that have been left out that they were not taken."""
    for work, out in zip(works, (~good).unbind(), strict=True):
        work.state["step"] -= out.to(work.state["step"])
        if work.skipped is not None:
            work.skipped += out.to(work.skipped)


def weight(p: Tensor, state: State, setting: Setting) -> Tensor:
    """The parameter as the step takes it: with what the last rounding cut off."""
    wide = p.to(setting.compute)
    return wide + state["compensation"] if setting.compensated else wide


def statistics(p: Tensor, g: Tensor, setting: Setting) -> tuple[tuple[Tensor, ...], Tensor]:
    """Phase 1: means of g^2 for the second moment, and RMS(p)."""
    return kernels.statistics(g, setting.added, setting.plan), kernels.rms(p, setting.plan.rms_axes)


def norm(
    g: Tensor, means: tuple[Tensor, ...], state: State, setting: Setting, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """Phase 2: the direction u = x / sqrt(V), and what is to be kept; what is kept of V is what is used."""
    kept = {
        name: kernels.ema(state[name].to(g.dtype), mean, now.beta2, now.beta2_complement).to(state[name].dtype)
        for name, mean in zip(setting.moments, means, strict=True)
    }
    roots = kernels.root_factors(tuple(moment.to(g.dtype) for moment in kept.values()), setting.floor, setting.plan)
    u, moved = direction(g, roots, state, setting, now)
    return u, kept | moved


def direction(
    g: Tensor, roots: tuple[Tensor, ...], state: State, setting: Setting, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """u from the roots of the second moment, and what else is to be kept."""
    plan, moved, x = setting.plan, dict[str, Tensor](), g
    if setting.averages == "grad":
        x, moved["m"] = average(g, state["m"], setting, now)
    x = x if plan.view is None else x.reshape(plan.view)
    if setting.recipe.amsgrad:
        v_max = state["v_max"]
        moved["v_max"] = torch.maximum(v_max.to(g.dtype), kernels.second_moment(roots, setting.floor)).to(v_max.dtype)
        u = kernels.precondition_amsgrad(x, moved["v_max"].to(g.dtype), now.bias2, setting.eps1)
    else:
        u = kernels.precondition(x, roots, setting.floor)
    return u.reshape(g.shape), moved


def apply(
    p: Tensor, u: Tensor, p_rms: Tensor, state: State, setting: Setting, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """Phase 3 of a clipped u: scale, average, decay. The new parameter, not yet rounded; what is to be kept."""
    recipe, moved = setting.recipe, dict[str, Tensor]()
    if setting.averages == "update":
        u, moved["m"] = average(u, state["m"], setting, now)
    size = alpha(p_rms, setting, now)
    change = size * u
    if setting.averages == "step":
        change, moved["m"] = average(change, state["m"], setting, now)
    if setting.decoupled:
        change = change + now.weight_decay * (size if recipe.weight_decay_by == "step" else 1.0) * p
    return p - change, moved


def alpha(p_rms: Tensor, setting: Setting, now: Numbers) -> Any:
    """The step size, scaled by the parameter where the recipe says so."""
    recipe = setting.recipe
    if not recipe.multiply_by_parameter_scale:
        return now.rho
    if setting.decoupled and recipe.decay_before_scale:
        p_rms = p_rms * abs(1.0 - now.weight_decay)
    return now.rho * kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)


def told(u: Tensor, p_rms: Tensor, setting: Setting, now: Numbers) -> Tensor:
    """Per batch index alpha, RMS(u) before clipping, the clip factor and RMS(p): [batch, 4]."""
    return shown(kernels.rms(u, setting.plan.rms_axes), p_rms, setting, now)


def shown(u_rms: Tensor, p_rms: Tensor, setting: Setting, now: Numbers) -> Tensor:
    """`told`, from RMS(u)."""
    factor = kernels.clip_factor(u_rms, setting.recipe.clipping_threshold or math.inf)
    size = torch.as_tensor(alpha(p_rms, setting, now), dtype=u_rms.dtype, device=u_rms.device)
    return torch.stack([x.expand(u_rms.shape).reshape(-1) for x in (size, u_rms, factor, p_rms)], dim=1)


def average(x: Tensor, m: Tensor, setting: Setting, now: Numbers) -> tuple[Tensor, Tensor]:
    """(The first moment with x in it, debiased where the recipe says so; what is to be kept of it.)"""
    recipe = setting.recipe
    used, kept = kernels.average(m.to(x.dtype), x, now.beta1, now.beta1_complement, recipe.momentum_rounding, m.dtype)
    return used / now.bias1 if recipe.debias else used, kept


def rounded(x: Tensor, setting: Setting, key: Any, elements: Tensor | None = None) -> dict[str, Tensor]:
    """The new parameter, rounded once, and what that cut off where it is kept.

    `elements` are the indices of x's elements in C order, int32; all of them by default.
    """
    dtype = torch_dtype(setting.dtype)
    if setting.stochastic:
        if elements is None:
            elements = torch.arange(x.numel(), dtype=torch.int64, device=x.device).to(torch.int32).view(x.shape)
        return {"p": kernels.round_stochastically(x, kernels.random_bits(key, elements), dtype)}
    if setting.compensated:
        p = kernels.round_to(x, dtype)
        return {"p": p, "compensation": x - p}
    return {"p": x}
