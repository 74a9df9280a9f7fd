"""Adafactor for optax: `adafactor`, a chain of the public pieces below, each usable alone.

    import optax
    from adafactor_jax import adafactor

    tx = optax.chain(optax.clip_by_global_norm(1.0), adafactor(1e-2))

Learning rates, decays and factoring rules are values of `adafactor_spec.schedules` and `adafactor_spec.factoring`.
"""

from . import _moments, _pieces
from ._adafactor import adafactor
from ._moments import FactoredState, MomentumState
from ._optimizer import AdafactorState
from ._shardings import state_shardings
from ._standalone import CountedState, standalone
from ._step import Telemetry

scale_by_factored_rms = standalone(_moments.scale_by_factored_rms)
clip_by_block_rms = standalone(_pieces.clip_by_block_rms)
scale_by_step_size = standalone(_pieces.scale_by_step_size)
scale_by_parameter_scale = standalone(_pieces.scale_by_parameter_scale)
momentum = standalone(_moments.momentum)
add_decayed_weights = standalone(_pieces.add_decayed_weights)

__all__ = [
    "AdafactorState",
    "CountedState",
    "FactoredState",
    "MomentumState",
    "Telemetry",
    "adafactor",
    "add_decayed_weights",
    "clip_by_block_rms",
    "momentum",
    "scale_by_factored_rms",
    "scale_by_parameter_scale",
    "scale_by_step_size",
    "state_shardings",
]
