"""The pieces that keep moments: the factored second one, and the first.

As in `_pieces.py`, a piece is told the step: its `update` takes `t` (1 at the first update) among its extra arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adafactor_spec import Recipe, factoring, schedules
from adafactor_spec.factoring import Plan, Rule
from adafactor_spec.schedules import ScalarOrSchedule

from . import _kernels as kernels
from ._leaves import GradientTransformation, Leaf, Tree, columns, leaves_of, number, tree_of, updates_of, zeros


class FactoredState(NamedTuple):
    """Second moments: trees like the parameters, None where a parameter has no such thing."""

    v_row: Tree  # R, one value per row: the column axes are kept at size 1
    v_col: Tree  # C, one value per column
    v: Tree  # V of parameters that are not factored
    v_max: Tree  # running maximum of V (amsgrad)
    numerator: Any  # state of the transformation that makes the numerator


class MomentumState(NamedTuple):
    """First moments, a tree like the parameters."""

    m: Tree


class _Decay(NamedTuple):
    """A decay rate at one step."""

    beta: jax.Array
    complement: jax.Array
    bias: jax.Array  # 1 - beta_t^t


def scale_by_factored_rms(
    beta2: ScalarOrSchedule = schedules.power_decay(),
    *,
    factoring: Rule = factoring.last_two,
    eps1: float | None = 1e-30,
    eps1_mode: str = "add",
    amsgrad: bool = False,
    state_dtype: str | None = None,
    numerator: optax.GradientTransformation | None = None,
) -> GradientTransformation:
    """Divide by the root of a factored second moment: u = x / sqrt(V), V = R C / mean(R).

    Args:
        beta2: decay of the second moment, a number or a schedule of t (t = 1 at the first update).
        factoring: which axes are factored, a rule of `adafactor_spec.factoring`.
        eps1: regularises g^2; None is the machine epsilon of the parameter's dtype.
        eps1_mode: "add" (g^2 + eps1) or "floor" (V >= eps1^2 and its normaliser >= eps1).
        amsgrad: divide by the running maximum of V, debiased.
        state_dtype: at least float32 (None) or the parameter's ("param").
        numerator: what makes x of the gradient, such as `momentum(0.9)`; None leaves the gradient.

    Returns:
        A transformation whose state has `v_row`, `v_col`, `v` and `v_max`, trees like the parameters.

    Source: algorithms 1, 3 and 4 of arXiv 1804.04235.
    """

    fields: dict[str, Any] = {"eps1": eps1, "eps1_mode": eps1_mode, "amsgrad": amsgrad, "state_dtype": state_dtype}
    if numerator is not None:
        numerator = optax.with_extra_args_support(numerator)
    recipe = Recipe(beta2=beta2, factoring=factoring, **fields)  # refuses what is out of range

    def stored(leaf: Leaf) -> str:
        return recipe.state_dtype_for(leaf.dtype)

    def init(params: Tree) -> FactoredState:
        leaves, _, structure = leaves_of(params)

        def tree(shape_of: Callable[[Plan], tuple[int, ...] | None]) -> Tree:
            return tree_of(structure, [zeros(shape_of(leaf.plan(factoring)), stored(leaf)) for leaf in leaves])

        return FactoredState(
            v_row=tree(lambda plan: plan.row_shape if plan.factored else None),
            v_col=tree(lambda plan: plan.col_shape if plan.factored else None),
            v=tree(lambda plan: None if plan.factored else plan.matrix_shape),
            v_max=tree(lambda plan: plan.matrix_shape if amsgrad else None),
            numerator=None if numerator is None else numerator.init(params),
        )

    def update(updates: Tree, state: FactoredState, params: Tree, *, t: jax.Array, **extra: Any) -> Any:
        leaves, _, structure = leaves_of(params)
        made, numerator_state = updates, state.numerator
        if numerator is not None:
            made, numerator_state = numerator.update(updates, state.numerator, params, t=t, **extra)
        now = _decay_at(beta2, t)

        def one(leaf: Leaf, g: Any, x: Any, v_row: Any, v_col: Any, v: Any, v_max: Any) -> tuple[Any, ...]:
            if g is None:
                return None, v_row, v_col, v, v_max
            plan, (beta, complement, bias) = leaf.plan(factoring), now(leaf.compute)
            eps = recipe.eps1_for(leaf.dtype)
            added, floor = (eps, None) if eps1_mode == "add" else (0.0, eps)

            # Phase 1, statistics: means of g^2.
            new = kernels.statistics(g, added, plan)

            # Phase 2, norm: the second moment and the direction; what is stored is what is used.
            old = (v_row, v_col) if plan.factored else (v,)
            means = [kernels.ema(o.astype(g.dtype), n, beta, complement) for o, n in zip(old, new, strict=True)]
            moments = tuple(kernels.round_to(moment, stored(leaf)) for moment in means)
            roots, x = kernels.root_factors(moments, floor, plan), x.reshape(plan.matrix_shape)
            if amsgrad:
                largest = jnp.maximum(v_max.astype(g.dtype), kernels.second_moment(roots, floor))
                largest = kernels.round_to(largest, stored(leaf))
                u, v_max = kernels.precondition_amsgrad(x, largest, bias, eps), largest.astype(stored(leaf))
            else:
                u = kernels.precondition(x, roots, floor)
            kept = tuple(moment.astype(stored(leaf)) for moment in moments)
            return u.reshape(leaf.shape), *((*kept, None) if plan.factored else (None, None, *kept)), v_max

        trees = (state.v_row, state.v_col, state.v, state.v_max)
        given = (updates_of(tree, leaves, structure) for tree in (updates, made))
        u, v_row, v_col, v, v_max = columns(5, one, structure, leaves, *given, *map(structure.flatten_up_to, trees))
        return u, FactoredState(v_row, v_col, v, v_max, numerator_state)

    return GradientTransformation(init, update)


def momentum(
    beta1: ScalarOrSchedule = 0.9,
    *,
    debias: bool = False,
    momentum_dtype: str | None = None,
    momentum_rounding: str = "store",
    state_dtype: str | None = None,
) -> GradientTransformation:
    """Average what comes in: m = beta1_t m + (1 - beta1_t) x.

    Args:
        beta1: a number or a schedule of t.
        debias: divide the average by 1 - beta1_t^t.
        momentum_dtype: storage dtype of m; None is that of the second moment.
        momentum_rounding: "store", "use" or "decay", see `adafactor_spec.Recipe`.
        state_dtype: dtype of the second moment, at least float32 (None) or the parameter's ("param").

    Returns:
        A transformation whose state has `m`, a tree like the parameters.
    """

    fields: dict[str, Any] = {"momentum_rounding": momentum_rounding, "state_dtype": state_dtype}
    recipe = Recipe(beta1=beta1, debias=debias, momentum_dtype=momentum_dtype, **fields)  # refuses what is out of range

    def stored(leaf: Leaf) -> str:
        return recipe.momentum_dtype_for(leaf.dtype)

    def init(params: Tree) -> MomentumState:
        leaves, _, structure = leaves_of(params)
        return MomentumState(tree_of(structure, [zeros(leaf.shape, stored(leaf)) for leaf in leaves]))

    def update(updates: Tree, state: MomentumState, params: Tree, *, t: jax.Array, **extra: Any) -> Any:
        leaves, _, structure = leaves_of(params)
        now = _decay_at(beta1, t)

        def one(leaf: Leaf, x: Any, m: jax.Array) -> tuple[Any, jax.Array]:
            if x is None:
                return None, m
            beta, complement, bias = now(leaf.compute)
            used, kept = kernels.average(m.astype(x.dtype), x, beta, complement, momentum_rounding, stored(leaf))
            return used / bias if debias else used, kept.astype(stored(leaf))

        given = updates_of(updates, leaves, structure)
        used, m = columns(2, one, structure, leaves, given, structure.flatten_up_to(state.m))
        return used, MomentumState(m)

    return GradientTransformation(init, update)


def _decay_at(beta: ScalarOrSchedule, t: jax.Array) -> Callable[[str], _Decay]:
    """A decay rate at step t for a computing dtype, traced once for each."""
    decay = schedules.as_schedule(beta)
    return functools.cache(
        lambda dtype: _Decay(
            number(decay(t), dtype),
            number(decay.complement(t), dtype),
            number(schedules.bias_correction(decay, t), dtype),
        )
    )
