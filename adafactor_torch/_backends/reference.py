"""The three phases of a step of one parameter in plain torch: the reference that every other backend is tested against.

Shards of one parameter would have to exchange only the sums between two phases: those of g^2 and p^2 after the first,
that of u^2 after the second. Nothing is read back to the host: the numbers of a step are Python floats or 0-dimensional
tensors, and a mask says whether a parameter is written.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adafactor_spec import Numbers
from adafactor_spec.errors import refusal

from .. import _kernels as kernels
from .._sharding.step_mask import StepMask
from .._task.finite import are_finite
from .._task.memory import called
from .._task.task import NO_AMP, Amp, ParamConfig, State, Task, torch_dtype
from .protocol import Backend, Batch, Done, Phases


class ReferenceBackend(Backend):
    """One plain operation after the other, for `foreach=False` and for tensors that only torch's operators can read."""

    name = "the reference"

    def __init__(self) -> None:
        self._tried: set[tuple[type, type, ParamConfig]] = set()  # classes of a parameter and of its gradient

    def why_not(self, task: Task) -> str | None:
        """Why it does not step a task; None where it does."""
        if task.shard.is_shared:
            return "it adds up nothing over processes"
        return "it is slower" if task.by_address and task.foreach is not False else None

    def steps(self, batch: Batch, mask: StepMask | None, amp: Amp, done: Done) -> Phases:
        """The step of whole parameters, one after the other.

        Raises:
            ValueError: a parameter or its gradient is of a class that lacks an operator.
        """
        for task in batch.tasks:
            if not task.by_address:
                self._try(task, amp)
        return _steps(batch.tasks, amp, done)

    def _try(self, task: Task, amp: Amp) -> None:
        """Compute the first step of a kind of subclass before any is written: it may lack an operator."""
        kind = type(task.p), type(task.grad), task.config
        if kind in self._tried:
            return
        try:
            computed(task, amp)
        except Exception as error:
            got = f"{type(task.p).__name__} with a gradient of {type(task.grad).__name__}"
            must = "of a class that has the operators of a step"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise refusal(called("", task.p), must, got, f"{type(error).__name__}: {reason}.") from error
        self._tried.add(kind)


def _steps(tasks: list[Task], amp: Amp, done: Done) -> Phases:
    for task in tasks:
        update(task, amp)
        done([task])
        yield []


def update(task: Task, amp: Amp = NO_AMP) -> None:
    """One step of one parameter, in place; the caller has counted it in `state["step"]`."""
    kept, applies = computed(task, amp), may_apply([task], amp)
    old: dict[str, Any] = {**task.state, "p": task.p, "telemetry": task.telemetry}
    for name, value in kept.items():
        x = old[name]
        x.copy_(value if applies is None else torch.where(applies[0], value, x.to(value.dtype)))
    if applies is not None:
        take_back([task], applies)


def computed(task: Task, amp: Amp) -> dict[str, Tensor]:
    """What a step of one parameter writes, the parameter first."""
    p, state, config = task.p, task.state, task.config
    wide, g = weight(p, state, config), task.grad.to(config.compute)
    if amp.grad_scale is not None:
        g = g / amp.grad_scale.to(g)
    if task.maximize:
        g = -g
    if config.decay == "grad":
        g = g + task.now.weight_decay * wide
    means, p_rms = statistics(wide, g, config)
    u, kept = norm(g, means, state, config, task.now)
    threshold = config.recipe.clipping_threshold or math.inf
    clipped = kernels.clip(u, kernels.rms(u, config.plan.rms_axes), threshold) if config.clips else u
    new, moved = apply(wide, clipped, p_rms, state, config, task.now)
    kept = rounded(new, config, task.key) | kept | moved
    if task.telemetry is not None:
        kept["telemetry"] = telemetry(u, p_rms, config, task.now)
    return kept


def may_apply(tasks: Sequence[Task], amp: Amp) -> Tensor | None:
    """Which parameters may take their steps, as a tensor on their device; None where nobody asks.

    Either all of them ask whether their gradients are finite, or none does.
    """
    applies = None if amp.found_inf is None else (amp.found_inf == 0).to(tasks[0].p.device).expand(len(tasks))
    if tasks[0].skipped is not None:
        finite = are_finite([task.grad for task in tasks])
        applies = finite if applies is None else finite & applies
    return applies


def take_back(tasks: Sequence[Task], applies: Tensor) -> None:
    """Say of the steps that have been left out that they were not taken."""
    for task, out in zip(tasks, (~applies).unbind(), strict=True):
        task.state["step"] -= out.to(task.state["step"])
        if task.skipped is not None:
            task.skipped += out.to(task.skipped)


def weight(p: Tensor, state: State, config: ParamConfig) -> Tensor:
    """The parameter as the step takes it: with what the last rounding cut off."""
    wide = p.to(config.compute)
    return wide + state["compensation"] if config.rounds == "kahan" else wide


def statistics(p: Tensor, g: Tensor, config: ParamConfig) -> tuple[tuple[Tensor, ...], Tensor]:
    """Phase 1: means of g^2 for the second moment, and RMS(p)."""
    return kernels.statistics(g, config.added, config.plan), kernels.rms(p, config.plan.rms_axes)


def norm(
    g: Tensor, means: tuple[Tensor, ...], state: State, config: ParamConfig, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """Phase 2: the direction u = x / sqrt(V), and what is to be kept; what is kept of V is what is used."""
    kept = {
        name: kernels.ema(state[name].to(g.dtype), mean, now.beta2, now.beta2_complement).to(state[name].dtype)
        for name, mean in zip(config.moments, means, strict=True)
    }
    roots = kernels.root_factors(tuple(moment.to(g.dtype) for moment in kept.values()), config.floor, config.plan)
    u, moved = direction(g, roots, state, config, now)
    return u, kept | moved


def direction(
    g: Tensor, roots: tuple[Tensor, ...], state: State, config: ParamConfig, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """u from the roots of the second moment, and what else is to be kept."""
    plan, moved, x = config.plan, dict[str, Tensor](), g
    if config.momentum == "grad":
        x, moved["m"] = average(g, state["m"], config, now)
    x = x if plan.view is None else x.reshape(plan.view)
    if config.recipe.amsgrad:
        v_max = state["v_max"]
        moved["v_max"] = torch.maximum(v_max.to(g.dtype), kernels.second_moment(roots, config.floor)).to(v_max.dtype)
        u = kernels.precondition_amsgrad(x, moved["v_max"].to(g.dtype), now.bias2, config.eps1)
    else:
        u = kernels.precondition(x, roots, config.floor)
    return u.reshape(g.shape), moved


def apply(
    p: Tensor, u: Tensor, p_rms: Tensor, state: State, config: ParamConfig, now: Numbers
) -> tuple[Tensor, dict[str, Tensor]]:
    """Phase 3 of a clipped u: scale, average, decay. The new parameter, not yet rounded; what is to be kept."""
    recipe, moved = config.recipe, dict[str, Tensor]()
    if config.momentum == "update":
        u, moved["m"] = average(u, state["m"], config, now)
    size = alpha(p_rms, config, now)
    change = size * u
    if config.momentum == "step":
        change, moved["m"] = average(change, state["m"], config, now)
    if config.decay in ("step", "one"):
        change = change + now.weight_decay * (size if recipe.weight_decay_by == "step" else 1.0) * p
    return p - change, moved


def alpha(p_rms: Tensor, config: ParamConfig, now: Numbers) -> Any:
    """The step size, scaled by the parameter where the recipe says so."""
    recipe = config.recipe
    if not recipe.multiply_by_parameter_scale:
        return now.rho
    if config.decay in ("step", "one") and recipe.decay_before_scale:
        p_rms = p_rms * abs(1.0 - now.weight_decay)
    return now.rho * kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)


def telemetry(u: Tensor, p_rms: Tensor, config: ParamConfig, now: Numbers) -> Tensor:
    """Per batch index alpha, RMS(u) before clipping, the clip factor and RMS(p): [batch, 4]."""
    return telemetry_of(kernels.rms(u, config.plan.rms_axes), p_rms, config, now)


def telemetry_of(u_rms: Tensor, p_rms: Tensor, config: ParamConfig, now: Numbers) -> Tensor:
    """`telemetry`, where RMS(u) is known."""
    factor = kernels.clip_factor(u_rms, config.recipe.clipping_threshold or math.inf)
    size = torch.as_tensor(alpha(p_rms, config, now), dtype=u_rms.dtype, device=u_rms.device)
    return torch.stack([x.expand(u_rms.shape).reshape(-1) for x in (size, u_rms, factor, p_rms)], dim=1)


def average(x: Tensor, m: Tensor, config: ParamConfig, now: Numbers) -> tuple[Tensor, Tensor]:
    """(The first moment with x in it, debiased where the recipe says so; what is to be kept of it.)"""
    recipe = config.recipe
    used, kept = kernels.average(m.to(x.dtype), x, now.beta1, now.beta1_complement, recipe.momentum_rounding, m.dtype)
    return used / now.bias1 if recipe.debias else used, kept


def rounded(x: Tensor, config: ParamConfig, key: Any, elements: Tensor | None = None) -> dict[str, Tensor]:
    """The new parameter, rounded once, and what that cut off where it is kept.

    `elements` are the indices of x's elements in C order, int32; all of them by default.
    """
    dtype = torch_dtype(config.dtype)
    if config.rounds == "stochastic":
        if elements is None:
            elements = torch.arange(x.numel(), dtype=torch.int64, device=x.device).to(torch.int32).view(x.shape)
        return {"p": kernels.round_stochastically(x, kernels.random_bits(key, elements), dtype)}
    if config.rounds == "kahan":
        p = kernels.round_to(x, dtype)
        return {"p": p, "compensation": x - p}
    return {"p": x}
