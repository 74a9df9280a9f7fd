"""Writes to standard output, to standard error, and to files, each of which is replaced as a whole or not at all."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from .errors import wrong


class ReaderGone(Exception):
    """Whoever reads standard output, `head` for example, has closed it and wants no more."""


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Everything that a command prints to standard output is printed within this, and has arrived when it ends.

    Raises:
        UsageError: standard output is closed or cannot take what is printed. The message says why.
        ReaderGone: the reader of a pipe has closed it.
    """
    if sys.stdout is None:  # so Python says that it was started with a closed one
        raise wrong("standard output", "open", "a closed one", "Send it to a file, or to /dev/null.")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        raise ReaderGone from None
    except OSError as error:
        _discard(sys.stdout)
        raise wrong("standard output", "writable", error.strerror, "Send it elsewhere.") from None
    except UnicodeEncodeError as error:
        character, encoding = error.object[error.start], sys.stdout.encoding
        must, remedy = f"in an encoding that has {character!a}", "Set PYTHONIOENCODING=utf-8."
        raise wrong("standard output", must, encoding, remedy) from None


def complain(line: str) -> None:
    """Print a line to standard error. Where that is closed or full there is nobody to tell."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def printable(path: Path) -> str:
    """A path in the characters that standard output has: a file name may hold any bytes."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files, by name, into an existing folder: all are complete before the first takes the place of an old one.

    Raises:
        OSError: that is not possible.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
        for name, content in contents.items():
            Path(new, name).write_bytes(content)
        for name in contents:
            os.replace(Path(new, name), folder / name)


def _discard(stream: IO[str]) -> None:
    # What is still in the stream's buffer would be written again when Python ends, and fail again.
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())  # which a stream without a file, as in a test, does not have
