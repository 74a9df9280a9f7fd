"""The optimizer: a recipe as a chain of pieces."""

import math
from typing import Any, Literal

import jax
import optax

from adafactor_spec import AS_THE_RECIPE_SAYS, REMEDIES, Recipe, given, per_name, recipes, replace
from adafactor_spec.errors import check_flag, refusal, refuse_unknown_keywords
from adafactor_spec.factoring import Rule
from adafactor_spec.schedules import ScalarOrSchedule, check_schedule

from . import _pieces as pieces
from ._moments import momentum, scale_by_factored_rms
from ._optimizer import optimizer
from ._rounding import Rounding
from ._split import Split
from ._step import Piece

_REMEDIES = {
    **{name: remedy.replace("Use lr", "Use learning_rate") for name, remedy in REMEDIES.items()},
    "lr": "Use learning_rate.",
    "maximize": "Put optax.scale(-1.0) before it in a chain.",
}


@refuse_unknown_keywords(_REMEDIES)
def adafactor(
    learning_rate: optax.ScalarOrSchedule = AS_THE_RECIPE_SAYS,
    *,
    recipe: str | Recipe = "paper",
    weight_decay_mask: Any = None,
    rounding: Literal["nearest", "stochastic", "kahan"] = "nearest",
    seed: int | None = None,
    telemetry: bool = False,
    mesh: jax.sharding.Mesh | None = None,
    specs: Any = None,
    relative_step: bool = AS_THE_RECIPE_SAYS,
    multiply_by_parameter_scale: bool | per_name = AS_THE_RECIPE_SAYS,
    eps2: float = AS_THE_RECIPE_SAYS,
    max_parameter_scale: float | None = AS_THE_RECIPE_SAYS,
    beta2: ScalarOrSchedule = AS_THE_RECIPE_SAYS,
    factoring: Rule = AS_THE_RECIPE_SAYS,
    eps1: float | None = AS_THE_RECIPE_SAYS,
    eps1_mode: Literal["add", "floor"] = AS_THE_RECIPE_SAYS,
    amsgrad: bool = AS_THE_RECIPE_SAYS,
    clipping_threshold: float | None = AS_THE_RECIPE_SAYS,
    beta1: ScalarOrSchedule | None = AS_THE_RECIPE_SAYS,
    momentum_of: Literal["grad", "update", "step"] = AS_THE_RECIPE_SAYS,
    debias: bool = AS_THE_RECIPE_SAYS,
    momentum_dtype: Any = AS_THE_RECIPE_SAYS,
    momentum_rounding: Literal["store", "use", "decay"] = AS_THE_RECIPE_SAYS,
    weight_decay: ScalarOrSchedule | per_name | None = AS_THE_RECIPE_SAYS,
    weight_decay_by: Literal["step", "lr", "one", "grad"] | float = AS_THE_RECIPE_SAYS,
    decay_before_scale: bool = AS_THE_RECIPE_SAYS,
    state_dtype: Literal["param"] | None = AS_THE_RECIPE_SAYS,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor, any published one, as an optax transformation.

    Args:
        learning_rate: the recipe's `lr`: a number, or a schedule or function of t with **t = 1 at the first update**,
            as everywhere in this project. optax's own schedules count from 0: wrap them,
            `adafactor_spec.schedules.zero_based(optax.cosine_decay_schedule(...))`. Under `optax.inject_hyperparams`,
            which calls every callable argument with a count from 0, put schedules into the recipe.
        recipe: a name of `adafactor_spec.recipes.NAMES`, or a Recipe.
        weight_decay_mask: the parameters that decay: a tree of bools, a prefix of one, or a function of the parameters.
        rounding: how the new value of a 16-bit parameter is rounded: to "nearest"; "stochastic", to one of its two
            neighbours, the nearer the likelier, by the bits that torch's optimizer and the oracle take for a parameter
            at the same position; "kahan", to nearest, and what that cuts off is kept in bfloat16 for the next step.
        seed: of those bits, from 0 to 2^32 - 1. None is 0, and no hyperparameter for `optax.inject_hyperparams`.
        telemetry: whether the state has `telemetry`: `step_size`, `update_rms`, `clip_factor`, `parameter_rms`.
        mesh: sum over devices twice per axis of this mesh, for all parameters together. None leaves sums to XLA, which
            makes one or more for each parameter.
        specs: with a mesh, the shardings of the parameters: a tree of PartitionSpecs or a prefix of one. None asks the
            parameters, which say so on an Explicit mesh.
        relative_step, multiply_by_parameter_scale, eps2, max_parameter_scale, beta2, factoring, eps1, eps1_mode,
            amsgrad, clipping_threshold, beta1, momentum_of, debias, momentum_dtype, momentum_rounding, weight_decay,
            weight_decay_by, decay_before_scale, state_dtype: override the recipe's field of that name, which
            `adafactor_spec.Recipe` describes. None means off.

    Returns:
        A transformation whose `update` needs the parameters. Its state has one `count` of finished steps (int32) and,
        as trees like the parameters with None where a parameter has no such thing, `v_row`, `v_col`, `v`, `v_max`, `m`.
        For 16-bit parameters it must be the last of a chain: what comes out is then the difference to the weight that
        `optax.apply_updates` shall land on, rounded once, and 0 where that is the old weight. It lands there exactly
        with float32 gradients; with 16-bit ones, in whose dtype the update is, where the weight changes by up to half.

    Raises:
        ValueError: a value is out of range, or two contradict each other; the message names the remedy.
        TypeError: an unknown keyword; the message names the right one.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from adafactor_jax import adafactor
        >>> tx = optax.chain(optax.clip_by_global_norm(1.0), adafactor(1e-2))
        >>> params = {"w": jnp.ones((4, 3))}
        >>> updates, state = tx.update({"w": jnp.ones((4, 3))}, tx.init(params), params)
        >>> params = optax.apply_updates(params, updates)

    Source: arXiv 1804.04235; a recipe names its own.
    """
    fields = given(
        lr=learning_rate,
        relative_step=relative_step,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        eps2=eps2,
        max_parameter_scale=max_parameter_scale,
        beta2=beta2,
        factoring=factoring,
        eps1=eps1,
        eps1_mode=eps1_mode,
        amsgrad=amsgrad,
        clipping_threshold=clipping_threshold,
        beta1=beta1,
        momentum_of=momentum_of,
        debias=debias,
        momentum_dtype=momentum_dtype,
        momentum_rounding=momentum_rounding,
        weight_decay=weight_decay,
        weight_decay_by=weight_decay_by,
        decay_before_scale=decay_before_scale,
        state_dtype=state_dtype,
    )
    base = recipes.resolve(recipe)
    if "lr" in fields or base.lr is None:
        must_be_given = "" if "lr" in fields else "This recipe has no default: give one."
        check_schedule("learning_rate", fields.get("lr"), at_least=0, remedy=must_be_given)
    telemetry = check_flag("telemetry", telemetry)
    if specs is not None and mesh is None:
        raise refusal("specs", "None without a mesh", specs, "Give the mesh, too: mesh=..., specs=...")
    chosen = replace(base, **fields)
    chain = optax.chain(*chain_of(chosen, weight_decay_mask, telemetry=telemetry))
    scales = chosen.multiply_by_parameter_scale is not False
    split = None if mesh is None else Split(mesh, specs)
    return optimizer(chain, chosen.factoring, Rounding(rounding, 0 if seed is None else seed), telemetry, scales, split)


def chain_of(recipe: Recipe, mask: Any = None, *, telemetry: bool = False) -> list[Piece]:
    """The pieces of a recipe in the order of a step, each with its reason."""
    r = recipe
    average = momentum(
        0.0 if r.beta1 is None else r.beta1,
        debias=r.debias,
        momentum_dtype=r.momentum_dtype,
        momentum_rounding=r.momentum_rounding,
        state_dtype=r.state_dtype,
    )
    averages = None if r.beta1 is None else r.momentum_of
    decoupled = r.decays and r.weight_decay_by != "grad"
    scale: dict[str, Any] = {"eps2": r.eps2, "max_parameter_scale": r.max_parameter_scale, "factoring": r.factoring}
    scales = r.multiply_by_parameter_scale
    tx = []
    if r.decays and not decoupled:  # L2: the decay is a part of the gradient and goes through everything below
        tx.append(pieces.add_decayed_weights(r.decay, mask=mask))
    # Phases 1 and 2 of a step, statistics and norm, are in this piece ...
    tx.append(  # algorithm 4: divide by the root of the factored second moment of the raw gradient
        scale_by_factored_rms(
            r.beta2,
            factoring=r.factoring,
            eps1=r.eps1,
            eps1_mode=r.eps1_mode,
            amsgrad=r.amsgrad,
            state_dtype=r.state_dtype,
            numerator=average if averages == "grad" else None,
        )
    )
    # ... and the third, apply, is all that follows.
    if r.clipping_threshold is not None or telemetry:  # section 6: a stale second moment makes an update too large
        threshold = math.inf if r.clipping_threshold is None else r.clipping_threshold
        tx.append(pieces.clip_by_block_rms(threshold, factoring=r.factoring))
    if averages == "update":
        tx.append(average)
    if scales:  # section 8: steps relative to the size of the parameter
        before = r.decay if decoupled and r.decay_before_scale else 0.0
        tx.append(
            pieces.scale_by_parameter_scale(r.rho, multiply_by_parameter_scale=scales, **scale, decay=before, mask=mask)
        )
    else:
        tx.append(pieces.scale_by_step_size(r.rho))
    if averages == "step":
        tx.append(average)
    if decoupled:  # after momentum and clipping: it is not a gradient
        by_step = r.weight_decay_by == "step"
        tx.append(
            pieces.add_decayed_weights(
                r.decay,
                step=r.rho if by_step else 1.0,
                multiply_by_parameter_scale=by_step and scales,
                **scale,
                mask=mask,
            )
        )
    return [*tx, pieces.scale_by_step_size(-1.0)]  # apply_updates adds
