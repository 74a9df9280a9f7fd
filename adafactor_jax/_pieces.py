"""The pieces without state of their own: clipping, step size, parameter scale, weight decay.

Here and in `_moments.py` a piece is told the step: its `update` takes `t` (1 at the first update) among its extra
arguments, and works on updates in the computing dtype. `_standalone.py` makes the public pieces of them, which count
for themselves; the alias counts once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adafactor_spec import Recipe, factoring, per_name, schedules, values_of
from adafactor_spec.errors import check_number
from adafactor_spec.factoring import Rule, check_rule
from adafactor_spec.schedules import ScalarOrSchedule, as_schedule, check_schedule

from . import _kernels as kernels
from ._leaves import GradientTransformation, Leaf, Mask, Tree, leaves_of, masks_of, number, tree_of, updates_of


def clip_by_block_rms(threshold: float = 1.0, *, factoring: Rule = factoring.last_two) -> GradientTransformation:
    """Clip by the RMS of each parameter: u / max(1, RMS(u) / threshold).

    Args:
        threshold: positive; inf is off.
        factoring: its batch axes make RMS(u) one number per index of them.

    Source: section 6 of arXiv 1804.04235.
    """
    check_number("threshold", threshold, above=0, infinite=True)
    check_rule("factoring", factoring)

    def one(leaf: Leaf, u: jax.Array, p: jax.Array, t: jax.Array, inside: bool) -> jax.Array:
        return kernels.clip(u, threshold, leaf.plan(factoring).rms_axes)

    return _each(one)


def scale_by_step_size(
    learning_rate: ScalarOrSchedule = 1e-2, *, relative_step: bool = False
) -> GradientTransformation:
    """Multiply by rho_t = lr_t, or min(lr_t, t^-1/2) for a relative step.

    Args:
        learning_rate: a number or a schedule of t; t = 1 at the first update. An optax schedule counts from 0:
            wrap it in `adafactor_spec.schedules.zero_based`.
        relative_step: never above t^-1/2.

    Source: section 8 of arXiv 1804.04235.
    """
    check_schedule("learning_rate", learning_rate)
    rho = as_schedule(schedules.relative_step(learning_rate) if relative_step else learning_rate)

    def one(leaf: Leaf, u: jax.Array, p: jax.Array, t: jax.Array, inside: bool) -> jax.Array:
        return number(rho(t), leaf.compute) * u

    return _each(one)


def scale_by_parameter_scale(
    step: ScalarOrSchedule = 1.0,
    *,
    multiply_by_parameter_scale: bool | per_name = True,
    eps2: float = 1e-3,
    max_parameter_scale: float | None = None,
    factoring: Rule = factoring.last_two,
    decay: ScalarOrSchedule | per_name = 0.0,
    mask: Mask = None,
) -> GradientTransformation:
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
    check_schedule("step", step)
    for value in values_of(decay):
        check_schedule("decay", value, at_least=0)
    fields: dict[str, Any] = {
        "multiply_by_parameter_scale": multiply_by_parameter_scale,
        "eps2": eps2,
        "max_parameter_scale": max_parameter_scale,
        "factoring": factoring,
    }
    recipe = Recipe(weight_decay=decay, **fields)  # refuses what is out of range

    def one(leaf: Leaf, u: jax.Array, p: jax.Array, t: jax.Array, inside: bool) -> jax.Array:
        own = recipe.for_name(leaf.name)
        return _alpha(own, step, leaf, p, t, own.weight_decay if inside else 0.0) * u

    return _each(one, mask)


def add_decayed_weights(
    weight_decay: ScalarOrSchedule | per_name,
    *,
    step: ScalarOrSchedule = 1.0,
    multiply_by_parameter_scale: bool | per_name = False,
    eps2: float = 1e-3,
    max_parameter_scale: float | None = None,
    factoring: Rule = factoring.last_two,
    mask: Mask = None,
) -> GradientTransformation:
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
    check_schedule("step", step)
    fields: dict[str, Any] = {
        "multiply_by_parameter_scale": multiply_by_parameter_scale,
        "eps2": eps2,
        "max_parameter_scale": max_parameter_scale,
        "factoring": factoring,
    }
    recipe = Recipe(weight_decay=weight_decay, **fields)  # refuses what is out of range

    def one(leaf: Leaf, u: jax.Array, p: jax.Array, t: jax.Array, inside: bool) -> jax.Array:
        if not inside:
            return u
        own = recipe.for_name(leaf.name)
        c: Any = own.weight_decay
        times = _alpha(own, step, leaf, p, t)
        return u + number(as_schedule(c)(t), leaf.compute) * times * p.astype(leaf.compute)

    return _each(one, mask)


def _alpha(
    recipe: Recipe, step: ScalarOrSchedule, leaf: Leaf, p: jax.Array, t: jax.Array, decay: Any = 0.0
) -> jax.Array:
    """alpha_t of one parameter: step_t, times the parameter's scale where its recipe says so."""
    rho = number(as_schedule(step)(t), leaf.compute)
    if not recipe.multiply_by_parameter_scale:
        return rho
    p_rms = kernels.rms(p.astype(leaf.compute), leaf.plan(recipe.factoring).rms_axes)
    p_rms = p_rms * jnp.abs(1.0 - number(as_schedule(decay)(t), leaf.compute))
    return rho * kernels.parameter_scale(p_rms, recipe.eps2, recipe.max_parameter_scale)


Each = Callable[[Leaf, jax.Array, jax.Array, jax.Array, bool], jax.Array]


def _each(one: Each, mask: Mask = None) -> GradientTransformation:
    """A transformation without state: one(leaf, update, parameter, t, whether it is in the mask) -> update."""

    def update(updates: Tree, state: optax.EmptyState, params: Tree, *, t: jax.Array, **extra: Any) -> Any:
        leaves, values, structure = leaves_of(params)
        given, masks = updates_of(updates, leaves, structure), masks_of(mask, params, structure)
        rows = zip(leaves, given, values, masks, strict=True)
        made = [None if u is None else one(leaf, u, p, t, inside) for leaf, u, p, inside in rows]
        return tree_of(structure, made), state

    return GradientTransformation(lambda params: optax.EmptyState(), update)
