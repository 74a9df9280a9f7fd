"""Named wrong Adafactors: mistakes that some published implementation made, or that are easily made.

The checks of this suite must reject every one of them.

A fault of a kernel works on the oracle, on JAX's kernels and on torch's: their names and arguments are the same. A
fault of a step or of a plan is planted in the oracle.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adafactor_spec import Recipe, factoring, oracle, replace
from adafactor_spec.schedules import power_decay

Fault = Callable[[pytest.MonkeyPatch, ModuleType], None]


def _kernel(name: str, wrong: Callable[[ModuleType], Callable[..., Any]]) -> Fault:
    def plant(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
        patch.setattr(kernels, name, wrong(kernels))

    return plant


def _inverted_clip(kernels: ModuleType) -> Callable[..., Any]:
    """u / min(1, RMS(u) / d): never clips and enlarges small updates (pytorch_optimizer 3.9, timm 1.0.29)."""

    def clip(u: Any, u_rms: Any, threshold: float) -> Any:
        ratio = u_rms / threshold
        return u / (ratio * (ratio < 1) + (ratio >= 1))

    return clip


def _clip_by_norm(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """The norm in place of the RMS."""
    right, right_rms, known = kernels.clip, kernels.rms, list[tuple[Any, float]]()

    def rms(x: Any, axes: tuple[int, ...]) -> Any:
        known.append((right_rms(x, axes), float(np.prod([x.shape[axis] for axis in axes]))))
        return known[-1][0]

    def clip(u: Any, u_rms: Any, threshold: float) -> Any:
        of_shapes = float(np.prod(u.shape) / max(np.prod(u_rms.shape), 1.0))
        count = next((count for found, count in known if found is u_rms), of_shapes)  # JAX clips the factor of u
        return right(u, u_rms, threshold / max(count, 1.0) ** 0.5)

    patch.setattr(kernels, "rms", rms)
    patch.setattr(kernels, "clip", clip)


def _normaliser_over_the_wrong_axis(kernels: ModuleType) -> Callable[..., Any]:
    """mean(R) over the columns, which leaves V = C (timm 1.0.29)."""
    right = kernels.root_factors
    return lambda moments, floor, plan: right(moments, floor, dataclasses.replace(plan, rows=plan.cols, cols=plan.rows))


def _rows_and_columns_swapped(kernels: ModuleType) -> Callable[..., Any]:
    """R gets the means over the rows, C those over the columns."""
    right = kernels.statistics

    def statistics(g: Any, eps1: float, plan: Any) -> Any:
        return right(g, eps1, dataclasses.replace(plan, rows=plan.cols, cols=plan.rows))

    return statistics


def _eps1_missing(kernels: ModuleType) -> Callable[..., Any]:
    """g^2 without eps1: only a large eps1 and zero gradients show it."""
    right = kernels.statistics
    return lambda g, eps1, plan: right(g, 1e-37, plan)


def _weights_swapped(kernels: ModuleType) -> Callable[..., Any]:
    """(1 - beta) * old + beta * new."""
    right = kernels.ema
    return lambda old, new, beta, complement: right(old, new, complement, beta)


def _no_normaliser(kernels: ModuleType) -> Callable[..., Any]:
    """V = R C."""
    right = kernels.root_factors

    def root_factors(moments: Any, floor: Any, plan: Any) -> Any:
        return tuple(moment**0.5 for moment in moments) if plan.factored else right(moments, floor, plan)

    return root_factors


def _scale_without_eps2(kernels: ModuleType) -> Callable[..., Any]:
    """RMS(p) without its lower bound: a parameter of zeros never moves."""
    return lambda p_rms, eps2, largest: p_rms


def _rms_without_root(kernels: ModuleType) -> Callable[..., Any]:
    """mean(x^2) in place of its root."""
    right = kernels.rms
    return lambda x, axes: right(x, axes) ** 2


def _sum_for_mean(kernels: ModuleType) -> Callable[..., Any]:
    """Sums in place of means: the same update, another state and another RMS."""
    right = kernels.mean

    def mean(x: Any, axes: Any) -> Any:
        return right(x, axes) * float(np.prod([x.shape[axis] for axis in axes])) if axes else x

    return mean


def _amsgrad_not_debiased(kernels: ModuleType) -> Callable[..., Any]:
    """The running maximum without its bias correction."""
    right = kernels.precondition_amsgrad
    return lambda x, v_max, bias, eps1: right(x, v_max, 1.0, eps1)


def _scale_without_maximum(kernels: ModuleType) -> Callable[..., Any]:
    """max_parameter_scale ignored."""
    right = kernels.parameter_scale
    return lambda p_rms, eps2, largest: right(p_rms, eps2, None)


def _scale_over_the_batch(kernels: ModuleType) -> Callable[..., Any]:
    """RMS(p) of the whole stack: batch axes are axes like any other."""
    right = kernels.parameter_scale
    return lambda p_rms, eps2, largest: right(kernels.rms(p_rms, tuple(range(p_rms.ndim))), eps2, largest)


def _clip_over_the_batch(kernels: ModuleType) -> Callable[..., Any]:
    """RMS(u) of the whole stack (Mesh-TensorFlow)."""
    right = kernels.clip
    return lambda u, u_rms, threshold: right(u, kernels.rms(u_rms, tuple(range(u_rms.ndim))), threshold)


def _momentum_before_clip(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """The average is clipped in place of the update that is averaged."""
    if kernels is oracle:  # a recipe that averages something else, or nothing, stays as it is
        right_step = oracle.step

        def step(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
            with pytest.MonkeyPatch.context() as inside:
                if recipe.beta1 is not None and recipe.momentum_of == "update":
                    _clip_the_average(inside, oracle)
                return right_step(recipe, *args, **kwargs)

        patch.setattr(oracle, "step", step)
    else:
        _clip_the_average(patch, kernels)


def _clip_the_average(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    right_clip, right_average, clipped = kernels.clip, kernels.average, []

    def clip(u: Any, u_rms: Any, threshold: float) -> Any:
        clipped.append((tuple(axis for axis, size in enumerate(u_rms.shape) if size == 1), threshold))
        return u

    def average(*args: Any) -> Any:
        used, kept = right_average(*args)
        if clipped:
            axes, threshold = clipped.pop(0)
            used = right_clip(used, kernels.rms(used, axes), threshold)
        return used, kept

    patch.setattr(kernels, "clip", clip)
    patch.setattr(kernels, "average", average)


KERNEL_FAULTS: dict[str, Fault] = {
    "momentum before clip": _momentum_before_clip,
    "inverted clip": _kernel("clip", _inverted_clip),
    "clip by norm": _clip_by_norm,
    "no clip": _kernel("clip", lambda kernels: lambda u, u_rms, threshold: u),
    "normaliser over the wrong axis": _kernel("root_factors", _normaliser_over_the_wrong_axis),
    "rows and columns swapped": _kernel("statistics", _rows_and_columns_swapped),
    "eps1 missing": _kernel("statistics", _eps1_missing),
    "weights swapped": _kernel("ema", _weights_swapped),
    "no normaliser": _kernel("root_factors", _no_normaliser),
    "scale without eps2": _kernel("parameter_scale", _scale_without_eps2),
    "max_parameter_scale ignored": _kernel("parameter_scale", _scale_without_maximum),
    "RMS(p) over the batch axes": _kernel("parameter_scale", _scale_over_the_batch),
    "RMS(u) over the batch axes": _kernel("clip", _clip_over_the_batch),
    "rms without root": _kernel("rms", _rms_without_root),
    "sum for mean": _kernel("mean", _sum_for_mean),
    "amsgrad not debiased": _kernel("precondition_amsgrad", _amsgrad_not_debiased),
}


# Faults of the whole step, planted in the oracle.


def _changed(**fields: Any) -> Fault:
    """A step of another recipe than the one that was asked for, where it has such a thing at all."""
    return _changed_by(lambda recipe: fields)


def _changed_by(changes: Callable[[Recipe], dict[str, Any]]) -> Fault:
    """The same, with changes that depend on the recipe."""

    def plant(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
        right = oracle.step

        def step(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
            return right(replace(recipe, **changes(recipe)), *args, **kwargs)

        patch.setattr(oracle, "step", step)

    return plant


def _one_field(field: str, wrong: Callable[[Any], Any]) -> Fault:
    """Another value of one field."""
    return _changed_by(lambda recipe: {field: wrong(getattr(recipe, field))})


def _decay_rate(**wrong: Callable[[Any], Any]) -> Fault:
    """Another power_decay, where beta2 is one."""

    def changed(beta2: Any) -> Any:
        if not isinstance(beta2, power_decay):
            return beta2
        return dataclasses.replace(beta2, **{name: change(getattr(beta2, name)) for name, change in wrong.items()})

    return _one_field("beta2", changed)


def _plan(wrong: Callable[[factoring.Rule], factoring.Rule]) -> Fault:
    """The plan of another rule."""

    def plant(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
        patch.setattr(oracle, "plan_for", lambda rule, shape, name="": factoring.plan(wrong(rule), shape, name))

    return plant


def _ties_first(rule: factoring.Rule) -> factoring.Rule:
    """The first of equally long axes where the original takes the last."""
    return dataclasses.replace(rule, ties="first") if isinstance(rule, factoring.largest_two) else rule


def _min_dim_exclusive(rule: factoring.Rule) -> factoring.Rule:
    """Longer than min_dim instead of at least as long."""
    if isinstance(rule, factoring.largest_two | factoring.leading_or_last_two):
        return dataclasses.replace(rule, min_dim=rule.min_dim + 1)
    return rule


def _other_power(by: Any) -> Any:
    """lr in place of lr^2, and lr^2 in place of any other power."""
    power = {"lr": 1.0}.get(by, by)
    return by if isinstance(power, str) else "lr" if power == 2 else 2.0


def _another_rounding(kind: str) -> str:
    """beta1 rounded to the momentum's dtype where the original does not do that, and not where it does."""
    return "store" if kind == "decay" else "decay"


def _off_by_one(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """t = 2 at the first update."""
    right = Recipe.at
    patch.setattr(Recipe, "at", lambda recipe, t: right(recipe, t + 1))


def _decay_after_update(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """p <- (1 - c) (p - update): the decay sees the new parameter."""
    right = oracle.step

    def step(recipe: Recipe, param: Any, *args: Any, **kwargs: Any) -> Any:
        decayed, _ = right(recipe, param, *args, **kwargs)
        new, state = right(replace(recipe, weight_decay=0.0), param, *args, **kwargs)
        c = np.divide(new - decayed, param, out=np.zeros_like(new), where=np.asarray(param) != 0)
        return new * (1 - c), state

    patch.setattr(oracle, "step", step)


def _complement_as_float32_difference(patch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """1 - beta2_t from a float32 beta2_t."""
    right = Recipe.at

    def at(recipe: Recipe, t: Any) -> Any:
        now = right(recipe, t)
        return dataclasses.replace(now, beta2_complement=float(np.float32(1.0) - np.float32(now.beta2)))

    patch.setattr(Recipe, "at", at)


STEP_FAULTS: dict[str, Fault] = {
    "step off by one": _off_by_one,
    "decay after update": _decay_after_update,
    "decay times nothing": _changed(weight_decay_by="one"),
    "decay times lr where it is not": _one_field("weight_decay_by", lambda by: "lr" if by == "one" else by),
    "decay times the scaled step": _changed(weight_decay_by="step", decay_before_scale=False),
    "decay by another power of lr": _one_field("weight_decay_by", _other_power),
    "decay as L2": _changed(weight_decay_by="grad", decay_before_scale=False),
    "decay after RMS(p)": _changed(decay_before_scale=False),
    "momentum of the update": _changed(momentum_of="update"),
    "momentum rounded in another place": _one_field("momentum_rounding", _another_rounding),
    "first moment not debiased": _changed(debias=False),
    "beta2 without the adam decay": _changed(beta2=0.999),
    "beta2 without its cap": _decay_rate(cap=lambda cap: 1.0),
    "decay offset ignored": _decay_rate(offset=lambda offset: 0),
    "decay offset shifted by one": _decay_rate(offset=lambda offset: offset + 1 if offset else 0),
    "eps1 added where it is a floor": _changed(eps1_mode="add"),
    "no relative step": _changed(relative_step=False),
    "no parameter scale": _changed(multiply_by_parameter_scale=False),
    "complement as a float32 difference": _complement_as_float32_difference,
}

PLAN_FAULTS: dict[str, Fault] = {
    "ties to the first axes": _plan(_ties_first),
    "min_dim exclusive": _plan(_min_dim_exclusive),
}

FAULTS = KERNEL_FAULTS | STEP_FAULTS | PLAN_FAULTS
