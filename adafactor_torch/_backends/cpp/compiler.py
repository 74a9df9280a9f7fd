"""Runs the C++ compiler of this machine with a time limit, and says in words why it has made nothing."""

import os
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Products and sums stay apart, as in the plain path: a rounded average can tell. The others allow vectors.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LIMIT = 600.0  # seconds; a busy machine takes some minutes
_SHOWN = 500  # characters of what a compiler says


class NoLibraryError(Exception):
    """There is no compiled library, and why."""


def command() -> list[str]:
    """The compiler and its own options, from CXX."""
    given = os.environ.get("CXX") or "c++"
    try:
        return shlex.split(given) or ["c++"]
    except ValueError as error:
        raise NoLibraryError(f"CXX={given!r} is no command: {error}") from None


def target(compiler: list[str]) -> bytes:
    """What the compiler takes this machine for: processors that share a cache may differ, and so may compilers."""
    return _run([*compiler, "-march=native", "-E", "-v", "-x", "c++", os.devnull])


def compiled(compiler: list[str], unit: str, texts: dict[str, str]) -> bytes:
    """The library made of `unit`.cpp among these files."""
    with tempfile.TemporaryDirectory(prefix="adafactor-") as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        made = Path(folder) / f"{unit}.so"
        _run([*compiler, *FLAGS, str(Path(folder) / f"{unit}.cpp"), "-o", str(made)])
        content = made.read_bytes() if made.is_file() else b""
    if not content:
        raise NoLibraryError(f"{shlex.join(compiler)} has ended well and written no library")
    return content


def _run(arguments: list[str]) -> bytes:
    """What a command writes to standard error, once it has ended well.

    Its output goes to a file and not to a pipe, which processes that outlive it would hold open.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise NoLibraryError(f"{arguments[0]} could not be run: {error}") from None
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise NoLibraryError(f"{arguments[0]} had not ended after {LIMIT:g} seconds") from None
        finally:
            _end(process)
        said.seek(0)
        content = said.read()
    if status:
        words = content.decode("utf-8", "replace").strip()
        raise NoLibraryError(f"{arguments[0]} ended with status {status}: {words[-_SHOWN:] or 'it said nothing'}")
    return content


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, if it runs, and those that it has started: a compiler is a driver that starts others."""
    if process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, OSError):  # where there are no process groups
        process.kill()
    process.wait()
