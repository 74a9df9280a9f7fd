"""Gradient release: each parameter is stepped within the backward pass, and its gradient freed at once.

FSDP2 reduces the gradients of a module's parameters together into one buffer, of which each gradient is a view, and
then calls their hooks one after the other. Freeing a single view would free no memory. So these parameters are stepped
together when the last gradient is there, with one set of sums over processes for all of them.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from adafactor_spec.errors import refusal

from ._clip_grad_guard import refuse_clipping

# Weak, so that nothing outlives its optimizer, whose step hooks are what holds a release.
_ALIVE: "weakref.WeakSet[Release]" = weakref.WeakSet()


class SteppedInBackward(Protocol):
    """What `release_gradients` needs of an optimizer; `Adafactor` has it."""

    param_groups: list[dict[str, Any]]

    def step_param(self, p: Tensor) -> None:
        """One step of one parameter."""

    def _step_params(self, params: Sequence[Tensor]) -> None:
        """One step of several parameters, which share their sums over processes."""

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call the hook before every `step`."""

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call the hook after every `step`."""


class Release:
    """What `release_gradients` has set up; `remove()`, or the end of a `with` block, undoes it."""

    def __init__(
        self, tensors: dict[Tensor, str], together: dict[Tensor, Sequence[Tensor]], optimizer: SteppedInBackward
    ) -> None:
        self._tensors, self._together, self._optimizer = tensors, together, optimizer
        self._seen: set[Tensor] = set()  # with a gradient since the last `optimizer.step()`
        self._stepped: set[Tensor] = set()  # of these, until the next one is done
        # A parameter that its own hook held would never be collected: the cycle passes through C++.
        step = weakref.WeakMethod(self._step)

        def hook(p: Tensor) -> None:
            living = step()
            if living is not None:
                living(p)

        hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *(p.register_post_accumulate_grad_hook(hook) for p in tensors),
        ]
        self._end = weakref.finalize(self, _end, hooks)
        self._end.atexit = False
        _ALIVE.add(self)
        _settle()

    def remove(self) -> None:
        """Gradients stay for `optimizer.step()` again. A second call does nothing."""
        _ALIVE.discard(self)
        self._end()

    def __enter__(self) -> "Release":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def holds(self, p: Tensor) -> bool:
        """Whether the gradient of a tensor is released by this one."""
        return p in self._tensors

    def is_of(self, optimizer: object) -> bool:
        """Whether this one steps parameters of an optimizer."""
        return self._optimizer is optimizer

    @property
    def stepped(self) -> set[Tensor]:
        """The parameters that a backward pass has stepped since the last `optimizer.step()`."""
        return self._stepped

    def _step(self, p: Tensor) -> None:
        if p in self._seen:
            p.grad = None  # or the next step() would take a part of a sum for the whole
            raise RuntimeError(
                f"{self._tensors[p]} got a second gradient before optimizer.step(). With released gradients every "
                "backward pass is a step, and the first gradient has been applied and freed: there is nothing to "
                "accumulate onto. Use one backward pass over a larger batch, or remove() the release and accumulate. "
                "Where nothing is to accumulate, call optimizer.step() once after each backward pass, as without "
                "release; where activation checkpointing splits a shared parameter, use_reentrant=False."
            )
        self._seen.add(p)
        together = self._together.get(p, (p,))
        if any(other.requires_grad and other not in self._seen for other in together):
            return
        try:
            self._optimizer._step_params([other for other in together if other.grad is not None])
        except BaseException:
            self._seen.difference_update(together)  # none of them has been stepped: another pass may bring them again
            raise
        for other in together:
            other.grad = None
        self._stepped.update(together)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if getattr(optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "GradScaler does not work with released gradients: the backward pass has applied them while they were "
                "still scaled and not known to be finite. Train in bfloat16, which needs no scaler, or without release."
            )
        self._seen.clear()  # here too, since a closure may fail after its backward pass

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._seen.clear()
        self._stepped.clear()


def release_gradients(
    model_or_params: torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]], optimizer: SteppedInBackward
) -> Release:
    """Step each parameter as soon as the backward pass has its gradient, and free that, instead of keeping all of them.

    Bit for bit the training run without it, for as long as each backward pass belongs to one `optimizer.step()`, which
    stays in the loop: it has nothing left to do where every gradient is released, and says that the pass is over.

    Under FSDP2 it is the same run within rounding. The parameters of a sharded module are stepped together, for which
    the model has to be given.

    Args:
        model_or_params: a model or parameters, named or not; those that require a gradient are meant.
        optimizer: the Adafactor that has them.

    Returns:
        A handle. Its `remove()` undoes everything, as does the end of a `with` block around it.

    Raises:
        ValueError: a parameter is not the optimizer's, is released already or belongs to DistributedDataParallel, or
            none requires a gradient. Nothing has been changed then.
        RuntimeError: later, in the backward pass: gradients accumulate, see there what to do. In
            `torch.nn.utils.clip_grad_norm_` and its kin: the gradients that they are to clip have been released. In
            `step()`: a GradScaler has scaled the gradients.

    Example:
        >>> import torch
        >>> from adafactor_torch import Adafactor, release_gradients
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Adafactor(model.parameters(), lr=1e-2)
        >>> handle = release_gradients(model, optimizer)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> model.weight.grad is None
        True
        >>> optimizer.step()
    """
    if not (isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "step_param")):
        remedy = "Where a tool has wrapped it, pass the one inside: optimizer.optimizer in Accelerate and Lightning."
        raise refusal("optimizer", "an adafactor_torch.Adafactor", type(optimizer).__name__, remedy)
    known = {p for group in optimizer.param_groups for p in group["params"]}
    tensors = _tensors_of(model_or_params)
    for p, who in tensors.items():
        if p not in known:
            remedy = "Add it with optimizer.add_param_group, or set requires_grad=False if it is not to be trained."
            raise refusal(who, "a parameter of the optimizer", "one that it does not have", remedy)
        if is_released(p):
            remedy = "Call remove() on the handle of the first release before."
            raise refusal(who, "a parameter whose gradient is kept", "one whose gradient is released", remedy)
    return Release(tensors, _together(model_or_params, tensors), optimizer)


def is_released(p: Tensor) -> bool:
    """Whether the gradient of a tensor is freed within the backward pass."""
    return any(release.holds(p) for release in _ALIVE)


def steps_in_backward(optimizer: object) -> bool:
    """Whether gradients of an optimizer are released."""
    return any(release.is_of(optimizer) for release in _ALIVE)


def stepped_in_backward(optimizer: object) -> set[Tensor]:
    """The parameters of an optimizer that have been stepped since its last `step()`, or within it in a closure."""
    return set().union(*(release.stepped for release in _ALIVE if release.is_of(optimizer)))


def _together(model_or_params: Any, tensors: dict[Tensor, str]) -> dict[Tensor, Sequence[Tensor]]:
    """For each tensor that FSDP2 shards those whose gradients it reduces together, in one order on all processes."""
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    if not isinstance(model_or_params, torch.nn.Module):
        return {}
    owners: dict[Tensor, torch.nn.Module] = {}
    # Backwards, so that a module comes before the one that it is a part of.
    for module in reversed([module for module in model_or_params.modules() if isinstance(module, sharded)]):
        for p in module.parameters():
            owners.setdefault(p, module)
    groups: dict[torch.nn.Module, list[Tensor]] = {}
    for p, owner in owners.items():
        if p in tensors:
            groups.setdefault(owner, []).append(p)
    return {p: group for group in groups.values() for p in group}


def _tensors_of(model_or_params: Any) -> dict[Tensor, str]:
    """The tensors that require a gradient, each once, and how a message calls them."""
    given: list[Any]
    if isinstance(model_or_params, torch.nn.Module):
        if any(isinstance(module, DistributedDataParallel) for module in model_or_params.modules()):
            remedy = (
                "It averages gradients over the processes after they have been released, so that every process would "
                "step with its own. Train without release, or in one process."
            )
            raise refusal("model_or_params", "a model of one process", "DistributedDataParallel", remedy)
        given = list(model_or_params.named_parameters())
    elif isinstance(model_or_params, Iterable) and not isinstance(model_or_params, Tensor | str | bytes):
        given = list(model_or_params) if getattr(model_or_params, "shape", None) != () else [model_or_params]
    else:
        given = [model_or_params]
    tensors: dict[Tensor, str] = {}
    for item in given:
        name, p = item if isinstance(item, tuple) and len(item) == 2 else ("", item)
        if isinstance(model_or_params, Tensor) or not isinstance(p, Tensor):
            remedy = "Pass model, model.parameters() or a list of parameters."
            raise refusal("model_or_params", "a torch.nn.Module or parameters", type(p).__name__, remedy)
        if p.requires_grad:
            tensors.setdefault(p, f"parameter {name!r}" if name else f"a parameter of shape {tuple(p.shape)}")
    if not tensors:
        must = "a model or parameters of which at least one requires a gradient"
        raise refusal("model_or_params", must, f"{len(given)} of which none does", "Release what is to be trained.")
    return tensors


def _end(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
    _settle()


def _settle() -> None:
    """Guard torch's clipping for as long as there is a release."""
    refuse_clipping(is_released if _ALIVE else None)
