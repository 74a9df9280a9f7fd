"""How far the original and the recipe are apart, in units of what the dtype allows."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adafactor_parity import FLOOR_ULP, budget, ulp
from adafactor_spec import Recipe, dtypes
from parity_tests.peers import ours
from parity_tests.peers.cases import FEW, Array, Arrays, Case
from parity_tests.peers.originals import original

# A first moment in fewer bits than the arithmetic: two runs that differ by a rounding error may store neighbours, and
# the steps that use them differ by one spacing. What an element has been moved in all is then off by no more than a
# spacing of it at every step. An error of 3e-7 crosses a tie of float16 in one element of a thousand and step, so that
# this is allowed to one element of a tensor and to few of a large one; the others keep the plain budget.
SPACINGS = 1.0
TIES = 0.05

# An original that decays the parameter by a write of its own rounds it twice in a step where the recipe rounds once:
# round(a) + round(b) and round(a + b) are one unit apart at most. A small step rounds in the same way every time, so
# that the units add up.
ULP_PER_DECAY = 1.0
DECAY_IS_A_WRITE = ("torch", "transformers", "timm", "timm_big_vision", "pytorch_optimizer", "keras")

# n float32 numbers of one sign that are added one after the other give a sum that is off by n * 2^-24 at most, and its
# root by half of that. RMS(p) and RMS(u) are two such roots, and both scale the whole step.
IN_TURN = 2.0**-24

# The yardstick of one small tensor is one draw of its rounding errors and may be 0 by luck: g / sqrt(g^2) has none,
# g * rsqrt(g^2) has. So the definition also steps this many companions of each parameter, in both precisions: the same
# numbers, each a little different, so that the same problem is rounded in other ways. The largest gap counts.
COMPANIONS = 8
DIFFERENT = 0.1


@dataclass(frozen=True)
class Worst:
    """The largest deviation of a case in units of its budget; both relative to the tensor's largest element."""

    of_budget: float
    relative: float
    allowed: float
    where: str


def compare(case: Case, recipe: Recipe | None = None) -> Worst:
    """Step the original, the oracle, the oracle in the dtype's own precision, and the original's framework."""
    recipe = ours.recipe_of(case) if recipe is None else recipe
    framework = ours.Jax if case.peer == "optax" else ours.Torch
    wide = _with_companions(case)
    exact, yardstick = ours.Oracle(wide, recipe), ours.Oracle(wide, recipe, np.dtype(case.dtype).type)
    others: dict[str, Any] = {"original": original(case), framework.__name__: framework(case, recipe)}
    largest = {name: float(np.max(np.abs(p))) for name, p in wide.params.items()}
    floor, spacing = dict.fromkeys(case.params, 0.0), dict.fromkeys(case.params, 0.0)
    writes = case.peer in DECAY_IS_A_WRITE and recipe.decays and recipe.weight_decay_by != "grad"
    narrow = _narrow(recipe, case.dtype)
    in_turn = {name: p.size * IN_TURN if p.size > FEW else 0.0 for name, p in case.params.items()}
    old, found, gap = wide.params, [], 0.0
    for t, (grads, wide_grads) in enumerate(zip(case.grads, wide.grads, strict=True), 1):
        lr = case.lrs[t - 1] if case.lrs else None
        with np.errstate(under="ignore"):
            for run in (exact, yardstick):
                run.step(wide_grads, lr)
            for run in others.values():
                run.step(grads, lr)
        new, rough, values = exact.params(), yardstick.params(), {name: run.params() for name, run in others.items()}
        for name, p in new.items():
            largest[name] = max(largest[name], float(np.max(np.abs(p))))
            gap = max(gap, _apart(rough[name], p, largest[name], _ties(p) if narrow else 0))
        for name in case.params if case.dtype == "float32" else ():
            moved = float(np.max(np.abs(new[name] - old[name])))
            spacing[name] += SPACINGS * max(dtypes.epsilon(narrow) * moved, _ulp(moved, narrow)) if narrow else 0.0
            floor[name] += in_turn[name] * moved
            floor[name] += ULP_PER_DECAY * _ulp(largest[name], case.dtype) if writes else 0.0
        for name, reference in values["original"].items():
            assert np.all(np.isfinite(reference)), f"the original is not finite at step {t}, parameter {name}. {case}"
            for which, value in (("oracle", new), (framework.__name__, values[framework.__name__])):
                where = f"{which} from original, parameter {name} {reference.shape}, step {t}"
                for ties in (0, _ties(reference)) if narrow else (0,):
                    apart = _apart(value[name], reference, largest[name], ties)
                    found.append((apart, largest[name], floor[name] + (0.0 if ties else spacing[name]), where))
        old = new
    relative = budget(case.dtype, gap).relative
    return max((_judged(case.dtype, relative, *deviation) for deviation in found), key=lambda worst: worst.of_budget)


def _with_companions(case: Case) -> Case:
    rng = np.random.default_rng([*case.peer.encode(), case.number, 1])

    def beside(arrays: Arrays) -> Arrays:
        drawn = {
            f"{name} {index}": x * (1.0 + DIFFERENT * rng.uniform(-1.0, 1.0, x.shape))
            for name, x in arrays.items()
            for index in range(COMPANIONS)
        }
        return arrays | {name: x.astype(case.dtype).astype(np.float64) for name, x in drawn.items()}

    return replace(case, params=beside(case.params), grads=[beside(grads) for grads in case.grads])


def _judged(dtype: str, budgeted: float, relative: float, largest: float, floor: float, where: str) -> Worst:
    allowed = budgeted
    if largest > 0 and dtype != "float64":
        allowed = max(allowed, (FLOOR_ULP * _ulp(largest, dtype) + floor) / largest)
    of_budget = relative / allowed if relative else 0.0
    return Worst(of_budget, relative, allowed, where)


def _narrow(recipe: Recipe, dtype: str) -> str | None:
    """The dtype of a first moment that is stored in fewer bits than the parameter."""
    stored = recipe.momentum_dtype_for(dtype)
    return stored if recipe.beta1 is not None and dtypes.epsilon(stored) > dtypes.epsilon(dtype) else None


def _ties(x: Array) -> int:
    return 1 + int(TIES * x.size)


def _ulp(largest: float, dtype: str) -> float:
    return float(ulp(largest, dtype)) if largest else 0.0


def _apart(one: Array, other: Array, largest: float, ties: int = 0) -> float:
    """The largest deviation but for the `ties` largest ones."""
    apart = np.sort(np.abs(one - other), axis=None)[: one.size - ties]
    if not np.any(apart):
        return 0.0
    return float(apart[-1]) / largest if largest > 0 and np.isfinite(apart[-1]) else float("inf")
