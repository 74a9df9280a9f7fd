"""Giving up on what takes too long. Compiling a step for thousands of tensors can take hours."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class _TooLong(BaseException):
    """Not an Exception: a compiler that takes every Exception for a graph it cannot compile would go on."""


@contextlib.contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer. With None, and in other threads than the main one, it may."""
    alarms = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if seconds is None or not alarms:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise TimeoutError(f"The first two steps took longer than {seconds:g} s. --patience gives more.") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
