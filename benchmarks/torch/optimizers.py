"""The optimizers of torch that are compared: a table. One that cannot be built or stepped is reported, not fatal."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adafactor_torch import Adafactor

Build = Callable[[list[Tensor], bool], torch.optim.Optimizer]

BETA1 = 0.9
BASELINE = "adamw-fused"
# The time that Inductor takes for an operator that writes tensors grows with the square of their number: on two cores
# 3 s for 100 tensors, 8 s for 200, 24 s for 400.
MOST_COMPILED = 500


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer. `build` makes it of the parameters, with momentum or without.

    `full_states` is how many numbers its state has per parameter beside a momentum: what the memory is asked for.
    """

    label: str
    build: Build
    momentum: tuple[bool, ...] = (False, True)
    full_states: int = 0
    ours: bool = False
    compiled_step: bool = False

    def why_not(self, momentum: bool, tensors: int) -> str | None:
        """The reason for which this one has no part in a case."""
        if momentum not in self.momentum:
            return "has no momentum"
        if self.compiled_step and tensors > MOST_COMPILED:
            return f"takes torch minutes to compile for {tensors:,} tensors"
        return None


def _sgd(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-3, momentum=BETA1 if momentum else 0.0, foreach=True)


def _adamw(**path: bool) -> Build:
    # Adam has no form without a first moment, so it is the same optimizer in both cases.
    return lambda params, momentum: torch.optim.AdamW(params, lr=1e-3, betas=(BETA1, 0.999), **path)


def _torch(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(params)


def _transformers(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
    made: Any = importlib.import_module("transformers").Adafactor(
        params,
        lr=None,
        scale_parameter=True,
        relative_step=True,
        warmup_init=False,
        beta1=BETA1 if momentum else None,
    )
    return made


def _pytorch_optimizer(params: list[Tensor], momentum: bool) -> torch.optim.Optimizer:
    made: Any = importlib.import_module("pytorch_optimizer").AdaFactor(
        params,
        lr=None,
        scale_parameter=True,
        relative_step=True,
        warmup_init=False,
        betas=(BETA1 if momentum else None, 0.999),
    )
    return made


def _ours(foreach: bool | None = None, fused: bool | None = None) -> Build:
    return lambda params, momentum: Adafactor(params, beta1=BETA1 if momentum else None, foreach=foreach, fused=fused)


ENTRIES: dict[str, Entry] = {
    "sgd-foreach": Entry(label="torch SGD foreach", build=_sgd),
    BASELINE: Entry(label="torch AdamW fused", build=_adamw(fused=True), full_states=2),
    "adamw-foreach": Entry(label="torch AdamW foreach", build=_adamw(foreach=True), full_states=2),
    "torch-adafactor": Entry(label="torch Adafactor", build=_torch, momentum=(False,)),
    "transformers-adafactor": Entry(label="transformers Adafactor", build=_transformers),
    "pytorch-optimizer-adafactor": Entry(label="pytorch_optimizer AdaFactor", build=_pytorch_optimizer),
    "ours-plain": Entry(label="ours, plain", build=_ours(foreach=False, fused=False), ours=True),
    "ours-eager": Entry(label="ours, eager", build=_ours(foreach=True), ours=True),
    "ours-fused": Entry(label="ours, fused", build=_ours(fused=True), ours=True),
    "ours-compiled-step": Entry(label="ours, compiled step", build=_ours(), ours=True, compiled_step=True),
}
