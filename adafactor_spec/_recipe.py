"""The recipe: one definition of the algorithm, with every published Adafactor as a setting of it."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from . import _describe, dtypes
from ._fields import plain_fields
from ._names import mapped, own, per_name, values_of
from .errors import SMALLEST_FLOAT32, is_number, keep, nearest, refusal, shown
from .factoring import Rule, last_two
from .schedules import (
    Number,
    ScalarOrSchedule,
    as_schedule,
    bias_correction,
    power,
    power_decay,
    product,
    relative_step,
)

REMEDIES = {
    "betas": "Use beta1 and beta2.",
    "eps": "Use eps1 (added to g^2) and eps2 (the smallest parameter scale).",
    "learning_rate": "Use lr.",
    "momentum": "Use beta1, with momentum_of='step' for optax's momentum.",
    "dtype_momentum": "Use momentum_dtype.",
    "decay_rate": "Use beta2=schedules.power_decay(0.8).",
    "beta2_decay": "Use beta2=schedules.power_decay(0.8) for -0.8.",
    "decay_offset": "Use beta2=schedules.power_decay(0.8, offset=...).",
    "clip_threshold": "Use clipping_threshold.",
    "cliping_threshold": "Use clipping_threshold.",
    "d": "Use clipping_threshold.",
    "scale_parameter": "Use multiply_by_parameter_scale.",
    "warmup_init": "Use lr=schedules.linear_warmup(1.0, steps=1_000_000) with relative_step=True.",
    "weight_decay_rate": "Use weight_decay, with weight_decay_by='one' for optax's.",
    "min_dim_size_to_factor": "Use factoring=factoring.largest_two(128).",
    "factored": "Use factoring=factoring.no_factoring.",
    "ams_grad": "Use amsgrad.",
    **dict.fromkeys(
        ("foreach", "fused", "capturable", "rounding", "nonfinite"),
        "It says how a step is computed and not what: it is an argument of adafactor_torch.Adafactor alone.",
    ),
    "lr_decay_step": "Use lr=schedules.piecewise_constant(lr, boundaries, factor).",
    "lr_decay_factor": "Use lr=schedules.piecewise_constant(lr, boundaries, factor).",
}


_BY_SCALE = ("step", "grad")  # decays that are not a function of t alone


@dataclass(frozen=True)
class Numbers:
    """The numbers of one step: every schedule of a recipe at its t. `None` where the recipe has no such thing.

    Attributes:
        t: the step, 1 at the first update.
        lr: the learning rate now in force.
        rho: the step size before it is scaled: lr, or min(lr, t^-1/2) for a relative step.
        beta2, beta2_complement, bias2: decay of the second moment, 1 - beta2, and 1 - beta2^t.
        beta1, beta1_complement, bias1: the same of the first.
        weight_decay: the factor in front of p in the decay, without alpha where that is a part of it.
    """

    t: Number
    lr: Number
    rho: Number
    beta2: Number
    beta2_complement: Number
    bias2: Number
    beta1: Number
    beta1_complement: Number
    bias1: Number
    weight_decay: Number


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One Adafactor, its fields in the order in which a step uses them. The defaults are those of "paper".

    Attributes:
        lr: learning rate before scaling, a number or a schedule of t; t = 1 at the first update. None: the original has
            no default, and the optimizer must be given one.
        relative_step: rho_t = min(lr_t, t^-1/2); else rho_t = lr_t.
        multiply_by_parameter_scale: alpha_t = rho_t * clip(RMS(p), eps2, max_parameter_scale); else alpha_t = rho_t.
            Here and in `weight_decay` a `per_name` gives parameters values of their own.
        eps2: the smallest scale, so that a parameter of zeros moves.
        max_parameter_scale: the largest, or None.
        beta2: decay of the second moment, a number or a schedule.
        factoring: rule from the module `factoring`.
        eps1: regularises g^2; None is the machine epsilon of the parameter's own dtype.
        eps1_mode: "add": g^2 + eps1. "floor": V >= eps1^2 and its normaliser >= eps1 (torch).
        amsgrad: a full-size running maximum of V, debiased; eps1 is then also added to its root.
        clipping_threshold: u / max(1, RMS(u) / d); None or inf is off.
        beta1: decay of the first moment, a number or a schedule; None is off.
        momentum_of: what is averaged, "grad" (before it is divided), "update" (clipped) or "step" (times alpha).
        debias: divide the first moment by 1 - beta1_t^t.
        momentum_dtype: storage of the first moment; None is that of the second.
        momentum_rounding: what a momentum narrower than the arithmetic rounds. "store": the stored value only. "use":
            the update and the average, and the rounded average is used. "decay": beta1 * m and the stored value.
        weight_decay: a number or a schedule; 0 or None is off.
        weight_decay_by: the decay is c * p, c = weight_decay times alpha ("step"), lr ("lr"), a number's power of lr
            (2: lr^2) or nothing ("one"); "grad" adds weight_decay * p to the gradient (L2).
        decay_before_scale: RMS(p) is taken of the decayed parameter (Keras).
        state_dtype: second moment in at least float32 (None) or in the parameter's dtype ("param").

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.
    """

    lr: ScalarOrSchedule | None = 1e-2
    relative_step: bool = True
    multiply_by_parameter_scale: bool | per_name = True
    eps2: float = 1e-3
    max_parameter_scale: float | None = None
    beta2: ScalarOrSchedule = power_decay()
    factoring: Rule = last_two
    eps1: float | None = 1e-30
    eps1_mode: Literal["add", "floor"] = "add"
    amsgrad: bool = False
    clipping_threshold: float | None = 1.0
    beta1: ScalarOrSchedule | None = None
    momentum_of: Literal["grad", "update", "step"] = "update"
    debias: bool = False
    momentum_dtype: str | None = None
    momentum_rounding: Literal["store", "use", "decay"] = "store"
    weight_decay: ScalarOrSchedule | per_name = 0.0
    weight_decay_by: Literal["step", "lr", "one", "grad"] | float = "step"
    decay_before_scale: bool = False
    state_dtype: Literal["param"] | None = None

    def __post_init__(self) -> None:
        keep(self, **plain_fields(vars(self)))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse fields that contradict each other."""
        if self.eps1_mode == "add" and is_number(self.beta2) and is_number(self.eps1):
            # With a beta2 that is not 0 at t = 1 the second moment of a first gradient of 0 is (1 - beta2) eps1.
            least = SMALLEST_FLOAT32 / (1.0 - self.beta2)
            if self.eps1 < least and self.beta2:
                remedy = "The first second moment of a gradient of 0, (1 - beta2) eps1, would be 0 in float32."
                raise refusal("eps1", f"at least {least:.2g} with beta2 = {self.beta2}", self.eps1, remedy)
        if self.decay_before_scale and isinstance(self.weight_decay_by, str) and self.weight_decay_by in _BY_SCALE:
            remedy = "The decay comes before RMS(p), so it cannot be a multiple of it."
            must = "'lr', 'one' or a number with decay_before_scale=True"
            raise refusal("weight_decay_by", must, self.weight_decay_by, remedy)
        if is_number(self.max_parameter_scale) and is_number(self.eps2) and self.eps2 > self.max_parameter_scale:
            raise refusal("max_parameter_scale", f"at least eps2 = {self.eps2}", self.max_parameter_scale)

    @property
    def decays(self) -> bool:
        """Whether there is a weight decay."""
        return not all(is_number(value) and value == 0 for value in values_of(self.weight_decay))

    def effective(self) -> "Recipe":
        """The same algorithm with every field that has no effect at its default; the recipe itself where all have one.

        Recipes whose effective forms are equal compute the same numbers.
        """
        idle: set[str] = set()
        if self.beta1 is None:
            idle |= {"momentum_of", "debias", "momentum_dtype", "momentum_rounding"}
        elif self.momentum_dtype == "float64":
            idle |= {"momentum_rounding"}
        if not self.decays:
            idle |= {"weight_decay", "weight_decay_by", "decay_before_scale"}
        if self.multiply_by_parameter_scale is False:
            idle |= {"eps2", "max_parameter_scale", "decay_before_scale"}
        changes = {name: _DEFAULTS[name] for name in idle if getattr(self, name) != _DEFAULTS[name]}
        if self.clipping_threshold == math.inf:
            changes["clipping_threshold"] = None
        return replace(self, **changes) if changes else self

    @property
    def needs_names(self) -> bool:
        """Whether a field or the factoring rule looks at the parameter's name."""
        by_name = [getattr(self, field) for field in PER_NAME]
        return self.factoring.needs_names or any(isinstance(v, per_name) and v.needs_names for v in by_name)

    def for_name(self, name: str) -> "Recipe":
        """The recipe of one parameter: every `per_name` has become its value."""
        changes = {field: own(getattr(self, field), name) for field in PER_NAME}
        return self if all(getattr(self, f) is value for f, value in changes.items()) else replace(self, **changes)

    @property
    def rho(self) -> ScalarOrSchedule:
        """The step size before it is scaled, as a schedule."""
        return relative_step(self.given_lr) if self.relative_step else self.given_lr

    @property
    def given_lr(self) -> ScalarOrSchedule:
        """The learning rate, or the refusal of a recipe that has none."""
        if self.lr is None:
            raise refusal("lr", "a number or a schedule", None, "The original has no default: give the learning rate.")
        return self.lr

    @property
    def decay(self) -> Any:
        """The factor in front of p in the weight decay, without alpha where that is a part of it, as a schedule.

        A `per_name` of schedules where `weight_decay` is one.
        """
        if isinstance(self.weight_decay_by, str) and self.weight_decay_by != "lr":
            return self.weight_decay
        exponent = self.weight_decay_by
        times = self.given_lr if isinstance(exponent, str) else power(self.given_lr, exponent)
        return mapped(self.weight_decay, lambda value: product(value, times))

    def at(self, t: Number) -> Numbers:
        """Every schedule at step `t`, a number on the host or an array with the array API.

        Of a recipe that is one parameter's (see `for_name`).
        """
        beta2, beta1 = as_schedule(self.beta2), None if self.beta1 is None else as_schedule(self.beta1)
        return Numbers(
            t=t,
            lr=as_schedule(self.given_lr)(t),
            rho=as_schedule(self.rho)(t),
            beta2=beta2(t),
            beta2_complement=beta2.complement(t),
            bias2=bias_correction(beta2, t) if self.amsgrad else None,
            beta1=None if beta1 is None else beta1(t),
            beta1_complement=None if beta1 is None else beta1.complement(t),
            bias1=bias_correction(beta1, t) if beta1 is not None and self.debias else None,
            weight_decay=as_schedule(self.decay)(t),
        )

    def eps1_for(self, dtype: str) -> float:
        """eps1 for a parameter of `dtype`."""
        return dtypes.epsilon(dtype) if self.eps1 is None else self.eps1

    def state_dtype_for(self, dtype: str) -> str:
        """Storage dtype of the second moment of a parameter of `dtype`."""
        return dtypes.state_dtype(self.state_dtype, dtype)

    def momentum_dtype_for(self, dtype: str) -> str:
        """Storage dtype of the first moment of a parameter of `dtype`."""
        return self.momentum_dtype or self.state_dtype_for(dtype)

    def describe(self) -> str:
        """The recipe in full: its step as equations, in their order and with its numbers, and what is not "paper"."""
        return _describe.describe(self)

    def diff(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """The fields that differ: {field: (its value here, its value in `other`)}."""
        return _describe.diff(self, other)


FIELDS = tuple(field.name for field in fields(Recipe))
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
PER_NAME = ("multiply_by_parameter_scale", "weight_decay")  # the fields in which a parameter may have its own value


def replace(recipe: Recipe, **changes: Any) -> Recipe:
    """`recipe` with some fields changed; an unknown one is refused with its remedy or the nearest known name."""
    for name in changes:
        if name not in FIELDS:
            remedy = REMEDIES.get(name) or nearest(name, FIELDS)
            raise TypeError(f"Recipe has no field {shown(name)}. {remedy}")
    made = object.__new__(Recipe)
    keep(made, **(vars(recipe) | plain_fields(changes)))  # the others have been checked
    made._check_together()
    return made
