import re
from collections.abc import Sequence
from typing import Any

from .._names import per_name
from .._recipe import Recipe
from ..errors import refusal, refuse_unknown_keywords
from ..factoring import Rule, largest_two, last_two, no_factoring
from ..schedules import ScalarOrSchedule, check_schedule, power_decay, product, relative_step
from ._arguments import (
    NO_AVERAGE,
    check_beta1,
    check_eps1,
    check_flags,
    check_min_dim,
    check_optional_lr,
    check_range,
    check_scale,
    check_threshold,
    is_off,
    not_reproduced,
    unsupported,
)

_REMEDIES = {
    "lr": "Use learning_rate.",
    "eps1": "Use epsilon1.",
    "eps2": "Use epsilon2.",
    "weight_decay": "The original has none: override it in the optimizer, weight_decay=...",
    "beta2": "Use decay_rate.",
}


@refuse_unknown_keywords(_REMEDIES)
def tensor2tensor(
    multiply_by_parameter_scale: bool = True,
    learning_rate: ScalarOrSchedule | None = None,
    decay_rate: ScalarOrSchedule | None = None,
    beta1: float = 0.0,
    clipping_threshold: float | None = 1.0,
    factored: bool = True,
    simulated_quantize_bits: None = None,
    parameter_encoding: None = None,
    use_locking: bool = False,
    name: str = "Adafactor",
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
) -> Recipe:
    """tensor2tensor's AdafactorOptimizer, the paper's authors' own code.

    What to know of the original: without a learning_rate the step size is min(1e-2, t^-1/2), times 0.05 where the
    parameter scale is off; a learning_rate that is given is used as it is, without the cap by t^-1/2. Momentum averages
    the finished step. beta2 is a float32 there, so 1 - beta2 is wrong by 1e-4 at t = 20,000; here it is not.

    Args:
        multiply_by_parameter_scale: multiply by max(epsilon2, RMS(p)).
        learning_rate: a number or a function of t (t = 1 first); None for the relative step.
        decay_rate: beta2, a number or a function of t (a tensor in the original); None for 1 - t^-0.8. Its helper
            adafactor_decay_rate_adam(b) is `schedules.adam_decay(b)`.
        beta1: decay of an average of the step, 0 and None are off.
        clipping_threshold: of RMS(u), None and negative ones are off.
        factored: False keeps the second moment whole.
        simulated_quantize_bits, parameter_encoding: must be None.
        use_locking, name: no effect.
        epsilon1: added to g^2.
        epsilon2: smallest parameter scale.

    Source: tensorflow/tensor2tensor at bafdc1b, tensor2tensor/utils/adafactor.py.
    """
    why = "Simulated quantisation and encodings of the weights are no part of the definition."
    for argument, value in {
        "simulated_quantize_bits": simulated_quantize_bits,
        "parameter_encoding": parameter_encoding,
    }.items():
        unsupported(argument, value, None, why, "Leave it out.")
    scaled, factored = check_flags(multiply_by_parameter_scale=multiply_by_parameter_scale, factored=factored)
    return _recipe(
        scaled,
        learning_rate,
        decay_rate,
        beta1=beta1,
        clipping_threshold=clipping_threshold,
        factoring=last_two if factored else no_factoring,
        epsilon1=epsilon1,
        epsilon2=epsilon2,
    )


@refuse_unknown_keywords(_REMEDIES)
def mesh_tensorflow(
    multiply_by_parameter_scale: bool = True,
    learning_rate: ScalarOrSchedule | None = None,
    decay_rate: ScalarOrSchedule | None = None,
    beta1: float = 0.0,
    clipping_threshold: float | None = 1.0,
    factored: bool = True,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    min_dim_size_to_factor: int = 128,
    stacked_dim_names: Sequence[str] | None = None,
    exclude_from_parameter_scale: Sequence[str] | None = None,
) -> Recipe:
    """Mesh-TensorFlow's AdafactorOptimizer.

    What to know of the original: as `tensor2tensor`, but the two largest axes are factored, of equally long ones the
    first. With stacked_dim_names RMS(p) is taken per index of the stack while RMS(u) is taken over all of it; that is
    refused here.

    Args:
        multiply_by_parameter_scale, learning_rate, decay_rate, beta1, clipping_threshold, factored, epsilon1,
            epsilon2: as in `tensor2tensor`. Its helper adafactor_decay_rate_pow(0.8, offset) is
            `schedules.power_decay(0.8, offset=offset)`.
        min_dim_size_to_factor: factor where the second largest axis has at least this many elements.
        stacked_dim_names: must be None or empty.
        exclude_from_parameter_scale: parts of names of parameters that are not scaled; needs parameter names.

    Source: tensorflow/mesh at da90793, mesh_tensorflow/optimize.py.
    """
    is_empty = isinstance(stacked_dim_names, list | tuple) and not stacked_dim_names
    if stacked_dim_names is not None and not is_empty:
        why = "The original clips by the RMS of the whole stack although it scales per index."
        remedy = "factoring=explicit(rows, cols, batch=...) treats a stack as separate parameters."
        raise not_reproduced("stacked_dim_names", "None or empty here", stacked_dim_names, why, remedy)
    scales, factored = check_flags(multiply_by_parameter_scale=multiply_by_parameter_scale, factored=factored)
    min_dim = check_min_dim("min_dim_size_to_factor", min_dim_size_to_factor)
    excluded = () if exclude_from_parameter_scale is None else exclude_from_parameter_scale
    if not isinstance(excluded, list | tuple) or not all(isinstance(part, str) for part in excluded):
        raise refusal("exclude_from_parameter_scale", "a list of parts of names", exclude_from_parameter_scale)
    scaled: bool | per_name = scales
    if excluded and scales:
        scaled = per_name({re.escape(part): False for part in excluded}, default=True)
    return _recipe(
        scaled,
        learning_rate,
        decay_rate,
        beta1=beta1,
        clipping_threshold=clipping_threshold,
        factoring=largest_two(min_dim, ties="first") if factored else no_factoring,
        epsilon1=epsilon1,
        epsilon2=epsilon2,
    )


def _recipe(
    scaled: bool | per_name,
    learning_rate: ScalarOrSchedule | None,
    decay_rate: ScalarOrSchedule | None,
    *,
    beta1: float,
    clipping_threshold: float | None,
    factoring: Rule,
    epsilon1: float,
    epsilon2: float,
) -> Recipe:
    given_lr = check_optional_lr("learning_rate", learning_rate)
    beta2 = decay_rate
    if beta2 is not None:
        bounds: dict[str, Any] = {"at_least": 0, "below": 1, "remedy": "It is beta2 itself, not an exponent."}
        beta2 = check_range("decay_rate", beta2, NO_AVERAGE, check_schedule, **bounds)
    average = check_beta1("beta1", beta1, remedy="0 switches the first moment off.")
    lr: ScalarOrSchedule = 1e-2 if given_lr is None else given_lr
    relative = given_lr is None
    if relative and not isinstance(scaled, per_name) and not scaled:
        lr, relative = product(0.05, relative_step(1e-2)), False
    return Recipe(
        lr=lr,
        relative_step=relative,
        multiply_by_parameter_scale=scaled,
        eps2=check_scale("epsilon2", epsilon2),
        beta2=power_decay() if beta2 is None else beta2,
        factoring=factoring,
        eps1=check_eps1("epsilon1", epsilon1),
        clipping_threshold=check_threshold("clipping_threshold", clipping_threshold, optional=True),
        beta1=None if is_off(average) else average,
        momentum_of="step",
    )
