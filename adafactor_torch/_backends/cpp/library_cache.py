"""Loads and stores compiled libraries in the user's cache folder.

A library is loaded only if the user owns the file and its content has the digest that its name says. The file is opened
once: its owner and its content are checked, and that same open file is loaded, so that nobody can put another one in
its place between the check and the load.
"""

import contextlib
import ctypes
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import compiler

_OPEN_FILES = "/proc/self/fd"  # where those of this process have names, on Linux
_POLL = 0.05  # seconds


def folder() -> Path | None:
    """The folder of this user's libraries; None where there is no home, or no folder can be made in it."""
    try:
        base = os.environ.get("XDG_CACHE_HOME")
        found = Path(base or Path.home() / ".cache") / "adafactor"
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        return None
    return found


def digest(content: bytes) -> str:
    """What is in the name of a library with this content."""
    return hashlib.sha256(content).hexdigest()[:32]


def loaded(cache: Path, key: str, reasons: list[str]) -> ctypes.CDLL | None:
    """A library that is in the cache under a key; None where there is none that can be trusted, with the reasons."""
    try:
        names = sorted(name for name in os.listdir(cache) if name.startswith(f"{key}-") and name.endswith(".so"))
    except OSError as error:
        reasons.append(f"{cache} cannot be read: {error.strerror}")
        return None
    for name in names:
        try:
            return _load(cache / name)
        except compiler.NoLibraryError as error:
            reasons.append(str(error))
    return None


def store(cache: Path, key: str, content: bytes) -> Path:
    """Put a library into the cache, all at once.

    Raises:
        OSError: the cache cannot be written.
    """
    path = cache / f"{key}-{digest(content)}.so"
    handle, temporary = tempfile.mkstemp(prefix=f".{key}-", dir=cache)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def load_content(content: bytes) -> ctypes.CDLL:
    """Load a library that cannot be put into a cache: from a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="adafactor-") as private:
        return _load(store(Path(private), "library", content))


@contextlib.contextmanager
def one_at_a_time(cache: Path, key: str) -> Iterator[None]:
    """Wait, for no longer than a compiler may take, while another process makes the same library."""
    try:
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # not through a link that somebody has put there
        lock = os.open(cache / f"{key}.lock", flags, 0o600)
    except (ImportError, OSError):  # without locks two processes make one library each, and the same
        yield
        return
    try:
        until = time.monotonic() + compiler.LIMIT
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL)
            except OSError:
                break
        yield
    finally:
        os.close(lock)


def _load(path: Path) -> ctypes.CDLL:
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        _check(path, os.fstat(handle))
        with open(handle, "rb", closefd=False) as file:
            if digest(file.read()) != path.stem.rpartition("-")[2]:
                raise compiler.NoLibraryError(f"{path} has another content than was written")
        opened = f"{_OPEN_FILES}/{handle}"
        loaded = ctypes.CDLL(opened if os.path.exists(opened) else str(path))
        handle = None  # never closed: its number is the name by which the loader knows the library
        return loaded
    except OSError as error:
        raise compiler.NoLibraryError(f"{path} could not be loaded: {error}") from None
    finally:
        if handle is not None:
            os.close(handle)


def _check(path: Path, facts: os.stat_result) -> None:
    """Only a library that nobody but this user, or root, can have written."""
    if not stat.S_ISREG(facts.st_mode):
        raise compiler.NoLibraryError(f"{path} is no file")
    if hasattr(os, "geteuid") and facts.st_uid not in (os.geteuid(), 0):
        raise compiler.NoLibraryError(f"{path} is owned by another user (uid {facts.st_uid})")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise compiler.NoLibraryError(f"{path} can be written by other users")
