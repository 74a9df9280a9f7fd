"""A model of the torch optimizer, which steps the oracle and knows what has to stay as it was, to the bit."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafactor_spec import FIELDS, Recipe, oracle, to_plain
from adafactor_spec.schedules import as_schedule

from .torch_runs import FLOAT64, Array, leaves

PLAIN = {Tensor, bool, int, float, str, type(None)}


def array(tensor: Tensor) -> Array:
    """A copy of its values, in the order of its axes."""
    return tensor.detach().resolve_neg().numpy().copy(order="C")


def same(one: Array, other: Array) -> bool:
    """Whether they are bit-identical: -0.0 is not 0.0."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def kept(state: oracle.State) -> dict[str, Array]:
    """The arrays that a recipe keeps of a parameter."""
    return {key: value for key, value in vars(state).items() if key != "step" and value is not None}


@dataclasses.dataclass
class Twin:
    """A parameter of the optimizer, and what the oracle says that it is.

    After every check the oracle goes on from the optimizer's own numbers: the budget is that of one step, and whatever
    is not a step has to leave every bit as it was.

    Attributes:
        p: the parameter.
        x, state: its value and its state.
        grad: the gradient that it holds.
        before: value and state before a step that has not been checked yet; None where all must be as it was.
        place: strides and address of the parameter.
        around: the rest of the memory of which it is a part.
    """

    name: str
    p: Tensor
    recipe: dataclasses.InitVar[Recipe]

    def __post_init__(self, recipe: Recipe) -> None:
        self.x = array(self.p)
        self.state = oracle.init(recipe, self.x, name=self.name)
        self.grad: Array | None = None
        self.before: dict[str, Array] | None = None
        self.settle(self.p)

    def settle(self, p: Tensor) -> None:
        """From now on `p` is the parameter: a copy has its own memory, and no gradient."""
        self.p, self.place, self.around = p, (p.stride(), p.data_ptr()), self._around(p)
        self.take(p.grad)

    def take(self, grad: Tensor | None) -> None:
        """Give the parameter a gradient."""
        self.p.grad, self.grad = grad, None if grad is None else array(grad)

    def write(self, x: Array) -> None:
        """Give the parameter another value."""
        with torch.no_grad():
            self.p.copy_(torch.tensor(x))
        self.x = x

    def step(self, recipe: Recipe, sign: float) -> None:
        """A step of the oracle."""
        assert self.grad is not None
        self.before = {"p": self.x, **kept(self.state)}
        self.x, self.state = oracle.step(recipe, self.x, sign * self.grad, self.state, name=self.name)

    def check(self, state: dict[str, Tensor]) -> None:
        """The parameter, its gradient and `state`, the optimizer's state of it, are what they must be."""
        assert (self.p.stride(), self.p.data_ptr()) == self.place
        assert self._around(self.p) == self.around, "memory beside the parameter was written to"
        assert (self.p.grad is None) == (self.grad is None)
        assert self.p.grad is None or same(array(self.p.grad), self.grad), "the gradient was written to"

        if not self.state.step:
            assert not state, "no state before the first step"
            found: dict[str, Array] = {}
        else:
            count = state["step"]
            assert (count.dtype, count.shape, count.device.type) == (torch.int64, (), "cpu")
            assert count.item() == self.state.step
            found = {key: array(value) for key, value in state.items() if key != "step"}
            assert set(found) == set(kept(self.state))
        found["p"] = array(self.p)
        expected = {"p": self.x, **kept(self.state)}
        for key, value in found.items():
            assert (value.dtype, value.shape) == (np.float64, expected[key].shape), key
            if self.before is None:
                assert same(value, expected[key]), f"{key} of {self.name!r} has changed"
            else:
                largest = max(float(np.max(np.abs(x), initial=0.0)) for x in (self.before[key], expected[key]))
                apart = float(np.max(np.abs(value - expected[key]), initial=0.0))
                assert apart <= FLOAT64 * largest, f"{key} of {self.name!r}: {apart} of {largest}"
        self.before, self.x = None, found.pop("p")
        self.state = dataclasses.replace(self.state, **found)

    @staticmethod
    def _around(p: Tensor) -> bytes:
        whole = torch.empty(0, dtype=p.dtype).set_(p.untyped_storage())
        if whole.numel() == p.numel():
            return b""
        whole = whole.clone()
        whole.as_strided(p.shape, p.stride(), p.storage_offset()).zero_()
        return whole.numpy().tobytes()


@dataclasses.dataclass
class GroupTwin:
    """A group of the optimizer.

    Attributes:
        fields: what its maker wrote.
        recipe: what it does now; its `lr` is the schedule, or the number now in force.
        lr: the number now in force.
    """

    fields: dict[str, Any]
    recipe: Recipe
    twins: list[Twin]
    named: bool

    def __post_init__(self) -> None:
        self.maximize = self.fields.get("maximize", False)
        self.lr = float(as_schedule(self.recipe.given_lr)(1))

    @property
    def made(self) -> dict[str, Any]:
        """What to give to an optimizer."""
        return {**self.fields, "params": [(twin.name, twin.p) if self.named else twin.p for twin in self.twins]}

    def change(self, field: str, value: Any) -> None:
        if field == "maximize":
            self.maximize = value
        else:
            self.recipe = dataclasses.replace(self.recipe, **{field: value})
            self.lr = value if field == "lr" else self.lr

    def step(self) -> None:
        ready = [twin for twin in self.twins if twin.grad is not None]
        for twin in ready:
            twin.step(self.recipe, -1.0 if self.maximize else 1.0)
        if ready and callable(self.recipe.lr):
            self.lr = float(self.recipe.lr(max(twin.state.step for twin in self.twins)))

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has to bring back, parameters included."""
        return {"recipe": self.recipe, "maximize": self.maximize, "lr": self.lr} | {
            "twins": [(twin.x, twin.state) for twin in self.twins]
        }

    def lacks_a_function(self, saved: dict[str, Any]) -> bool:
        """Whether a function, which is saved as its name only, has given way to something else since."""
        pairs = [(getattr(self.recipe, field), getattr(saved["recipe"], field)) for field in FIELDS]
        return any(_is_function(then) and not _is_function(now) for now, then in pairs)

    def load(self, saved: dict[str, Any], *, parameters: bool) -> None:
        self.recipe, self.maximize, self.lr = saved["recipe"], saved["maximize"], saved["lr"]
        for twin, (x, state) in zip(self.twins, saved["twins"], strict=True):
            twin.state = state
            if parameters:
                twin.write(x)


def all_twins(groups: list[GroupTwin]) -> list[Twin]:
    return [twin for group in groups for twin in group.twins]


def check(optimizer: torch.optim.Optimizer, groups: list[GroupTwin]) -> None:
    """The optimizer is what the model says, in every group, parameter and state, and no more than that."""
    for ours, theirs in zip(groups, optimizer.param_groups, strict=True):
        assert [id(p) for p in theirs["params"]] == [id(twin.p) for twin in ours.twins]
        assert theirs.get("param_names") == ([twin.name for twin in ours.twins] if ours.named else None)
        expected = {field: getattr(ours.recipe, field) for field in FIELDS}
        expected |= {"lr": ours.lr, "maximize": ours.maximize}
        assert {key: theirs[key] for key in expected} == expected
        assert type(theirs["lr"]) is float
    twins = all_twins(groups)
    assert {id(p) for p in optimizer.state} == {id(twin.p) for twin in twins if twin.state.step}
    for twin in twins:
        twin.check(optimizer.state.get(twin.p, {}))
    saved = optimizer.state_dict()
    assert {type(leaf) for leaf in leaves(saved)} <= PLAIN
    assert set(saved["state"]) == {number for number, twin in enumerate(twins) if twin.state.step}


def _is_function(value: Any) -> bool:
    plain = to_plain(value)
    return isinstance(plain, dict) and "function" in plain
