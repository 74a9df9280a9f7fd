"""Runs the command line in this process, with standard streams of every kind, and judges how it ends."""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from adafactor_parity._cli import main

from .hostile import LONGEST


class Output(io.RawIOBase):
    """What standard output may be: each write fails with the error of that number, if there is one."""

    def __init__(self, error: int) -> None:
        self.error, self.written = error, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.written += bytes(data)
        return len(data)


OUTPUTS: dict[str, tuple[int, str]] = {
    "usual": (0, "utf-8"),
    "ASCII": (0, "ascii"),
    "Windows": (0, "cp1252"),
    "full": (errno.ENOSPC, "utf-8"),
    "closed by its reader": (errno.EPIPE, "utf-8"),
}


def run(argv: list[str], output: str = "usual", stdin: bytes = b"") -> tuple[int, str, str]:
    """(status, standard output, standard error) of one command."""
    error, encoding = OUTPUTS[output]
    raw, complaints = Output(error), io.StringIO()
    out = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding)
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
            try:
                status = main(argv)
            except SystemExit as stopped:  # argparse's own
                status = int(stopped.code or 0)
    finally:
        sys.stdin = before
    raw.error = 0  # so that nothing is left for the interpreter to complain about
    with contextlib.suppress(ValueError):
        out.flush()
    return status, raw.written.decode(encoding), complaints.getvalue()


READER_GONE = 141  # 128 + SIGPIPE, as a shell has it


def judged(argv: list[str], output: str = "usual", stdin: bytes = b"") -> tuple[int, str]:
    """(status, standard output) of a command that has ended in one of the ways in which it may end."""
    status, out, err = run(argv, output, stdin)
    assert status in (0, 1, 2) or (status == READER_GONE and output == "closed by its reader"), (status, err)
    if status == 2:
        last = err.rstrip("\n").splitlines()[-1] if err.strip() else ""
        assert err.startswith(("adafactor", "usage: adafactor")), err
        assert err.startswith("adafactor") or ": error: " in last, err
        assert "Traceback" not in err and "did not expect" not in err, err
        assert len(err) <= 2 * LONGEST + len(" ".join(argv)[:LONGEST]), err[:LONGEST]
        assert not out or output != "usual", out
    else:
        assert err == "", err
    return status, out
