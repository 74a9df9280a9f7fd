"""Processes joined by gloo over the loopback interface, which find each other by a file."""

import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

Found = TypeVar("Found")


def in_all(count: int, threads: int, patience: int, function: Callable[..., Found], *arguments: object) -> list[Found]:
    """What `function(*arguments)` returns in each of `count` processes, of so many threads.

    Raises:
        RuntimeError: it raised in one of them, whose traceback is the message, or a process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        joined = str(Path(folder) / "store"), count, threads, patience
        processes = [
            context.Process(target=_serve, args=(there, rank, *joined, function, arguments), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process, (_, there) in zip(processes, pipes, strict=True):
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
        try:
            return _answers([here for here, _ in pipes])
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _answers(pipes: list[Connection]) -> list[Found]:
    found: dict[int, Found] = {}
    while len(found) < len(pipes):
        for rank, pipe in enumerate(pipes):
            if rank not in found and pipe in wait([x for i, x in enumerate(pipes) if i not in found]):
                try:
                    done, answer = pipe.recv()
                except EOFError:
                    done, answer = False, "it ended without an answer"
                if not done:
                    raise RuntimeError(f"Process {rank} of the benchmark failed: {answer}")
                found[rank] = answer
    return [found[rank] for rank in range(len(pipes))]


def _serve(
    pipe: Connection,
    rank: int,
    store: str,
    count: int,
    threads: int,
    patience: int,
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(threads)
    try:
        limit = datetime.timedelta(seconds=patience)
        dist.init_process_group("gloo", f"file://{store}", timeout=limit, world_size=count, rank=rank)
        pipe.send((True, function(*arguments)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
