"""Trains the character transformer in torch, with its own backward pass and optimizer."""

import torch

import adafactor_torch
from adafactor_spec import Recipe

from ..stepping.runners import as_numpy
from ..stepping.zoo import Arrays
from .corpus import Codes
from .model import Config, Weights
from .model_torch import Transformer


class TorchTrainer:
    """`step` trains on one batch; the weights are read as float64 NumPy arrays by name."""

    def __init__(self, config: Config, weights: Weights, recipe: Recipe, dtype: str, device: torch.device) -> None:
        self._device = device
        self._model = Transformer(config, weights, dtype=getattr(torch, dtype), device=device)
        self._optimizer = adafactor_torch.Adafactor(self._model.named_parameters(), recipe=recipe)

    def step(self, inputs: Codes, targets: Codes) -> float:
        """One update; returns the loss before it, in nats per character."""
        self._optimizer.zero_grad()
        value = self._model.loss(*self._put(inputs, targets))
        value.backward()
        self._optimizer.step()
        return value.item()

    @torch.no_grad()
    def loss(self, inputs: Codes, targets: Codes) -> float:
        """The loss on a batch that is not learned from."""
        return self._model.loss(*self._put(inputs, targets)).item()

    def weights(self) -> Arrays:
        """The weights now, by name."""
        return {name: as_numpy(value) for name, value in self._model.named_parameters()}

    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state_bytes(self) -> int:
        """Bytes of the tensors that the optimizer keeps from step to step."""
        return _bytes(self._optimizer)

    def adam_bytes(self) -> int:
        """Bytes that `torch.optim.Adam` would keep for the same weights."""
        weights = [torch.nn.Parameter(value.detach().clone()) for value in self._model.parameters()]
        adam = torch.optim.Adam(weights)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        adam.step()
        return _bytes(adam)

    def _put(self, *codes: Codes) -> list[torch.Tensor]:
        return [torch.from_numpy(value).to(device=self._device, dtype=torch.long) for value in codes]


def _bytes(optimizer: torch.optim.Optimizer) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in kept if isinstance(value, torch.Tensor))
