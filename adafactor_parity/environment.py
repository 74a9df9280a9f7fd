"""The versions and the machine that figures were measured with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("adafactor", "numpy", "jax", "jaxlib", "optax", "torch")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def machine() -> dict[str, str | int]:
    """The operating system, the processor and how many cores of it this process may use."""
    return {"system": platform.platform(), "processor": _processor(), "cores": cores()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
