"""Random recipes, parameters and gradients, for tests that hold for every one of them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from adafactor_spec import Recipe, factoring, per_name, recipes, replace, schedules
from adafactor_spec.factoring import explicit

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "vector": (5,),
    "empty": (0, 3),
    "row": (1, 6),
    "matrix": (4, 6),
    "stack": (3, 4, 5),
    "kernel": (3, 2, 4, 5),
}
STEPS = 4
ZERO_STEP = 3  # all gradients of this step are zero


def _lr_of_t(t: Any) -> Any:
    return 0.3 / t


def _beta_of_t(t: Any) -> Any:
    return 0.9 - 0.5 / t


LRS: list[Any] = [1e-2, 0.5, _lr_of_t, schedules.piecewise_constant(schedules.relative_step(0.2), (2, 3), 0.5)]
STEPWISE = schedules.piecewise_constant(0.2, (2,), 0.1)
DECAYS: list[Any] = [0.1, STEPWISE, 0.0, per_name({"stack": STEPWISE, "matrix": 0.0}, default=0.05)]
SCALED: list[Any] = [True, False, per_name({"stack|vector": False}, default=True)]
BETAS: list[Any] = [schedules.power_decay(), schedules.adam_decay(0.99), 0.9, _beta_of_t]
RULES = [
    factoring.last_two,
    factoring.as_matrix,
    factoring.no_factoring,
    factoring.largest_two(4),
    factoring.largest_two(2, ties="first"),
    factoring.leading_or_last_two(3),
    factoring.by_name(
        {"stack": explicit(1, 2, 0), "kernel": explicit((0, 3), (2,), (1,)), "vector": explicit((), (), 0)}
    ),
    factoring.by_name({"stack": explicit((), (), (0, -1))}, default=factoring.largest_two(3)),
]  # fmt: skip


@st.composite
def any_recipe(draw: st.DrawFn) -> Recipe:
    """A recipe with every field drawn, or a named one."""
    if draw(st.integers(0, 5)) == 0:
        named = recipes.shown(draw(st.sampled_from(recipes.NAMES)))
        # A rule that takes every shape, and no 16-bit momentum: where that rounds is a matter of the last bit.
        some = {"factoring": draw(st.sampled_from(RULES)), "momentum_dtype": None}
        return replace(named, lr=draw(st.sampled_from(LRS)) if named.lr is None else named.lr, **some)
    before = draw(st.booleans())
    return Recipe(
        lr=draw(st.sampled_from(LRS)),
        relative_step=draw(st.booleans()),
        multiply_by_parameter_scale=draw(st.sampled_from(SCALED)),
        eps2=draw(st.sampled_from([1e-3, 0.1])),
        max_parameter_scale=draw(st.sampled_from([None, 0.5])),
        beta2=draw(st.sampled_from(BETAS)),
        factoring=draw(st.sampled_from(RULES)),
        eps1=draw(st.sampled_from([1e-30, 1e-6, None])),
        eps1_mode=draw(st.sampled_from(["add", "floor"])),
        amsgrad=draw(st.booleans()),
        clipping_threshold=draw(st.sampled_from([1.0, 0.3, None, float("inf")])),
        beta1=draw(st.sampled_from([None, 0.9, schedules.adam_decay(0.9), _beta_of_t])),
        momentum_of=draw(st.sampled_from(["grad", "update", "step"])),
        debias=draw(st.booleans()),
        weight_decay=draw(st.sampled_from(DECAYS)),
        weight_decay_by=draw(st.sampled_from(["lr", "one", 1.5] if before else ["step", "lr", "one", "grad", 2])),
        decay_before_scale=before,
        state_dtype=draw(st.sampled_from([None, "param"])),
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Initial parameters, and gradients over twelve orders of magnitude; all values fit in float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([0.0, 1e-4, 1.0, 30.0]))
    params = {name: _float32(rng.standard_normal(shape) * size) for name, shape in SHAPES.items()}
    exponents = draw(st.lists(st.floats(-6, 6), min_size=STEPS, max_size=STEPS))
    exponents[ZERO_STEP - 1] = -np.inf
    grads = [
        {name: _float32(rng.standard_normal(shape) * 10.0**exponent) for name, shape in SHAPES.items()}
        for exponent in exponents
    ]
    return params, grads


def _float32(x: Any) -> Any:
    return np.asarray(x, np.float32).astype(np.float64)
