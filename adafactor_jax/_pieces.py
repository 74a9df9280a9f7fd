"""The pieces without state of their own: clipping, step size, parameter scale, weight decay.

Here and in `_moments.py` a piece is given the `Step`, and updates that every reader computes anew. `_standalone.py`
makes the public pieces of them, which count for themselves and take arrays; the alias counts once.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adafactor_spec import Recipe, factoring, per_name, schedules, values_of
from adafactor_spec.errors import check_flag, check_number, is_number
from adafactor_spec.factoring import Rule, check_rule
from adafactor_spec.schedules import ScalarOrSchedule, Schedule, as_schedule, check_schedule

from . import _kernels as kernels
from ._leaves import Leaf, Mask, Tree, masks_of, number
from ._recomputed import Recomputed
from ._step import Piece, Step, Updates


def clip_by_block_rms(threshold: float = 1.0, *, factoring: Rule = factoring.last_two) -> Piece:
    """Clip by the RMS of each parameter: u / max(1, RMS(u) / threshold).

    Args:
        threshold: positive; inf is off.
        factoring: its batch axes make RMS(u) one number per index of them.

    Source: section 6 of arXiv 1804.04235.
    """
    threshold = check_number("threshold", threshold, above=0, infinite=True)
    check_rule("factoring", factoring)
    off = is_number(threshold) and math.isinf(threshold)  # then it is only asked what there is to tell

    def update(updates: Updates, state: optax.EmptyState, params: Tree, *, step: Step) -> Any:
        rms = step.rms(updates, factoring)
        step.telemetry["update_rms"] = rms
        step.telemetry["clip_factor"] = [None if x is None else kernels.clip_factor(x, threshold) for x in rms]

        if off:
            return updates, state

        def clipped(u: Recomputed, u_rms: jax.Array) -> Recomputed:
            return u.times(kernels.clip(jnp.ones_like(u_rms), u_rms, threshold))

        return [None if u is None else clipped(u, x) for u, x in zip(updates, rms, strict=True)], state

    return Piece(_stateless, update)


def scale_by_step_size(learning_rate: ScalarOrSchedule = 1e-2, *, relative_step: bool = False) -> Piece:
    """Multiply by rho_t = lr_t, or min(lr_t, t^-1/2) for a relative step.

    Args:
        learning_rate: a number or a schedule of t; t = 1 at the first update. An optax schedule counts from 0:
            wrap it in `adafactor_spec.schedules.zero_based`.
        relative_step: never above t^-1/2.

    Source: section 8 of arXiv 1804.04235.
    """
    relative_step = check_flag("relative_step", relative_step)
    lr = check_schedule("learning_rate", learning_rate, at_least=0 if relative_step else None)
    rho = as_schedule(schedules.relative_step(lr) if relative_step else lr)

    def update(updates: Updates, state: optax.EmptyState, params: Tree, *, step: Step) -> Any:
        sizes = [number(rho(step.t), leaf.compute) for leaf in step.leaves]
        step.telemetry.setdefault("step_size", sizes)
        return _scaled(updates, sizes), state

    return Piece(_stateless, update)


def scale_by_parameter_scale(
    step: ScalarOrSchedule = 1.0,
    *,
    multiply_by_parameter_scale: bool | per_name = True,
    eps2: float = 1e-3,
    max_parameter_scale: float | None = None,
    factoring: Rule = factoring.last_two,
    decay: ScalarOrSchedule | per_name = 0.0,
    mask: Mask = None,
) -> Piece:
    """Multiply by alpha_t = step_t * clip(RMS(p), eps2, max_parameter_scale).

    Args:
        step: a number or a schedule of t in front of the scale, so that alpha is one number before it meets u.
        multiply_by_parameter_scale: False, for a parameter, is alpha_t = step_t.
        eps2: the smallest scale, so that a parameter of zeros moves.
        max_parameter_scale: the largest, or None.
        factoring: its batch axes make RMS(p) one number per index of them.
        decay: RMS(p) is taken of (1 - decay_t) p, where a decay of that size comes before it (Keras).
        mask: the parameters that decay.

    Source: algorithms 4 and 5 of arXiv 1804.04235.
    """
    rho = as_schedule(check_schedule("step", step))
    for value in values_of(decay):
        check_schedule("decay", value, at_least=0)
    fields: dict[str, Any] = {
        "multiply_by_parameter_scale": multiply_by_parameter_scale,
        "eps2": eps2,
        "max_parameter_scale": max_parameter_scale,
        "factoring": factoring,
    }
    recipe = Recipe(weight_decay=decay, **fields)  # refuses what is out of range

    def update(updates: Updates, state: optax.EmptyState, params: Tree, *, step: Step) -> Any:
        alphas = _alphas(recipe, rho, step, masks_of(mask, params))
        step.telemetry.setdefault("step_size", alphas)
        return _scaled(updates, alphas), state

    return Piece(_stateless, update)


def add_decayed_weights(
    weight_decay: ScalarOrSchedule | per_name,
    *,
    step: ScalarOrSchedule = 1.0,
    multiply_by_parameter_scale: bool | per_name = False,
    eps2: float = 1e-3,
    max_parameter_scale: float | None = None,
    factoring: Rule = factoring.last_two,
    mask: Mask = None,
) -> Piece:
    """Add c_t p, c_t = weight_decay_t * step_t, or times alpha_t = step_t * clip(RMS(p), eps2, max_parameter_scale).

    First in a chain it is L2 regularisation; after the step it is decoupled decay.

    Args:
        weight_decay: a number or a schedule of t.
        step: a number or a schedule of t: the learning rate for a decay that follows it, 1 for one that does not.
        multiply_by_parameter_scale: whether the decay is a multiple of alpha_t.
        eps2, max_parameter_scale, factoring: as in `scale_by_parameter_scale`.
        mask: the parameters that decay, as in `optax.add_decayed_weights`; None is all.

    Source: arXiv 1711.05101 for the decoupled form.
    """
    rho = as_schedule(check_schedule("step", step))
    fields: dict[str, Any] = {
        "multiply_by_parameter_scale": multiply_by_parameter_scale,
        "eps2": eps2,
        "max_parameter_scale": max_parameter_scale,
        "factoring": factoring,
    }
    recipe = Recipe(weight_decay=weight_decay, **fields)  # refuses what is out of range

    def update(updates: Updates, state: optax.EmptyState, params: Tree, *, step: Step) -> Any:
        times = _alphas(recipe, rho, step, [False] * len(step.leaves))

        def decayed(leaf: Leaf, u: Recomputed | None, p: Recomputed, alpha: jax.Array, inside: bool) -> Any:
            if u is None or not inside:
                return u
            rate: Any = recipe.for_name(leaf.name).weight_decay
            c = Recomputed.of(number(as_schedule(rate)(step.t), leaf.compute) * alpha)
            return Recomputed(lambda factor: u.read(factor) + c.read(factor) * p.value, u.shape)

        rows = zip(step.leaves, updates, step.params, times, masks_of(mask, params), strict=True)
        return [decayed(*row) for row in rows], state

    return Piece(_stateless, update)


def _alphas(recipe: Recipe, rho: Schedule, step: Step, decays: list[bool]) -> list[jax.Array]:
    """alpha_t of each parameter: rho_t, times the parameter's scale, of what a decay leaves of it, where its recipe
    says so."""

    def one(leaf: Leaf, p_rms: Any, inside: bool) -> jax.Array:
        own, now = recipe.for_name(leaf.name), number(rho(step.t), leaf.compute)
        if not own.multiply_by_parameter_scale:
            return now
        decay: Any = own.weight_decay if inside else 0.0
        left = jnp.abs(1.0 - number(as_schedule(decay)(step.t), leaf.compute))
        return now * kernels.parameter_scale(p_rms * left, own.eps2, own.max_parameter_scale)

    scales = recipe.multiply_by_parameter_scale is not False
    rms = step.parameter_rms(recipe.factoring) if scales else step.leaves
    return [one(*row) for row in zip(step.leaves, rms, decays, strict=True)]


def _scaled(updates: Updates, by: list[jax.Array]) -> Updates:
    return [None if u is None else u.times(alpha) for u, alpha in zip(updates, by, strict=True)]


def _stateless(params: Tree) -> optax.EmptyState:
    return optax.EmptyState()
