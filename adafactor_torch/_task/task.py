"""One parameter in one step, and what is decided once for it.

Glossary of this package:

| | |
|---|---|
| parameter, shard | a tensor of the optimizer; the elements of it that this process holds (`Shard`), often all |
| config | what is decided once for a parameter: recipe, plan, dtypes (`ParamConfig`) |
| task | one parameter in one step: local tensors, config and the numbers of the step (`Task`) |
| plan, matrix view | which axes are rows, columns and batch; the parameter as [batch, lead, rows, columns] |
| backend, batch | a way to compute a step (eager torch, C++, ...); the tasks that it steps together (`Batch`) |
| phases | statistics of g and p; update of V and direction u; apply. Processes add up between two phases |
| partial sum | what this process contributes to a sum over processes, replaced by the sum in place (`PartialSum`) |
| whole, shared | a parameter that this process alone steps; one that a mesh of processes steps together |
| step mask | which shards take this step, as not every gradient is present and finite (`StepMask`) |
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe, dtypes
from adafactor_spec.dtypes import at_least_float32, is_narrow
from adafactor_spec.factoring import Plan

from .shard import Shard

NO_GRADIENT = torch.empty(0, dtype=torch.float32, device="cpu")
# The numbers of a step, in the order of their columns in the tables of the C++ and of Triton.
NUMBERS = ("rho", "beta2", "beta2_complement", "bias2", "beta1", "beta1_complement", "bias1", "weight_decay")
COUNT = torch.int64  # of `step`: float32, torch's own, stands still at 2^24, and the random bits of a step with it
State = dict[str, Tensor]  # step and, where they are kept, v_row and v_col or v, v_max, m, compensation
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True, eq=False)
class ParamConfig:
    """What is decided once for a parameter: everything that is neither a tensor nor a number of the step.

    The recipe is the effective one of what is given: a field that has no effect is at its default, so that no way to
    compute a step can take it for one that has.
    """

    recipe: Recipe
    plan: Plan
    dtype: str  # of the parameter
    rounding: str = "nearest"
    by_address: bool = True  # kernels may read and write it there; else only torch's operators know what it is

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.effective())

    def is_of(self, p: Tensor) -> bool:
        """Whether p still has the shape and the dtype that this was decided for."""
        return self._dtype is p.dtype and self.plan.shape == p.shape

    @functools.cached_property
    def _dtype(self) -> torch.dtype:
        return torch_dtype(self.dtype)

    @functools.cached_property
    def compute(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return torch_dtype(at_least_float32(self.dtype))

    @functools.cached_property
    def eps1(self) -> float:
        """eps1 for this parameter's dtype."""
        return self.recipe.eps1_for(self.dtype)

    @functools.cached_property
    def floor(self) -> float | None:
        """The smallest sqrt(V), where eps1 is a floor."""
        return self.eps1 if self.recipe.eps1_mode == "floor" else None

    @functools.cached_property
    def added(self) -> float:
        """What is added to g^2."""
        return 0.0 if self.recipe.eps1_mode == "floor" else self.eps1

    @functools.cached_property
    def decay(self) -> Literal["", "grad", "step", "one"]:
        """Where the weight decay acts: in the gradient, times the step size, or alone; "" without one."""
        if not self.recipe.decays:
            return ""
        by = self.recipe.weight_decay_by
        return "grad" if by == "grad" else "step" if by == "step" else "one"

    @functools.cached_property
    def clips(self) -> bool:
        """Whether updates are clipped."""
        return self.recipe.clipping_threshold not in (None, math.inf)

    @functools.cached_property
    def momentum(self) -> Literal["", "grad", "update", "step"]:
        """What the first moment is an average of, "" without one."""
        return "" if self.recipe.beta1 is None else self.recipe.momentum_of

    @functools.cached_property
    def rounds(self) -> Literal["nearest", "stochastic", "kahan"]:
        """How the new parameter is rounded: "kahan" keeps what a rounding cuts off."""
        if self.rounding == "nearest" or not is_narrow(self.dtype):
            return "nearest"
        return "stochastic" if self.rounding == "stochastic" else "kahan"

    @functools.cached_property
    def shard(self) -> Shard:
        """The shard of a parameter that this process holds alone and wholly."""
        return Shard(self.plan, self.plan)

    @functools.cached_property
    def moments(self) -> tuple[str, ...]:
        """The entries of the state that keep the second moment."""
        return ("v_row", "v_col") if self.plan.factored else ("v",)

    @functools.cached_property
    def layout(self) -> Layout:
        """Shape and dtype of every tensor that the parameter's state keeps, but for `step`."""
        recipe, plan = self.recipe, self.plan
        stored = torch_dtype(recipe.state_dtype_for(self.dtype))
        layout = {"v_row": (plan.row_shape, stored), "v_col": (plan.col_shape, stored)}
        if not plan.factored:
            layout = {"v": (plan.matrix_shape, stored)}
        if recipe.amsgrad:
            layout["v_max"] = (plan.matrix_shape, stored)
        if recipe.beta1 is not None:
            layout["m"] = (plan.shape, torch_dtype(recipe.momentum_dtype_for(self.dtype)))
        if self.rounds == "kahan":
            layout["compensation"] = (plan.shape, torch.bfloat16)
        return layout


@dataclass(eq=False)
class Task:
    """One parameter in one step.

    Of a parameter that processes share, `p`, `grad` and `state` become the local tensors of this process before a
    backend sees them. `param` and `stored` stay what the optimizer has, and caches go by them.
    """

    p: Tensor
    grad: Tensor
    state: State
    config: ParamConfig
    now: Numbers
    key: Any = 0  # of the random bits (`adafactor_spec.rounding_key`), an int or a 0-dimensional int32 tensor
    maximize: bool = False
    counter: Any = None  # `state["step"]` as a NumPy array, where the host counts and there is one
    t: int = 0  # the number of this step, where the host counts
    telemetry: Tensor | None = None  # what the step did is written here, [batch, 4]
    skipped: Tensor | None = None  # the step is left out, and counted here, where the gradient is not finite
    has_grad: bool = True  # of a shared one another process may have a gradient; here it is of zeros then
    by_address: bool = True  # also of the gradient
    fused: bool = False  # stepped by the fused kernels of its device
    foreach: bool | None = None  # False: by the reference, where nothing is fused
    param: Tensor = field(init=False)  # as the optimizer has it
    stored: State = field(init=False)  # the state as the optimizer has it
    shard: Shard = field(init=False)  # which elements of the parameter are held here

    def __post_init__(self) -> None:
        self.param, self.stored, self.shard = self.p, self.state, self.config.shard

    @property
    def checks(self) -> bool:
        """Whether the step is left out where the gradient that is here is not finite."""
        return self.skipped is not None and self.has_grad


class Amp(NamedTuple):
    """What a GradScaler says: 0-dimensional tensors, or None."""

    grad_scale: Tensor | None = None  # gradients are this many times too large
    found_inf: Tensor | None = None  # 1 where a gradient is not finite: then nothing is written


def mark_written(tasks: Sequence[Task]) -> None:
    """Raise the version counters of parameters, for whoever writes them without torch's operators, which do it.

    By it autograd sees that a weight which it has saved for a backward pass is another one by then.
    """
    torch.autograd.graph.increment_version([task.p for task in tasks])


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


NO_AMP = Amp()

FLOATS = {getattr(torch, name): name for name in dtypes.NAMES}
