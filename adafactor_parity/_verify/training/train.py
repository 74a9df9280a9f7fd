"""Trains the transformer in JAX and in torch side by side, and records how far losses and weights are apart."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..devices import Devices
from ..stepping.zoo import Array, Arrays, Setting
from .corpus import Corpus, batch, windows
from .model import Config, initial_weights
from .trainer_jax import JaxTrainer
from .trainer_torch import TorchTrainer

BATCH = 16
VALIDATION_WINDOWS = 128
VALIDATIONS = 10  # times in a run, the start and the end included


@dataclass
class Curves:
    """What one framework's run showed; losses are in nats per character."""

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    state_bytes: int = 0
    adam_bytes: int = 0


@dataclass(frozen=True)
class Drift:
    """How far the weights of both frameworks are apart: of the parameter where it is most, at its worst element."""

    parameter: str
    shape: tuple[int, ...]
    element: tuple[int, ...]
    relative: float


@dataclass
class Trained:
    """Both runs in one dtype. Lists have one entry per step, those of validation one per entry of `validated_after`."""

    setting: Setting
    dtype: str
    steps: int
    parameter_bytes: int
    jax: Curves = field(default_factory=Curves)
    torch: Curves = field(default_factory=Curves)
    drift: list[Drift] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validated_after: list[int] = field(default_factory=list)

    def loss_gaps(self) -> list[float]:
        """Distance of the two losses at each step, in nats per character."""
        return [abs(one - other) for one, other in zip(self.jax.losses, self.torch.losses, strict=True)]


def train(
    setting: Setting,
    corpus: Corpus,
    dtype: str,
    steps: int,
    devices: Devices,
    seed: int,
    advance: Callable[[], None],
) -> Trained:
    """Train for `steps` steps in `dtype`, step by step in both frameworks. `advance` is called after every step."""
    config = Config(corpus.vocabulary)
    weights = initial_weights(config, seed)
    ours = JaxTrainer(config, weights, setting.recipe, dtype, devices.jax)
    theirs = TorchTrainer(config, weights, setting.recipe, dtype, devices.torch)
    size = np.dtype(dtype).itemsize
    run = Trained(setting, dtype, steps, sum(value.size * size for value in weights.values()))
    held_out = windows(corpus.held_out, count=VALIDATION_WINDOWS, context=config.context)
    validate_after = {round(share * steps) for share in np.linspace(0, 1, VALIDATIONS)}
    for t in range(steps + 1):
        if t > 0:
            codes = batch(corpus.train, seed=seed, step=t, size=BATCH, context=config.context)
            run.jax.losses.append(ours.step(*codes))
            run.torch.losses.append(theirs.step(*codes))
            run.learning_rate.append(theirs.learning_rate())
            run.drift.append(furthest(ours.weights(), theirs.weights()))
            advance()
        if t in validate_after:
            run.validated_after.append(t)
            run.jax.validation.append(ours.loss(*held_out))
            run.torch.validation.append(theirs.loss(*held_out))
    for curves, trainer in ((run.jax, ours), (run.torch, theirs)):
        curves.state_bytes, curves.adam_bytes = trainer.state_bytes(), trainer.adam_bytes()
    return run


def furthest(jax_weights: Arrays, torch_weights: Arrays) -> Drift:
    """Of the parameter that has drifted most, max |jax - torch| / max |torch|; infinite if a weight is not finite."""
    return max(
        (_drift(name, jax_weights[name], theirs) for name, theirs in torch_weights.items()), key=lambda d: d.relative
    )


def _drift(name: str, ours: Array, theirs: Array) -> Drift:
    gap = np.abs(
        np.subtract(ours, theirs, where=np.isfinite(ours) & np.isfinite(theirs), out=np.full(ours.shape, np.inf))
    )
    element = np.unravel_index(int(np.argmax(gap)), gap.shape)
    relative = float(gap[element])
    if 0.0 < relative < np.inf:
        relative /= float(np.max(np.abs(theirs)))
    return Drift(name, theirs.shape, tuple(int(index) for index in element), relative)
