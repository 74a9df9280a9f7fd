"""The C++ of a step on a CPU, built by the compiler of this machine when it is first asked for, and kept in a cache.

Processes that ask at the same time, as those do that share parameters, wait for one of them to build it.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.resources
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

_HEADERS = ("phases.h", "plain.h", "writes.h", "vectors.h", "parameter.h", "parallel.h", "task.h", "formats.h")
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Products and sums stay apart, as in the plain path: a rounded average can tell. The others allow vectors.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


@functools.cache
def library(unit: str = "step") -> ctypes.CDLL | None:
    """The library of whole parameters, "step", or that of parts, "part"; None, after a warning, where there is none.

    `CXX` names the compiler.
    """
    compiler = os.environ.get("CXX", "c++")
    source = importlib.resources.files(__name__)
    texts = {name: source.joinpath(name).read_text() for name in (f"{unit}.cpp", *_HEADERS)}
    try:
        # Another machine that shares the cache may have another processor: the compiler says what "native" is.
        asked = [compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull]
        target = subprocess.run(asked, capture_output=True, text=True, check=True).stderr + platform.platform()
        key = hashlib.sha256("\0".join([*texts.values(), *_FLAGS, compiler, target]).encode()).hexdigest()[:16]
        path = _cache() / f"{unit}-{key}.so"
        with contextlib.nullcontext() if path.exists() else _one_at_a_time(path):
            if not path.exists():
                _build(compiler, texts, path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"fused=True steps eagerly: {compiler} could not build adafactor's CPU kernels ({said.strip()[-500:]}). "
            "Install a C++17 compiler with OpenMP or name one in CXX; fused=False is silent.",
            stacklevel=2,
        )
        return None
    own = ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if all(hasattr(own, name) for name in names):
        loaded.adafactor_threads(*(ctypes.cast(getattr(own, name), ctypes.c_void_p) for name in names))
    loaded.adafactor_task.restype = loaded.adafactor_room.restype = ctypes.c_int64
    return loaded


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "adafactor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="adafactor-"))


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait while another process of this machine is in here for the same path; where files have no locks, do not."""
    try:
        import fcntl

        lock = path.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except (ImportError, OSError):
        yield
        return
    with lock:
        yield


def _build(compiler: str, texts: dict[str, str], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        made = path.with_name(f"{path.name}.{os.getpid()}")
        (unit,) = Path(folder).glob("*.cpp")
        command = [compiler, *_FLAGS, str(unit), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        made.replace(path)  # at once, so that two processes may build side by side
