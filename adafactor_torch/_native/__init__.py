"""The C++ of a step on a CPU, built by the compiler of this machine when it is first asked for, and kept in a cache."""

import ctypes
import functools
import hashlib
import importlib.resources
import os
import platform
import subprocess
import tempfile
import warnings
from pathlib import Path

_SOURCES = ("step.cpp", "plain.h", "parameter.h", "task.h", "formats.h")
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp"),
    # Products and sums stay apart, as in the plain path: a rounded average can tell. The others allow vectors.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None, after a warning, where it cannot be built. `CXX` names the compiler."""
    compiler = os.environ.get("CXX", "c++")
    source = importlib.resources.files(__name__)
    texts = {name: source.joinpath(name).read_text() for name in _SOURCES}
    try:
        # Another machine that shares the cache may have another processor: the compiler says what "native" is.
        asked = [compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull]
        target = subprocess.run(asked, capture_output=True, text=True, check=True).stderr + platform.platform()
        key = hashlib.sha256("\0".join([*texts.values(), *_FLAGS, compiler, target]).encode()).hexdigest()[:16]
        path = _cache() / f"step-{key}.so"
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
    loaded.adafactor_task.restype = loaded.adafactor_room.restype = ctypes.c_int64
    loaded.adafactor_step.restype = None
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


def _build(compiler: str, texts: dict[str, str], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        made = path.with_name(f"{path.name}.{os.getpid()}")
        command = [compiler, *_FLAGS, str(Path(folder) / _SOURCES[0]), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        made.replace(path)  # at once, so that two processes may build side by side
