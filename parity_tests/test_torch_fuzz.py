"""The torch optimizer under random interleavings of everything that its users do; the model of `torch_machine` holds.

`pytest --hypothesis-profile=explore` looks for new ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adafactor_spec import FIELDS, Recipe, factoring, recipes, replace
from adafactor_torch import Adafactor
from adafactor_torch._backends.eager import backend as _eager_backend

from . import torch_draws as draws
from .profiles import examples
from .random_recipes import any_recipe
from .torch_machine import GroupTwin, Twin, all_twins, check
from .torch_runs import frozen, snapshot, through_disk

# The optimizer's own keywords for each way in which it can compute a step: all of them do the same.
PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "blocks": {}, "compiled": {"fused": True}}

FUZZ = settings(
    max_examples=examples(18, 300),
    stateful_step_count=examples(30, 40),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class Machine(RuleBasedStateMachine):
    def __init__(self, path: dict[str, Any], folder: Path, reached: set[str]) -> None:
        super().__init__()
        self.path, self.folder, self.reached = path, folder, reached
        self.optimizer: Any = None
        self.groups: list[GroupTwin] = []
        self.saved: tuple[Any, list[dict[str, Any]]] | None = None
        self.scheduler: Any = None
        self.left_behind: list[tuple[Any, Any]] = []

    @property
    def twins(self) -> list[Twin]:
        return all_twins(self.groups)

    def group_of(self, base: Recipe, fields: dict[str, Any], chosen: Any, seed: int) -> GroupTwin:
        recipe = recipes.resolve(fields.get("recipe", base))
        recipe = replace(recipe, **{field: value for field, value in fields.items() if field in FIELDS})
        rng = np.random.default_rng(seed)
        twins: list[Twin] = []
        for kind, layout, count in chosen:
            for _ in range(count):
                x = rng.standard_normal(draws.KINDS[kind]) * rng.choice([0.0, 1e-4, 1.0, 30.0], p=[0.1, 0.2, 0.5, 0.2])
                p = torch.nn.Parameter(draws.LAYOUTS[layout](np.asarray(x)))
                twins.append(Twin(f"{len(self.twins) + len(twins)}.{kind}", p, recipe))
        return GroupTwin(fields, recipe, twins, self.named)

    @initialize(
        recipe=any_recipe(), fields=draws.group_fields(), chosen=draws.PARAMETERS, seed=draws.SEEDS, named=st.booleans()
    )
    def build(self, recipe: Recipe, fields: dict[str, Any], chosen: Any, seed: int, named: bool) -> None:
        self.base, self.named = recipe, True
        group = self.group_of(recipe, fields, chosen, seed)
        if not named and not recipe.needs_names and not group.recipe.needs_names:
            self.named = group.named = False
        self.groups = [group]
        self.optimizer = self.anew()

    def anew(self) -> Any:
        """An optimizer as its maker writes it, for the parameters as they are."""
        return Adafactor([group.made for group in self.groups], recipe=self.base, **self.path)

    # ------------------------------------------------------------------------------------------------------- steps

    def give(self, kinds: list[tuple[str, str]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        for twin, (kind, layout) in zip(self.twins, draws.cycled(kinds, len(self.twins)), strict=True):
            twin.take(draws.gradient(kind, layout, tuple(twin.p.shape), rng) if twin.p.requires_grad else None)

    def expect_a_step(self) -> None:
        for group in self.groups:
            group.step()

    @rule(kinds=draws.GRADIENT_KINDS, seed=draws.SEEDS, closure=st.booleans())
    def step(self, kinds: list[tuple[str, str]], seed: int, closure: bool) -> None:
        self.reached |= {"step", *(word for pair in kinds for word in pair)}

        def evaluate() -> float:
            self.give(kinds, seed)
            return 2.5

        if closure:
            assert self.optimizer.step(evaluate) == 2.5
        else:
            evaluate()
            self.optimizer.step()
        self.expect_a_step()

    @rule(kinds=draws.GRADIENT_KINDS, seed=draws.SEEDS, times=st.integers(2, 6))
    def steps(self, kinds: list[tuple[str, str]], seed: int, times: int) -> None:
        self.reached.add("steps")
        for t in range(times):
            self.step(kinds[t % len(kinds) :] + kinds[: t % len(kinds)], seed + t, closure=False)
            self.check()

    @rule()
    def step_with_the_gradients_that_are_there(self) -> None:
        self.reached.add("step_with_the_gradients_that_are_there")
        self.optimizer.step()
        self.expect_a_step()

    @rule(to_none=st.booleans())
    def zero_grad(self, to_none: bool) -> None:
        self.reached.add("zero_grad")
        for twin in self.twins:  # torch's own zero_grad fails at these where the optimizer is a fused one
            if twin.p.grad is not None and twin.p.grad.is_neg():
                twin.p.grad = twin.p.grad.resolve_neg()
        self.optimizer.zero_grad(set_to_none=to_none)
        for twin in self.twins:
            if twin.grad is not None:
                twin.grad = None if to_none else np.zeros_like(twin.grad)

    @rule(kinds=draws.GRADIENT_KINDS, seed=draws.SEEDS, index=draws.INDEX, fault=st.sampled_from(draws.BAD_GRADIENTS))
    def fail_at_a_gradient(self, kinds: list[tuple[str, str]], seed: int, index: int, fault: Any) -> None:
        self.reached.add(fault.__name__)
        self.give(kinds, seed)
        twin = self.twins[index % len(self.twins)]
        fault(twin.p)
        self.expect_a_refusal((RuntimeError, ValueError), self.optimizer.step)
        if fault is draws.complex_:
            twin.p.grad = None
            twin.p.grad_dtype = torch.float64
        twin.take(None)

    @rule(kinds=draws.GRADIENT_KINDS, seed=draws.SEEDS, index=draws.INDEX, bad=st.sampled_from(draws.BAD_VALUES))
    def fail_at_a_group(self, kinds: list[tuple[str, str]], seed: int, index: int, bad: tuple[str, Any]) -> None:
        field, value = bad
        number = index % len(self.groups)
        if field == "factoring" and not any(twin.p.requires_grad for twin in self.groups[number].twins):
            return  # a rule is asked for parameters with a gradient
        self.reached.add("fail_at_a_group")
        self.give(kinds, seed)
        if field == "factoring":
            first = next(twin for twin in self.groups[number].twins if twin.p.requires_grad)
            first.take(torch.zeros_like(first.p))
        group = self.optimizer.param_groups[number]
        group[field], good = value, group[field]
        self.expect_a_refusal(ValueError, self.optimizer.step)
        group[field] = good

    def expect_a_refusal(self, error: Any, action: Any, *arguments: Any) -> None:
        """The error is raised and has changed nothing."""
        before = snapshot(self.optimizer)
        with pytest.raises(error):
            action(*arguments)
        assert snapshot(self.optimizer) == before

    # ------------------------------------------------------------------------------------------------------ groups

    @precondition(lambda self: len(self.groups) < 4)
    @rule(fields=draws.group_fields(), chosen=draws.PARAMETERS, seed=draws.SEEDS)
    def add_param_group(self, fields: dict[str, Any], chosen: Any, seed: int) -> None:
        group = self.group_of(self.base, fields, chosen, seed)
        if group.recipe.needs_names and not self.named:
            self.expect_a_refusal(ValueError, self.optimizer.add_param_group, group.made)
            return
        self.reached.add("add_param_group")
        self.optimizer.add_param_group(group.made)
        self.groups.append(group)
        self.scheduler = None  # it knows the number of groups

    @rule(bad=st.sampled_from(draws.BAD_VALUES), again=st.booleans())
    def fail_to_add_a_group(self, bad: tuple[str, Any], again: bool) -> None:
        self.reached.add("fail_to_add_a_group")
        new = torch.nn.Parameter(torch.ones(2, 3))
        p = self.twins[-1].p if again else new
        group = {"params": [("new", p) if self.named else p], **({} if again else dict([bad]))}
        self.expect_a_refusal(ValueError, self.optimizer.add_param_group, group)

    @rule(index=draws.INDEX, change=st.sampled_from(draws.CHANGES))
    def change_a_group(self, index: int, change: tuple[str, Any]) -> None:
        field, value = change
        group = self.groups[index % len(self.groups)]
        if (field == "lr" and callable(group.recipe.lr)) or (field == "beta1" and group.recipe.beta1 is None):
            return  # refused, and a state with another layout
        self.reached.add("change_a_group")
        group.change(field, value)
        self.optimizer.param_groups[index % len(self.groups)][field] = value

    @precondition(lambda self: not any(callable(group.recipe.lr) for group in self.groups))
    @rule(kinds=draws.GRADIENT_KINDS, seed=draws.SEEDS)
    def step_a_scheduler(self, kinds: list[tuple[str, str]], seed: int) -> None:
        self.reached.add("step_a_scheduler")
        if self.scheduler is None:
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.7)
        self.step(kinds, seed, closure=False)  # torch warns of a scheduler that steps first
        self.check()
        self.scheduler.step()
        for group in self.groups:
            group.change("lr", group.lr * 0.7)

    # -------------------------------------------------------------------------------------------------- parameters

    @rule(index=draws.INDEX)
    def freeze(self, index: int) -> None:
        self.reached.add("freeze")
        twin = self.twins[index % len(self.twins)]
        twin.p.requires_grad_(False)
        twin.take(None)

    @rule()
    def unfreeze(self) -> None:
        self.reached.add("unfreeze")
        for twin in self.twins:
            twin.p.requires_grad_(True)

    @rule(index=draws.INDEX, seed=draws.SEEDS, size=st.sampled_from([0.0, 1.0, 100.0]), data=st.booleans())
    def write_a_parameter(self, index: int, seed: int, size: float, data: bool) -> None:
        """Somebody else writes it, also through `p.data`, which no version counter sees.

        The compiled path carries RMS(p), so there an unseen write is another step: test_torch_paths.py has it.
        """
        self.reached.add("write_a_parameter")
        twin = self.twins[index % len(self.twins)]
        x = np.asarray(np.random.default_rng(seed).standard_normal(twin.x.shape) * size)
        if data and "fused" not in self.path:
            twin.p.data.copy_(torch.tensor(x))
            twin.x = x
        else:
            twin.write(x)

    # ------------------------------------------------------------------------------------------------------ copies

    @rule()
    def save(self) -> None:
        self.reached.add("save")
        self.saved = (through_disk(self.optimizer.state_dict(), self.folder), [group.saved() for group in self.groups])

    @rule(into=st.sampled_from(["a new one", "this one", "a deep copy"]), parameters=st.booleans())
    def load(self, into: str, parameters: bool) -> None:
        """Go back to what was saved last, with the parameters or without."""
        if self.saved is None:
            self.save()
        assert self.saved is not None
        saved, groups = self.saved
        if len(groups) < len(self.groups):
            self.expect_a_refusal(ValueError, self.optimizer.load_state_dict, saved)
            return
        self.reached.add(f"load into {into}")
        if into == "a deep copy":
            self.copy("deepcopy")
        elif into == "a new one":
            self.optimizer = self.anew()
        if into != "a new one" and any(map(GroupTwin.lacks_a_function, self.groups, groups)):
            self.expect_a_refusal(ValueError, self.optimizer.load_state_dict, saved)
            return
        given = frozen(saved)
        self.optimizer.load_state_dict(saved)
        for group, values in zip(self.groups, groups, strict=True):
            group.load(values, parameters=parameters)
        self.scheduler = None
        self.step_leaves(saved, given)

    def step_leaves(self, saved: Any, given: Any) -> None:
        """A step writes to no tensor of a state dict that was loaded."""
        self.check()
        self.step([("ordinary", "dense")], 0, closure=False)
        assert frozen(saved) == given

    @rule(how=st.sampled_from(list(draws.COPIES)))
    def copy(self, how: str) -> None:
        """Go on with a copy of parameters and optimizer; what is left behind stays as it is."""
        self.reached.add(how)
        both = ([twin.p for twin in self.twins], self.optimizer)
        flags = [p.requires_grad for p in both[0]]
        self.left_behind.append((self.optimizer, snapshot(self.optimizer)))
        tensors, self.optimizer = draws.COPIES[how](both)
        assert type(self.optimizer) is Adafactor
        assert [p.requires_grad for p in tensors] == flags
        for twin, p in zip(self.twins, tensors, strict=True):
            twin.settle(p)
        self.scheduler = None

    @invariant()
    def check(self) -> None:
        if self.optimizer is not None:
            check(self.optimizer, self.groups)

    def teardown(self) -> None:
        for optimizer, before in self.left_behind:
            assert snapshot(optimizer) == before, "what was copied shares memory with its copy"


REACHED = {
    *draws.GRADIENTS, *draws.GRADIENT_LAYOUTS, *(fault.__name__ for fault in draws.BAD_GRADIENTS), *draws.COPIES,
    "step", "steps", "step_with_the_gradients_that_are_there", "zero_grad", "fail_at_a_group",
    "add_param_group", "fail_to_add_a_group", "change_a_group", "step_a_scheduler",
    "freeze", "unfreeze", "write_a_parameter",
    "save", "load into a new one", "load into this one", "load into a deep copy",
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_random_interleavings(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "blocks":  # else all of these tensors are stacked
        monkeypatch.setattr(_eager_backend, "SMALL", 10)
        monkeypatch.setattr(_eager_backend, "BLOCK", 50)
    reached: set[str] = set()
    start: Any = lambda: Machine(PATHS[path], tmp_path, reached)  # noqa: E731 (hypothesis asks for a class)
    run_state_machine_as_test(start, settings=FUZZ)
    assert reached >= REACHED, "every rule has run at least once"


# ------------------------------------------------------------------------------------------------ found by exploring


@pytest.mark.parametrize("how", draws.COPIES)
@pytest.mark.parametrize("rule_", [factoring.last_two, factoring.no_factoring, factoring.as_matrix], ids=repr)
def test_a_copy_saves_its_rule_as_the_original_does(rule_: factoring.Rule, how: str) -> None:
    """The copy's rule is equal to ours, but another object: it was saved as a function of somebody's own."""
    optimizer = Adafactor([torch.nn.Parameter(torch.ones(2, 3))], factoring=rule_)
    saved = draws.COPIES[how](optimizer).state_dict()
    assert saved == optimizer.state_dict()
    optimizer.load_state_dict(saved)
