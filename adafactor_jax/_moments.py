"""The pieces that keep moments: the factored second one, and the first."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adafactor_spec import Recipe, factoring, schedules
from adafactor_spec.factoring import Plan, Rule
from adafactor_spec.schedules import ScalarOrSchedule, check_schedule

from . import _kernels as kernels
from ._leaves import Leaf, Tree, columns, leaves_of, number, structure_of, tree_of
from ._recomputed import Factor, Floored, Quotient, Recomputed
from ._shardings import zeros_like
from ._step import Part, Piece, Step, Updates, as_piece
from ._xla import larger


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
) -> Piece:
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
    recipe = Recipe(beta2=beta2, factoring=factoring, **fields)  # refuses what is out of range
    amsgrad, adds = recipe.amsgrad, recipe.eps1_mode == "add"
    averaged = None if numerator is None else as_piece(numerator)

    def stored(leaf: Leaf) -> str:
        return recipe.state_dtype_for(leaf.dtype)

    def init(params: Tree) -> FactoredState:
        leaves, values, structure = leaves_of(params)
        rows = [(leaf.plan(factoring), stored(leaf), p) for leaf, p in zip(leaves, values, strict=True)]

        def tree(shape_of: Callable[[Plan], tuple[int, ...] | None]) -> Tree:
            return tree_of(structure, [zeros_like(p, shape_of(plan), dtype, plan.view) for plan, dtype, p in rows])

        return FactoredState(
            v_row=tree(lambda plan: plan.row_shape if plan.factored else None),
            v_col=tree(lambda plan: plan.col_shape if plan.factored else None),
            v=tree(lambda plan: None if plan.factored else plan.matrix_shape),
            v_max=tree(lambda plan: plan.matrix_shape if amsgrad else None),
            numerator=None if averaged is None else averaged.init(params),
        )

    def statistics(leaf: Leaf, g: Recomputed | None, v_row: jax.Array | None, split: bool) -> list[Part]:
        """The means that the moments average, and those of which mean(R) is the average, for it to cross devices with
        them."""
        if g is None:
            return []
        plan, eps = leaf.plan(factoring), recipe.eps1_for(leaf.dtype)
        new = kernels.statistics(g, eps if adds else 0.0, plan)
        parts = [Part(leaf, axes, x) for axes, x in zip((plan.cols, plan.rows), new, strict=False)]
        if split and v_row is not None:
            old = kernels.mean(v_row.astype(leaf.compute), plan.rows)
            both = Part(leaf, (*plan.rows, *plan.cols), kernels.mean(new[0], plan.rows))
            parts += [Part(leaf, plan.rows, old), both]
        return parts

    def update(updates: Updates, state: FactoredState, params: Tree, *, step: Step) -> Any:
        made, numerator_state = updates, state.numerator
        if averaged is not None:
            made, numerator_state = averaged.update(updates, state.numerator, params, step=step)
        structure, now = structure_of(params), _decay_at(recipe.beta2, step.t)
        old = [structure.flatten_up_to(tree) for tree in state[:4]]

        # Phase 1, statistics: means of g^2.
        rows = zip(step.leaves, updates, old[0], strict=True)
        new = step.means([statistics(*row, step.split) for row in rows])

        def one(leaf: Leaf, x: Any, new: list[jax.Array], v_row: Any, v_col: Any, v: Any, v_max: Any) -> Any:
            if x is None:
                return None, v_row, v_col, v, v_max
            plan, (beta, complement, bias) = leaf.plan(factoring), now(leaf.compute)
            eps = recipe.eps1_for(leaf.dtype)
            floor = None if adds else eps

            # Phase 2, norm: the second moment and the direction; what is stored is what is used.
            olds = [moment.astype(leaf.compute) for moment in ((v_row, v_col) if plan.factored else (v,))]
            means = [kernels.ema(o, n, beta, complement) for o, n in zip(olds, new, strict=False)]
            moments = [kernels.round_to(moment, stored(leaf)) for moment in means]
            norm = kernels.ema(new[2], new[3], beta, complement) if len(new) > 2 else None
            roots = _roots(tuple(moments), floor, plan, norm)

            x = x if plan.view is None else x.reshape(plan.view)
            if amsgrad:
                v = kernels.second_moment(tuple(root.value for root in roots), floor)
                largest = kernels.round_to(larger(v_max.astype(leaf.compute), v), stored(leaf))
                v_max, debiased, by = largest.astype(stored(leaf)), Recomputed.of(largest), Recomputed.of(bias)
                u = Recomputed(
                    lambda factor: kernels.precondition_amsgrad(x.value, debiased.value, by.value, eps) * factor,
                    x.shape,
                )
            else:
                bounded = averaged is None  # by what V has of it; an average of gradients is not
                u = _direction(x, roots, floor, _lift(complement, plan) if bounded else None, plan)
            kept = [moment.astype(stored(leaf)) for moment in moments]
            u = u if plan.view is None else u.reshape(leaf.shape)
            return u, *((*kept, None) if plan.factored else (None, None, *kept)), v_max

        u, *moved = columns(5, one, step.leaves, made, new, *old)
        v_row, v_col, v, v_max = (tree_of(structure, values) for values in moved)
        return u, FactoredState(v_row, v_col, v, v_max, numerator_state)

    return Piece(init, update)


def momentum(
    beta1: ScalarOrSchedule = 0.9,
    *,
    debias: bool = False,
    momentum_dtype: str | None = None,
    momentum_rounding: str = "store",
    state_dtype: str | None = None,
) -> Piece:
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

    given: Any = check_schedule("beta1", beta1)  # None would be a recipe without a momentum
    fields: dict[str, Any] = {"momentum_rounding": momentum_rounding, "state_dtype": state_dtype}
    recipe = Recipe(beta1=given, debias=debias, momentum_dtype=momentum_dtype, **fields)  # refuses what is out of range

    def stored(leaf: Leaf) -> str:
        return recipe.momentum_dtype_for(leaf.dtype)

    def init(params: Tree) -> MomentumState:
        leaves, values, structure = leaves_of(params)
        rows = zip(leaves, values, strict=True)
        return MomentumState(tree_of(structure, [zeros_like(p, leaf.shape, stored(leaf)) for leaf, p in rows]))

    def update(updates: Updates, state: MomentumState, params: Tree, *, step: Step) -> Any:
        structure, now = structure_of(params), _decay_at(given, step.t)

        def one(leaf: Leaf, x: Recomputed | None, m: jax.Array) -> tuple[Any, jax.Array]:
            if x is None:
                return None, m
            beta, complement, bias = now(leaf.compute)
            old = m.astype(leaf.compute)
            used, kept = kernels.average(old, x.value, beta, complement, recipe.momentum_rounding, stored(leaf))
            u = Recomputed.of(used)
            return u.times(1.0 / bias) if recipe.debias else u, kept.astype(stored(leaf))

        used, m = columns(2, one, step.leaves, updates, structure.flatten_up_to(state.m))
        return used, MomentumState(tree_of(structure, m))

    return Piece(init, update)


def _roots(moments: tuple[jax.Array, ...], floor: float | None, plan: Plan, norm: jax.Array | None) -> list[Recomputed]:
    """The factors of sqrt(V): of two, even what broadcasts them to x's shape would be written for two readers."""
    if plan.factored:
        return [Recomputed.of(root) for root in kernels.root_factors(moments, floor, plan, norm)]
    whole = Recomputed.of(moments[0])
    return [Recomputed(lambda factor: kernels.root_factors((whole.value,), floor, plan)[0] * factor, whole.shape)]


def _direction(
    x: Recomputed, roots: list[Recomputed], floor: float | None, lift: jax.Array | None, plan: Plan
) -> Recomputed:
    """x / sqrt(V). A factor goes with the rows' root, where it costs nothing. `lift` is that of `Quotient`, None where
    nothing bounds x / sqrt(C)."""

    def over(roots: list[Recomputed]) -> Callable[[Factor], jax.Array]:
        def read(factor: Factor) -> jax.Array:
            first, *others = values = tuple(root.value for root in roots)
            if floor is None and others:
                return kernels.precondition(x.value, tuple(others), None) * (factor / first)
            return kernels.precondition(x.value, values, floor) * factor

        return read

    def summed(factor: float) -> jax.Array:
        first, *others = (root.value for root in roots)
        return x.value / jnp.maximum(math.prod(others, start=first / factor), (floor or 0.0) / factor)

    *rows, last = roots
    quotient = floored = None
    if lift is not None and floor is not None:
        floored = Floored(summed, _lost(roots, plan))
    elif lift is not None and rows:
        quotient = Quotient(Recomputed(over([last]), x.shape), rows[0], lift)
    return Recomputed(over(roots), x.shape, quotient=quotient, floored=floored)


def _lost(roots: list[Recomputed], plan: Plan) -> jax.Array:
    """NaN for each matrix, or all of what is not factored, where the product of the roots has one; else 1."""
    if not plan.factored:
        whole = kernels.mean(roots[0].value, tuple(range(len(plan.matrix_shape))))
        return jnp.where(jnp.isnan(whole), jnp.nan, jnp.ones_like(whole))
    row, col = (root.value for root in roots)

    def some(which: jax.Array) -> jax.Array:
        return jnp.any(which, axis=(*plan.rows, *plan.cols), keepdims=True)

    lost = some(jnp.isnan(row)) | some(jnp.isnan(col)) | (some(row == 0) & some(jnp.isinf(col)))
    return jnp.where(lost, jnp.nan, jnp.ones_like(lost, row.dtype))


def _lift(complement: jax.Array, plan: Plan) -> jax.Array:
    """What g / sqrt(C) can be multiplied by: C is at least (1 - beta2) g^2 / rows, so that the sum over a row of
    g^2 / C is at most rows columns / (1 - beta2), which becomes 2^120. 1 where beta2 is, and bounds nothing."""
    count = max(math.prod(plan.matrix_shape[axis] for axis in (*plan.rows, *plan.cols)), 1)
    return jnp.maximum(2.0**60 * jnp.sqrt(complement / count), 1.0)


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
