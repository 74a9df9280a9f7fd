"""Processes joined by gloo, for tests of what runs on several devices: no port of ours, only files and pipes."""

import contextlib
import datetime
import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
# Where a rank has failed, the other waits in a collective: gloo gives that up after so many seconds, and it answers.
PATIENCE = 60


class Failed(AssertionError):
    """A rank raised; the message has its traceback."""


class Ranks:
    """The processes. Calling it runs a function of a test module, with picklable arguments, in each of them."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes, self._calls = pipes, 0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned, by rank. It is called as `function(*arguments)`.

        Raises:
            Failed: it raised in a rank, or gave no answer.
        """
        self._calls += 1
        for pipe in self._pipes:
            pipe.send((self._calls, function, arguments))
        answers = [_answer(pipe, self._calls) for pipe in self._pipes]
        failed = [f"rank {rank}: {answer}" for rank, (done, answer) in enumerate(answers) if not done]
        if failed:
            raise Failed("\n".join(failed))
        return [answer for _, answer in answers]


def two_processes(folder: Path) -> contextlib.AbstractContextManager[Ranks]:
    """Starts both, which find each other by a file in `folder`, and ends them."""
    return processes(folder, WORLD)


@contextlib.contextmanager
def processes(folder: Path, world: int) -> Iterator[Ranks]:
    """Starts `world` processes, which find each other by a file in `folder`, and ends them."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(world)]
    store = str(folder / "store")
    ranks = [context.Process(target=_serve, args=(rank, world, store, there)) for rank, (_, there) in enumerate(ends)]
    for process, (_, there) in zip(ranks, ends, strict=True):
        process.start()
        there.close()  # so that the end of the process is the end of the pipe
    try:
        yield Ranks([here for here, _ in ends])
    finally:
        for here, _ in ends:
            with contextlib.suppress(OSError):  # of a rank that is gone
                here.send(None)
        for process in ranks:
            process.join(PATIENCE)
            process.kill()
            process.join()


def _answer(pipe: Connection, call: int) -> tuple[bool, Any]:
    """What a rank answers to this call; late answers to earlier calls, which were given up, are passed over."""
    try:
        while pipe.poll(2 * PATIENCE):
            number, done, answer = pipe.recv()
            if number == call:
                return done, answer
    except EOFError:
        return False, "the process is gone"
    return False, "no answer"


def _serve(rank: int, world: int, store: str, pipe: Connection) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", f"file://{store}", timeout=patience, world_size=world, rank=rank)
    while (task := pipe.recv()) is not None:
        call, function, arguments = task
        try:
            answer = call, True, function(*arguments)
        except BaseException:  # as what pytest.raises raises when nothing was raised
            answer = call, False, traceback.format_exc()
        pipe.send(answer)
    dist.destroy_process_group()
