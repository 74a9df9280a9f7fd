"""Keeps the device tables of sets of parameters from one step to the next, and those that a CUDA graph uses."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..._task.task import Task

SETS = 4  # of parameters that begin with the same one, and whose tables are remembered
CAPTURED = "Run one step outside first, and keep the gradients where they are: zero_grad(set_to_none=False)."
MOVED = f"A captured step needs the tensors of the step before it. {CAPTURED}"

_known = WeakIdKeyDictionary()  # first parameter: {signature: groups}; the tables go when the parameter goes
_captured = WeakIdKeyDictionary()  # the same of those that a CUDA graph holds


def cached_tables(
    first: Tensor, tasks: Sequence[Task], signature: Any, capturing: bool, make: Callable[[], Any]
) -> Any:
    """The tables of a set of parameters, made when it is first seen and again when its signature is another.

    They are known by the `first` of the parameters, and go when that goes.
    """
    known: OrderedDict[Any, tuple[Any, list[Any]]] = _known.setdefault(first, OrderedDict())
    if capturing:
        # A graph holds the tables themselves: they are its own from now on, and no other step writes them.
        own = _captured.setdefault(first, {})
        if signature not in own:
            if signature not in known:
                raise RuntimeError(MOVED)
            own[signature] = known.pop(signature)
        return own[signature][0]
    if signature not in known:
        configs = [task.config for task in tasks]  # alive, for they are known by identity
        known[signature] = make(), configs
        while len(known) > SETS:
            known.popitem(last=False)
    known.move_to_end(signature)
    return known[signature][0]
