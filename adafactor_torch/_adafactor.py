"""The optimizer: checks and bookkeeping around the phases of a step."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from adafactor_spec import AS_THE_RECIPE_SAYS, REMEDIES, Numbers, Recipe, given, per_name, recipes, replace
from adafactor_spec.errors import check_flag, refusal, refuse_unknown_keywords
from adafactor_spec.factoring import Rule
from adafactor_spec.schedules import ScalarOrSchedule

from . import _phases as phases
from . import _state_dict as saved
from ._groups import (
    FLOATS,
    Group,
    check_group,
    check_lr,
    completed,
    group_fields,
    named,
    numbers_of,
    plan_of,
    recipe_of,
)


class Adafactor(torch.optim.Optimizer):
    """Adafactor, any published one, as a torch optimizer.

    Args:
        params: parameters, named parameters (`model.named_parameters()`, which factoring rules by name need) or
            groups. A group may override every field below, and name a `recipe` of its own.
        lr: the recipe's `lr`: a number, or a schedule or function of t with **t = 1 at the first update**.
            `group["lr"]` is always a number, the learning rate now in force: with a schedule the optimizer writes it,
            with a number a `torch.optim.lr_scheduler` may.
        recipe: a name of `adafactor_spec.recipes.NAMES`, or a Recipe.
        maximize: ascend instead of descend.
        relative_step, multiply_by_parameter_scale, eps2, max_parameter_scale, beta2, factoring, eps1, eps1_mode,
            amsgrad, clipping_threshold, beta1, momentum_of, debias, momentum_dtype, momentum_rounding, weight_decay,
            weight_decay_by, decay_before_scale, state_dtype: override the recipe's field of that name, which
            `adafactor_spec.Recipe` describes. None means off.

    The state of a parameter is `step` (float32, on the CPU) and `v_row` and `v_col` (reduced axes at size 1) or `v`,
    and `v_max` and `m` where the recipe has them; at least float32, and loaded as it was saved.

    Raises:
        ValueError: a value is out of range, two contradict each other, or a parameter is not real floating-point.
        TypeError: an unknown keyword; the message names the right one.

    Example:
        >>> import torch
        >>> from adafactor_torch import Adafactor
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Adafactor(model.parameters(), lr=1e-2)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()

    Source: arXiv 1804.04235; a recipe names its own.
    """

    @refuse_unknown_keywords({**REMEDIES, "learning_rate": "Use lr.", "weight_decay_mask": "Use parameter groups."})
    def __init__(
        self,
        params: Iterable[Any],
        lr: ScalarOrSchedule = AS_THE_RECIPE_SAYS,
        *,
        recipe: str | Recipe = "paper",
        maximize: bool = False,
        relative_step: bool = AS_THE_RECIPE_SAYS,
        multiply_by_parameter_scale: bool | per_name = AS_THE_RECIPE_SAYS,
        eps2: float = AS_THE_RECIPE_SAYS,
        max_parameter_scale: float | None = AS_THE_RECIPE_SAYS,
        beta2: ScalarOrSchedule = AS_THE_RECIPE_SAYS,
        factoring: Rule = AS_THE_RECIPE_SAYS,
        eps1: float | None = AS_THE_RECIPE_SAYS,
        eps1_mode: Literal["add", "floor"] = AS_THE_RECIPE_SAYS,
        amsgrad: bool = AS_THE_RECIPE_SAYS,
        clipping_threshold: float | None = AS_THE_RECIPE_SAYS,
        beta1: ScalarOrSchedule | None = AS_THE_RECIPE_SAYS,
        momentum_of: Literal["grad", "update", "step"] = AS_THE_RECIPE_SAYS,
        debias: bool = AS_THE_RECIPE_SAYS,
        momentum_dtype: Any = AS_THE_RECIPE_SAYS,
        momentum_rounding: Literal["store", "use", "decay"] = AS_THE_RECIPE_SAYS,
        weight_decay: ScalarOrSchedule | per_name | None = AS_THE_RECIPE_SAYS,
        weight_decay_by: Literal["step", "lr", "one", "grad"] | float = AS_THE_RECIPE_SAYS,
        decay_before_scale: bool = AS_THE_RECIPE_SAYS,
        state_dtype: Literal["param"] | None = AS_THE_RECIPE_SAYS,
    ) -> None:
        fields = given(
            lr=lr,
            relative_step=relative_step,
            multiply_by_parameter_scale=multiply_by_parameter_scale,
            eps2=eps2,
            max_parameter_scale=max_parameter_scale,
            beta2=beta2,
            factoring=factoring,
            eps1=eps1,
            eps1_mode=eps1_mode,
            amsgrad=amsgrad,
            clipping_threshold=clipping_threshold,
            beta1=beta1,
            momentum_of=momentum_of,
            debias=debias,
            momentum_dtype=momentum_dtype,
            momentum_rounding=momentum_rounding,
            weight_decay=weight_decay,
            weight_decay_by=weight_decay_by,
            decay_before_scale=decay_before_scale,
            state_dtype=state_dtype,
        )
        chosen = replace(recipes.resolve(recipe), **fields)
        super().__init__(params, {**group_fields(chosen), "maximize": maximize})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, which may override every field and name a `recipe`. One that is refused leaves no trace."""
        super().add_param_group(completed(param_group))
        try:
            check_group(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a gradient is sparse. Nothing has been changed then.
            ValueError: a group was given a value that is out of range. Nothing has been changed then, either.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, work in [(group, self._ready(group)) for group in self.param_groups]:
            recipe = recipe_of(group)
            for p, grad, setting in work:
                state = self._state_of(p, setting)
                state["step"] += 1
                phases.update(p, -grad if group["maximize"] else grad, state, setting)
            if work and callable(recipe.lr):
                latest = max(self._finished(p) for p in group["params"])
                group["lr"] = group["lr_of_schedule"] = float(recipe.lr(latest))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's, of tensors and plain values only: `torch.load(..., weights_only=True)` reads it.

        A schedule or factoring rule is saved as its name and fields; a plain function as its name, and whoever loads
        the state dict keeps the function that his optimizer was built with.
        """
        # Registered now, so that a user's hook sees what is saved.
        hook = self.register_state_dict_post_hook(lambda optimizer, made: saved.encoded(made), prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, and exact: every tensor keeps the dtype in which the recipe stores it.

        Raises:
            ValueError: the state is not that of this optimizer's groups and recipe. Nothing has been changed then.
        """
        groups: list[Group] = []
        states: dict[Tensor, dict[str, Tensor]] = {}

        def check(optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            sizes = [[len(g["params"]) for g in which["param_groups"]] for which in (given, vars(optimizer))]
            if sizes[0] == sizes[1]:  # torch refuses another number by itself
                groups.extend(saved.decoded(given["param_groups"], optimizer.param_groups))
                states.update(saved.restored(given, optimizer.param_groups, groups))

        def restore(optimizer: torch.optim.Optimizer) -> None:
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
            for p, state in states.items():
                optimizer.state[p] = state

        # Registered now, so that `check` comes after a user's hook and `restore` before one.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _ready(self, group: Group) -> list[tuple[Tensor, Tensor, phases.Setting]]:
        """(parameter, gradient, setting) of those with a gradient, after every check that can refuse the step."""
        check_lr(group)
        check_flag("maximize", group["maximize"])
        recipe = recipe_of(group)
        known: dict[tuple[int, int], Numbers] = {}  # of parameters with the same recipe at the same step
        work = []
        for name, p in named(group):
            if p.grad is not None:
                _check_gradient(name, p, p.grad)
                own, t = recipe.for_name(name), self._finished(p) + 1
                if (id(own), t) not in known:
                    known[id(own), t] = numbers_of(own, t)
                setting = phases.Setting(own, plan_of(own, name, p), FLOATS[p.dtype], known[id(own), t])
                work.append((p, p.grad, setting))
        return work

    def _finished(self, p: Tensor) -> int:
        # Through NumPy's view of the same memory: no operator runs and nothing can be a device read.
        step = self.state.get(p, {}).get("step")  # looking it up must not make an entry
        return 0 if step is None else int(step.numpy())

    def _state_of(self, p: Tensor, setting: phases.Setting) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # where reading it is no transfer
        for entry, (shape, dtype) in phases.state_layout(setting.recipe, setting.plan, setting.dtype).items():
            if entry not in state:
                state[entry] = torch.zeros(shape, dtype=dtype, device=p.device)
        return state


def _check_gradient(name: str, p: Tensor, grad: Tensor) -> None:
    who = f"the gradient of {name!r}" if name else f"the gradient of a parameter of shape {tuple(p.shape)}"
    if grad.layout != torch.strided:
        remedy = "Use sparse=False, or torch.optim.SparseAdam for that parameter."
        raise RuntimeError(f"Adafactor does not support sparse gradients, and {who} is {grad.layout}. {remedy}")
    if grad.is_complex():
        raise RuntimeError(f"Adafactor does not support complex gradients, and {who} is {grad.dtype}.")
    if grad.shape != p.shape:
        raise refusal(f"shape of {who}", str(tuple(p.shape)), tuple(grad.shape))
