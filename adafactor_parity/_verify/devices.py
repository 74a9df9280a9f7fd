"""Finds the devices of JAX and of torch that `--device` names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import torch

from ..errors import wrong


@dataclass(frozen=True)
class Devices:
    """Where JAX and torch compute. A framework without the wanted device computes on the CPU."""

    jax: jax.Device
    torch: torch.device

    def describe(self) -> dict[str, str]:
        """Both in words."""
        index = self.torch.index or 0
        name = torch.cuda.get_device_name(index) if self.torch.type == "cuda" else str(self.torch)
        return {"jax": f"{self.jax.platform} ({self.jax.device_kind})", "torch": f"{self.torch.type} ({name})"}


def find(name: str, dtypes: Sequence[str]) -> Devices:
    """The devices of that name ("cpu", "cuda", "tpu", ...), of one framework at least.

    Raises UsageError if neither framework has one, or if it cannot compute in one of `dtypes`.
    """
    well_formed = isinstance(name, str) and re.fullmatch(r"[a-z]+(:\d+)?", name, re.ASCII) is not None
    in_jax, in_torch = (_jax(name), _torch(name)) if well_formed else (None, None)
    if in_jax is None and in_torch is None:
        known = ", ".join(sorted(_known()))
        raise wrong("--device", f"one that JAX or torch has here ({known})", name, "Leave it out to use the CPU.")
    if name == "mps" and "float64" in dtypes:
        remedy = "Add --dtype float32, --dtype bfloat16 or --dtype float16."
        raise wrong("--dtype", "narrower than float64 on mps, which has no float64", "float64", remedy)
    return Devices(in_jax or jax.devices("cpu")[0], in_torch or torch.device("cpu"))


def _jax(name: str) -> jax.Device | None:
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except Exception:  # no such platform, no such device of it, or one that does not start
        return None


def _torch(name: str) -> torch.device | None:
    try:
        device = torch.device(name.replace("gpu", "cuda"))  # JAX's name for what torch calls cuda
        torch.zeros(1, device=device).cpu()
    except Exception:  # not known, not built in, not there, or without data as "meta": each has an error of its own
        return None
    return None if device.type == "cpu" and device.index else device  # torch takes any number for its one CPU


def _known() -> set[str]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {"cpu", *({accelerator.type} if accelerator else ()), *(device.platform for device in jax.devices())}
