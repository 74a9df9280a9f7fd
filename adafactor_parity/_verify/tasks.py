"""Runs the parts of `verify` side by side, on at most `MOST_THREADS` processor cores, and ends all when one fails."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import torch

from .. import environment
from ..progress import Progress

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Most of the time goes into XLA's compilations, which release Python's lock. More threads than this would gain little,
# and each compilation takes memory.
MOST_THREADS = 4


class Stopped(Exception):
    """Raised in a task that goes on while another one has failed, or the user has interrupted the run."""


class Tasks:
    """Context manager whose tasks run in threads. When it ends with an error, tasks that run stop at their next step.

    Inside it, torch uses one thread for each task: its own threads would wait for each other for longer than they
    compute, because tensors are small and every core has a task.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stopped = progress, threading.Event()
        self._error: BaseException | None = None  # of the task that failed first
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(min(environment.cores(), MOST_THREADS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopped.set()
        self._pool.shutdown(cancel_futures=error is not None)
        torch.set_num_threads(self._threads)

    def start(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> "Future[Result]":
        """Run a function as soon as a core is free; tasks start in the order of these calls."""

        def run() -> Result:
            try:
                return function(*args, **kwargs)
            except Stopped:
                raise
            except BaseException as error:
                self._error = self._error or error
                self._stopped.set()
                raise

        return self._pool.submit(run)

    def result(self, task: "Future[Result]") -> Result:
        """What a task has returned, when it is done.

        Raises:
            BaseException: what the first task that failed has raised, whichever that is.
        """
        try:
            return task.result()
        except Stopped:
            if self._error is None:
                raise
            raise self._error from None

    def advance(self) -> None:
        """What a task calls after each of its steps."""
        if self._stopped.is_set():
            raise Stopped
        self._progress.advance()
