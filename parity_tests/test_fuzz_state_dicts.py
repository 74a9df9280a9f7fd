"""Whatever a state dict has become: it is loaded for what it says, and the steps that follow are right, or refused."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adafactor_spec import FIELDS, Recipe, factoring, schedules
from adafactor_torch import Adafactor

from . import hostile_steps as steps
from .hostile import ANYTHING, FLAGS, Hostile, assert_in_form, cases, numbers, words
from .hostile_fields import FIELDS as VALUES
from .hostile_steps import Judge
from .torch_runs import advance, leaves, parameters, snapshot

# torch's own words for groups that are not as many or as long as the optimizer's.
TORCHS_OWN = (
    "loaded state dict has a different number of parameter groups",
    "loaded state dict contains a parameter group",
)

MAKERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "momentum": {"beta1": 0.9, "momentum_of": "step", "weight_decay": 0.1, "lr": 0.1},
    "amsgrad": {"amsgrad": True, "beta1": schedules.adam_decay(0.9), "debias": True, "momentum_of": "grad"},
    "schedules": {
        "lr": schedules.piecewise_constant(schedules.product(0.1, schedules.inverse_sqrt()), (3,), 0.5),
        "factoring": factoring.by_name({"^2$": factoring.explicit((1,), (2,), 0)}),
        "weight_decay": schedules.inverse_sqrt(),
    },
    "floor": {"recipe": "torch", "factoring": factoring.as_matrix, "telemetry": True, "nonfinite": "skip"},
}
DTYPES = dict.fromkeys(MAKERS, torch.float64) | {"momentum": torch.bfloat16, "floor": torch.float32}


def optimizer(maker: str, **more: Any) -> Adafactor:
    """Two groups, with names."""
    named = [(str(index), p) for index, p in enumerate(parameters(DTYPES[maker]))]
    return Adafactor([{"params": named[:3]}, {"params": named[3:], "seed": 5}], **MAKERS[maker], **more)


def saved(maker: str) -> dict[str, Any]:
    source = optimizer(maker, rounding="kahan" if maker == "momentum" else "nearest")
    advance(source, 1, 2)
    return copy.deepcopy(source.state_dict())


SAVED = {maker: saved(maker) for maker in MAKERS}

# ---------------------------------------------------------------------------------------------------------- tampering

TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "negative": lambda x: -x - 1,
    "one negative": lambda x: x.index_fill(0, torch.tensor([0]), -1e-30) if x.ndim and x.numel() else -x - 1,
    "NaN": lambda x: torch.full_like(x, float("nan")),
    "inf": lambda x: torch.full_like(x, float("inf")),
    "zeros": torch.zeros_like,
    "subnormal": lambda x: torch.full_like(x, 1e-41),
    "float64": lambda x: x.double(),
    "float32": lambda x: x.float(),
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
    "complex": lambda x: x.to(torch.complex64),
    "whole": lambda x: x.nan_to_num().to(torch.int64),
    "bool": lambda x: x.bool(),
    "float8": lambda x: x.to(torch.float8_e5m2),
    "longer": lambda x: torch.cat([x, x]) if x.ndim else x.reshape(1),
    "flat": lambda x: x.reshape(-1),
    "one axis more": lambda x: x[None],
    "expanded": lambda x: x.new_ones(()).expand(x.shape),
    "reversed": lambda x: (
        x.permute(tuple(reversed(range(x.ndim)))).contiguous().permute(tuple(reversed(range(x.ndim))))
    ),
    "negated view": torch._neg_view,
    "with a graph": lambda x: x.clone().requires_grad_() * 1.0 if x.is_floating_point() else x,
    "a Parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "of another class": lambda x: x.as_subclass(steps.SubClass),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "NumPy": lambda x: x.float().numpy(),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: float(x.float().sum()),
}
STEPS = numbers((0, 1, 2, 5, -1, 2.5, 2.0, float("nan"), float("inf"), 2**24 + 1, 2**31, 2**53, 2**63, 1e30, 10**400))


def _text(pair: tuple[str, int]) -> Hostile:
    """The text of a schedule or rule, spoiled."""
    text, how = pair
    kinds = [
        text[: how % (len(text) + 1)],
        text.replace(":", ": {", 1),
        text.replace('"kind"', '"Kind"', 1),
        text.replace("}", ', "more": 1}', 1),
        text.replace("0.", "-0.", 1),
        text.replace("0.5", "NaN", 1),
        text.replace("0.5", "1" + "0" * 400, 1),
        text[: how % len(text)] + "\x00" + text[how % len(text) :],
        '{"kind": "power", "base": ' * (how % 3000) + "1.0" + ', "exponent": 1.0}' * (how % 3000),
        text,
    ]
    spoiled = kinds[how % len(kinds)]
    return Hostile(repr(spoiled[:200]), spoiled)


PLAIN_TEXTS = [
    value
    for state_dict in SAVED.values()
    for value in state_dict["param_groups"][0].values()
    if isinstance(value, str) and value.startswith("{")
]
GROUP_VALUES = st.one_of(
    ANYTHING,
    numbers((0.1, 0.5, 0.9, 1.0, 0, 1, -1.0, float("nan"))),
    FLAGS,
    words(("nearest", "stochastic", "kahan", "skip", "propagate", "grad", "step", "param")),
    st.tuples(st.sampled_from(PLAIN_TEXTS), st.integers(0, 10_000)).map(_text),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs if len(path) < 4 else ():  # a value that was put there may be deep
        yield (*path, key)
        yield from places(item, (*path, key))


class Tampered:
    """A state dict that nobody saved. It prints what was changed: some of what it holds cannot be printed."""

    def __init__(self, maker: str, into: str, state_dict: Any, changes: list[Any]) -> None:
        self.maker, self.into, self.state_dict, self.changes = maker, into, state_dict, changes

    def __repr__(self) -> str:
        return f"{self.maker}, into a {self.into} one: {self.changes}"


_KEYS: list[Any] = [
    *("step", "v_row", "v", "exp_avg", "lr", "params", "param_names", "recipe", "betas", "mine", "", "0"),
    *(None, 0, 7, 1.5, True),
]
KEYS = st.sampled_from(_KEYS)


@st.composite
def tampered(draw: st.DrawFn) -> Tampered:
    """A state dict with up to three of its values changed, left out, renamed, or swapped with another."""
    maker = draw(st.sampled_from(list(MAKERS)))
    state_dict, changes = copy.deepcopy(SAVED[maker]), []
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        known = list(places(state_dict))
        if not known:
            break
        path = draw(st.sampled_from(known))
        holder = state_dict
        for key in path[:-1]:
            holder = holder[key]
        before = holder[path[-1]]
        what = draw(st.sampled_from(["other", "other", "other", "less", "renamed", "swapped", "more"]))
        if what == "less":
            del holder[path[-1]]
        elif what == "swapped":
            other = draw(st.sampled_from([place for place in known if len(place) == len(path)]))
            theirs = state_dict
            for key in other[:-1]:
                theirs = theirs[key]
            holder[path[-1]], theirs[other[-1]] = theirs[other[-1]], before
            path = (*path, *other)
        elif what == "renamed" and isinstance(holder, dict):
            holder[draw(KEYS)] = holder.pop(path[-1])
        elif what == "more" and isinstance(holder, dict):
            holder[draw(KEYS)] = before
        else:
            what, value = "other", _other(draw, path, before)
            holder[path[-1]], path = value.value, (*path, value)
        changes.append((what, path))
    return Tampered(maker, draw(st.sampled_from(["new", "mid-run"])), state_dict, changes)


def _other(draw: st.DrawFn, path: tuple[Any, ...], before: Any) -> Hostile:
    if path[-1] == "step":
        return draw(st.one_of(STEPS, ANYTHING))
    if isinstance(before, Tensor):
        name = draw(st.sampled_from(list(TENSORS)))
        with warnings.catch_warnings(), contextlib.suppress(RuntimeError):  # of a tensor that is another kind already
            warnings.simplefilter("ignore")
            return Hostile(name, TENSORS[name](before))
    if path[-1] in VALUES:
        return draw(st.one_of(VALUES[path[-1]].values, GROUP_VALUES))
    return draw(GROUP_VALUES)


# ------------------------------------------------------------------------------------------------------------- judging


def picture(value: Any, depth: int = 0) -> Any:
    """Nested containers with every tensor as its bits and everything else as itself: equal while nothing changes."""
    if isinstance(value, dict):
        return [(key, picture(item, depth + 1)) for key, item in value.items()]
    if type(value) in (list, tuple) and depth < 6 and len(value) < 100:
        return [picture(item, depth + 1) for item in value]
    if type(value) is Tensor and not value.is_meta and value.layout is torch.strided:
        return id(value), value.detach().resolve_neg().contiguous().view(
            torch.uint8
        ).tolist() if value.numel() and value.ndim else str(value)
    return id(value)


@cases(100, 5000)
@given(tampered())
def test_state_dicts(drawn: Tampered) -> None:
    state_dict, changes = drawn.state_dict, drawn.changes
    loaded = optimizer(drawn.maker)
    if drawn.into == "mid-run":
        advance(loaded, 1, 1)
    before, given = snapshot(loaded), picture(state_dict)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some layouts that it is asked to copy
            loaded.load_state_dict(state_dict)
    except (ValueError, TypeError) as error:
        if not str(error).startswith(TORCHS_OWN):
            assert_in_form(error)
        assert snapshot(loaded) == before
        assert picture(state_dict) == given
        if not changes:
            raise
        return
    assert picture(state_dict) == given
    again = loaded.state_dict()
    for group in again["param_groups"]:  # a user's own values in a group are theirs
        for key in group.keys() - SAVED[drawn.maker]["param_groups"][0].keys():
            del group[key]
    assert {type(leaf) for leaf in leaves(again)} <= {Tensor, bool, int, float, str, type(None)}
    torch.save(again, io.BytesIO())
    assert_in_range(loaded)
    assert_steps(loaded)
    assert picture(state_dict) == given, "a step has written to the state dict that was loaded"


def recipe_of(group: dict[str, Any]) -> Recipe:
    fields = {name: group[name] for name in FIELDS}
    lr = group["lr_schedule"] if group["lr_schedule"] is not None else group["lr"]
    return Recipe(**{**fields, "lr": float(lr) if isinstance(lr, Tensor) else lr})


def assert_in_range(loaded: Adafactor) -> None:
    """Whatever was loaded is what a run of the optimizer can have left behind."""
    for group in loaded.param_groups:
        recipe_of(group)
        for p in group["params"]:
            state = loaded.state.get(p, {})
            count = float(state.get("step", torch.zeros(())))
            assert count >= 0 and count.is_integer()
            for key, value in state.items():
                assert type(value) is Tensor and not value.is_complex() and not value.requires_grad
                assert key in ("step", "m", "compensation") or not (value < 0).any()


def assert_steps(loaded: Adafactor) -> None:
    """The next step is the oracle's, from what was loaded."""
    advance_from = 3
    rows: list[Any] = []
    for group in loaded.param_groups:
        names = group["param_names"]
        for name, p in zip(names, group["params"], strict=True):
            dtype = str(p.dtype).removeprefix("torch.")
            judge = Judge(
                recipe_of(group),
                dtype,
                name,
                len(rows),
                group["rounding"],
                group["seed"],
                -1.0 if group["maximize"] else 1.0,
            )
            rows.append((p, judge, steps.array(p), steps.arrays(loaded.state.get(p, {}))))
    advance(loaded, advance_from, advance_from)
    for p, judge, x, before in rows:
        if p.grad is not None:
            state = loaded.state[p]
            judge.check(x, steps.array(p.grad), before, steps.array(p), steps.arrays(state), steps.stored_in(state))
