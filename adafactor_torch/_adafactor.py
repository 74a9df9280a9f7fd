"""The optimizer that users construct: `Adafactor`, its arguments, its state dicts, and the entry of a step."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from adafactor_spec import AS_THE_RECIPE_SAYS, REMEDIES, Recipe, given, per_name, recipes, replace
from adafactor_spec.errors import refusal, refuse_unknown_keywords
from adafactor_spec.factoring import Rule
from adafactor_spec.schedules import ScalarOrSchedule

from . import _compiled_step as traced
from . import _state_dict as saved
from ._gradient_release import stepped_in_backward, steps_in_backward
from ._param_groups import OPTIONS, Group, check_group, check_options, completed, group_fields, number_in, split_lr
from ._saved_state import restored
from ._step.driver import Driver
from ._task.task import Amp, State


class Adafactor(torch.optim.Optimizer):
    """Adafactor, any published one, as a torch optimizer.

    Args:
        params: parameters, named parameters (`model.named_parameters()`, which factoring rules by name need) or
            groups. A group may override every field below, and name a `recipe` of its own.
        lr: the recipe's `lr`: a number, or a schedule or function of t with **t = 1 at the first update**.
            `group["lr"]` is always a number, the learning rate now in force: with a schedule the optimizer writes it,
            with a number a `torch.optim.lr_scheduler` may. A tensor with one number is filled in its place.
        recipe: a name of `adafactor_spec.recipes.NAMES`, or a Recipe.
        foreach, fused: how a step is computed; all ways agree within rounding. `fused=True`: one kernel, Triton on
            CUDA, where it is the default, and C++ on a CPU, compiled on this machine at the first step. `foreach=False`
            with it off: one plain operation after the other, the reference. Else eager torch in cache-sized passes.
            Of sharded parameters (DTensors; docs/sharding_torch.md) only `fused` decides.
        capturable: on a GPU, nothing of a step depends on the host, so that a CUDA graph can hold it. A function of t
            must then be one of `adafactor_spec.schedules` or written with operators; `group["lr"]` stays what it is.
        maximize: ascend instead of descend.
        rounding: of 16-bit parameters; "nearest", "stochastic" (unbiased) or "kahan" (what is cut off is kept in
            bfloat16). See docs/numerics.md.
        seed: of the random bits, in [0, 2^32). They depend on it, the step, the parameter's position and the element.
        nonfinite: "propagate" or "skip": a parameter whose gradient has an infinity or a NaN stays as it was.
        telemetry: keep what `telemetry()` shows.
        relative_step, multiply_by_parameter_scale, eps2, max_parameter_scale, beta2, factoring, eps1, eps1_mode,
            amsgrad, clipping_threshold, beta1, momentum_of, debias, momentum_dtype, momentum_rounding, weight_decay,
            weight_decay_by, decay_before_scale, state_dtype: override the recipe's field of that name, which
            `adafactor_spec.Recipe` describes. None means off.

    The state of a parameter is `step` (int64, on the CPU; on the parameter's device with `capturable` or "skip") and
    `v_row` and `v_col` (reduced axes at size 1) or `v`, and `v_max`, `m` and `compensation` where they are kept; the
    moments at least float32, and all loaded as saved.

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
        lr: ScalarOrSchedule | Tensor = AS_THE_RECIPE_SAYS,
        *,
        recipe: str | Recipe = "paper",
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        maximize: bool = False,
        rounding: Literal["nearest", "stochastic", "kahan"] = "nearest",
        seed: int = 0,
        nonfinite: Literal["propagate", "skip"] = "propagate",
        telemetry: bool = False,
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
            lr=number_in(lr),
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
        options = {
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "rounding": rounding,
            "seed": seed,
            "nonfinite": nonfinite,
            "telemetry": telemetry,
        }
        self._driver, self._number = Driver(), traced.number_of(self)
        of_tensor = split_lr(lr) if isinstance(lr, Tensor) else {}
        super().__init__(params, {**group_fields(chosen), **of_tensor, **options})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # Read by GradScaler, which then leaves unscaling, and steps that are to be left out, to `step`. As with torch's
        # own optimizers that is for who asks for it: Lightning refuses to clip gradients then, and Accelerate takes
        # every step for one that was made.
        # Released gradients have missed both: then `step` refuses, which says more than the scaler would.
        for group in self.param_groups:
            check_options(group)
        return steps_in_backward(self) or any(group["fused"] or group["capturable"] for group in self.param_groups)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, which may override every field and name a `recipe`. One that is refused leaves no trace."""
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which says what it must be
        if "params" not in param_group:
            raise refusal("param_group", "a dict with 'params'", param_group)
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
            RuntimeError: a gradient is sparse. Nothing has been changed then. Or the gradient of a sharded parameter
                has come in different placements, on different processes or in different steps.
            ValueError: a group was given a value that is out of range, or `fully_shard` has replaced a parameter since
                the optimizer was built. Nothing has been changed then, either.

        Processes that share parameters have to take it together, whether they have gradients or not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            # `self.param_groups` would have dynamo guard on every value of every group, `lr` among them.
            traced.step(self._number, vars(self)["param_groups"])
        else:
            self._step_now()
        return loss

    def _step_now(self) -> None:
        self._opt_called = True
        self._driver.step(self.param_groups, self.state, self._amp(), already_stepped=stepped_in_backward(self))

    def _amp(self) -> Amp:
        """What a GradScaler has set on this optimizer for the step that it calls."""
        return Amp(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))

    @torch.no_grad()
    def step_param(self, p: Tensor) -> None:
        """One update of one parameter, bit for bit what `step` does with it. Step hooks do not run.

        Args:
            p: a parameter of this optimizer. Without a gradient it stays what it is.

        Raises:
            ValueError: the parameter is not one of this optimizer's, or as for `step`.
            RuntimeError: as for `step`.

        Processes that share the parameter have to take it together.
        """
        self._driver.step(self.param_groups, self.state, self._amp(), only=[p])

    @torch.no_grad()
    def _step_params(self, params: Sequence[Tensor]) -> None:
        """`step_param` of several at once, which share their sums over processes."""
        self._driver.step(self.param_groups, self.state, self._amp(), only=params)

    def telemetry(self) -> dict[str, dict[str, Tensor]]:
        """What the last step did with each parameter, by name, of those in a group with `telemetry=True`.

        Nothing is read back to the host until you look at a value.

        Returns:
            For each parameter (its name, or "group.position" where it has none) float32 tensors on its device:
            `step_size` (alpha, which the clipped direction is multiplied by), `update_rms` (RMS(u) before clipping),
            `clip_factor` (max(1, RMS(u) / d)) and `parameter_rms` (RMS(p) before the step), without axes or with one
            value per index of the batch axes, 0 before the first step; and `skipped`, under `nonfinite="skip"` the
            number of steps left out, by a GradScaler's `found_inf` too, since the optimizer was built or loaded. The
            next step writes into the same tensors.
        """
        for group in self.param_groups:
            check_options(group)
        return self._driver.telemetry(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, of tensors and plain values only: `torch.load(..., weights_only=True)` reads it.

        A schedule or factoring rule is saved as its name and fields; a plain function as its name, and whoever loads
        the state dict keeps the function that his optimizer was built with.
        """
        self._driver.tidy(self.param_groups, self.state)
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
        states: dict[Tensor, State] = {}

        def check(optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            saved.check_form(given)
            sizes = [[len(g["params"]) for g in which["param_groups"]] for which in (given, vars(optimizer))]
            if sizes[0] != sizes[1]:  # torch refuses another number by itself
                return given
            current, numbers = optimizer.param_groups, [key for g in given["param_groups"] for key in g["params"]]
            saved.check_numbers(given, current)
            groups.extend(saved.decoded(given["param_groups"], current))
            states.update(restored(given["state"], numbers, current, groups))
            return {**given, "state": {}}  # torch would cast a copy of it

        def restore(optimizer: torch.optim.Optimizer) -> None:
            for group, loaded in zip(optimizer.param_groups, groups, strict=True):
                group.pop("format", None)
                group.update({key: loaded[key] for key in saved.KEYS})
            optimizer.state.update(states)
            self._driver = Driver()

        if not isinstance(state_dict, dict):
            raise refusal("state_dict", "a dict", state_dict)
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What pickle and deepcopy hand over: the groups and the state, without what is remembered of them."""
        super().__setstate__(state)
        self._driver = Driver()
        if not hasattr(self, "_number"):  # a new optimizer, not one that loads a state
            self._number = traced.number_of(self)
        for group in self.param_groups:
            for name, before in OPTIONS.items():
                group.setdefault(name, before)


# A torch.optim.lr_scheduler looks for this mark and for `_opt_called`. Without the mark it puts a function of its own
# in the place of `step`, which dynamo refuses to trace.
Adafactor.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
