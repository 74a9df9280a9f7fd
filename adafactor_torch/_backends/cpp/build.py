"""Builds the C++ library with the compiler of this machine when it is first needed, and keeps it in a cache.

Processes that need it at the same time wait for one of them to build it. If there is no library in the end, steps are
eager, and a warning says why.
"""

import ctypes
import functools
import hashlib
import importlib.resources
import platform
import warnings

from . import compiler
from . import library_cache as cache
from .record import TASK

_HEADERS = ("phases.h", "dense_matrix.h", "writes.h", "vectors.h", "parameter.h", "parallel.h", "task.h", "formats.h")
_FUNCTIONS = {"whole": "adafactor_step", "shard": "adafactor_phase"}
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
warned: set[str] = set()  # units


def library(unit: str = "whole") -> ctypes.CDLL | None:
    """The library of whole parameters, "whole", or of parts of them, "shard"; None, after one warning, without one.

    `CXX` names the compiler. Where warnings are errors, every call raises the warning.
    """
    loaded, reason = found(unit)
    if loaded is None and unit not in warned:
        warnings.warn(
            f"fused=True steps eagerly: there are no CPU kernels of adafactor. {reason}. "
            "Install a C++17 compiler or name one in CXX; fused=False is silent.",
            stacklevel=2,
        )
        warned.add(unit)
    return loaded


@functools.cache
def found(unit: str) -> tuple[ctypes.CDLL | None, str]:
    """A library, looked for and built once in a process; or None and why there is none."""
    reasons: list[str] = []
    try:
        return _ready(_found(unit, reasons), unit), ""
    except (compiler.NoLibraryError, OSError) as error:
        return None, "; ".join([*reasons, str(error)])


def _found(unit: str, reasons: list[str]) -> ctypes.CDLL:
    using, texts, folder = compiler.command(), _texts(unit), cache.folder()
    key = _key(unit, using, texts)
    if folder is None:
        return cache.load_content(compiler.compiled(using, unit, texts))
    loaded = cache.loaded(folder, key, [])
    if loaded is not None:
        return loaded
    with cache.one_at_a_time(folder, key):
        loaded = cache.loaded(folder, key, reasons)  # another process may have made it meanwhile
        if loaded is not None:
            return loaded
        content = compiler.compiled(using, unit, texts)
        try:
            stored = cache.store(folder, key, content)
        except OSError as error:
            reasons.append(f"{folder} cannot be written: {error.strerror}")
            return cache.load_content(content)
        loaded = cache.loaded(folder, key, reasons)
        if loaded is None:  # what cannot be loaded is not kept
            stored.unlink(missing_ok=True)
            return cache.load_content(content)
        return loaded


def _texts(unit: str) -> dict[str, str]:
    source = importlib.resources.files(__package__) / "src"
    return {name: source.joinpath(name).read_text(encoding="utf-8") for name in (f"{unit}.cpp", *_HEADERS)}


def _key(unit: str, using: list[str], texts: dict[str, str]) -> str:
    """What a library is kept under: another source, compiler or processor makes another one."""
    asked = "\0".join([*texts.values(), *compiler.FLAGS, *using, platform.platform()]).encode()
    return f"{unit}-{hashlib.sha256(asked + compiler.target(using)).hexdigest()[:16]}"


def _ready(loaded: ctypes.CDLL, unit: str) -> ctypes.CDLL:
    """The library, with what it is to know of the process and the types of what it returns."""
    try:
        getattr(loaded, _FUNCTIONS[unit])
        loaded.adafactor_task.restype = loaded.adafactor_room.restype = ctypes.c_int64
        size = loaded.adafactor_task()
        threads = loaded.adafactor_threads
    except AttributeError as error:
        raise compiler.NoLibraryError(f"what has been compiled is not adafactor's: {error}") from None
    if size != TASK.itemsize:
        raise compiler.NoLibraryError(f"what has been compiled has tasks of {size} bytes and not {TASK.itemsize}")
    try:
        process = ctypes.CDLL(None)
    except (OSError, TypeError):  # where a process cannot look into itself
        return loaded
    if all(hasattr(process, name) for name in _OPENMP):
        threads(*(ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in _OPENMP))
    return loaded
