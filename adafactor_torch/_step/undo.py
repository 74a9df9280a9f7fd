"""Takes back what a failing step has counted and recorded, so that the step has not happened.

Weights and moments cannot be taken back without a copy of them. So everything that can fail is done before the first of
them is written. If something fails after that all the same, for lack of memory for instance, then parameters that have
been written completely stay stepped and counted. Every other parameter is as before, except for the memory of the one
that was being written.
"""

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._task.task import Task
from .state import count, take_back_count

_MISSING = object()


@contextlib.contextmanager
def ordinary_mode() -> Iterator[None]:
    """A step computes in the dtypes of its recipe and makes tensors that later steps may write, whatever is around it.

    Around it may be autocast, which rounds what is stacked, and inference mode.
    """
    with torch._C._DisableAutocast(), torch.inference_mode(False), torch.no_grad():
        yield


class Undo:
    """What one step takes back if it fails."""

    def __init__(self) -> None:
        self._actions: list[tuple[Tensor | None, Callable[[], object]]] = []
        self._counted: list[Task] = []
        self._stepped: list[Task] = []

    def entry(self, mapping: MutableMapping[Any, Any], key: Any, p: Tensor | None = None) -> None:
        """Remember an entry before it is written or made; that of a parameter `p` stays where p has been stepped."""
        before = mapping.get(key, _MISSING)
        contents = dict(before) if isinstance(before, dict) else {}

        def restore() -> None:
            if before is _MISSING:
                mapping.pop(key, None)
                return
            mapping[key] = before
            if isinstance(before, dict):
                before.clear()
                before.update(contents)

        self._actions.append((p, restore))

    def count(self, tasks: list[Task]) -> None:
        """One step more of each."""
        self._counted = [
            task for task in tasks if task.t
        ]  # these are set, not added to: setting back twice is harmless
        count(tasks)
        self._counted = tasks

    def stepped(self, tasks: Sequence[Task]) -> None:
        """They have been written wholly."""
        self._stepped += tasks

    def take_back(self) -> None:
        """Make it as it was before, but for what has been stepped."""
        stepped = {task.param for task in self._stepped}
        take_back_count([task for task in self._counted if task.param not in stepped])
        for p, restore in reversed(self._actions):
            if p is None or p not in stepped:
                restore()
