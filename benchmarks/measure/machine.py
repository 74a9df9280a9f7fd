"""The machine and the versions, by name."""

import os
from importlib.metadata import PackageNotFoundError, version

from adafactor_parity import environment

PEERS = ("transformers", "pytorch_optimizer")


def machine() -> dict[str, str | int]:
    """The operating system, the processor, the cores that this process may use, and the memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {**environment.machine(), "memory": f"{total / 2**30:.0f} GiB"}


def versions(compute: tuple[str, ...], peers: tuple[str, ...] = PEERS) -> dict[str, str]:
    """Versions of Python, of this project, of the packages that compute and of the peers that have their own."""
    known = environment.versions()
    return {name: known[name] for name in ("python", "adafactor", *compute)} | {name: _version(name) for name in peers}


def available_bytes() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: all of it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
