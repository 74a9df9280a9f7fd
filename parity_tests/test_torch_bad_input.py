"""Bad input is refused by name when the optimizer is built, or at the step, and nothing has changed then."""

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adafactor_spec import FIELDS, Recipe, factoring, schedules
from adafactor_torch import Adafactor

from .torch_runs import advance, parameters, set_gradients, snapshot

NAN, INF = float("nan"), float("inf")


def message(argument: str, must: str, got: object, remedy: str = "") -> str:
    """The form of every refusal, as a regular expression; the remedy is what it begins with."""
    return "^" + re.escape(f"{argument} must be {must}, got {got!r}.") + (f" {re.escape(remedy)}" if remedy else "$")


def build(in_group: bool, **fields: Any) -> Adafactor:
    """An optimizer with these keywords, or with a group that has them."""
    return Adafactor([{"params": parameters(), **fields}]) if in_group else Adafactor(parameters(), **fields)


NUMBERS: list[tuple[str, Any, str, str]] = [
    ("lr", -0.1, "at least 0", ""),
    ("lr", NAN, "at least 0", ""),
    ("lr", INF, "at least 0", ""),
    ("lr", "0.1", "a number, a schedule or a function of t", ""),
    ("lr", True, "a number, a schedule or a function of t", ""),
    ("lr", schedules.inverse_sqrt, "a number or a schedule", "Call it: inverse_sqrt(...)."),
    ("eps1", -1e-30, "at least 1e-37", "Use a tiny number such as 1e-30."),
    ("eps1", 0, "at least 1e-37", "Use a tiny number such as 1e-30."),
    ("eps1", NAN, "at least 1e-37", "Use a tiny number such as 1e-30."),
    ("eps2", -1e-3, "at least 0", ""),
    ("eps2", NAN, "at least 0", ""),
    ("eps2", None, "a number", ""),
    ("max_parameter_scale", 0.0, "positive", ""),
    ("max_parameter_scale", NAN, "positive", ""),
    ("beta2", -0.8, "in [0, 1)", ""),
    ("beta2", 1.0, "in [0, 1)", ""),
    ("beta2", NAN, "in [0, 1)", ""),
    ("beta1", -0.1, "in [0, 1)", "None switches the first moment off."),
    ("beta1", 1, "in [0, 1)", "None switches the first moment off."),
    ("beta1", NAN, "in [0, 1)", "None switches the first moment off."),
    ("clipping_threshold", 0, "positive", "None switches clipping off."),
    ("clipping_threshold", -1.0, "positive", "None switches clipping off."),
    ("clipping_threshold", NAN, "positive", "None switches clipping off."),
    ("weight_decay", -0.1, "at least 0", ""),
    ("weight_decay", NAN, "at least 0", ""),
    ("relative_step", 1, "True or False", ""),
    ("amsgrad", None, "True or False", ""),
    ("maximize", "yes", "True or False", ""),
    ("eps1_mode", "flor", "one of 'add', 'floor'", "Did you mean 'floor'?"),
    ("momentum_of", "gradient", "one of 'grad', 'update', 'step'", "Did you mean 'grad'?"),
    ("momentum_rounding", "uses", "one of 'store', 'use', 'decay'", "Did you mean 'use'?"),
    ("weight_decay_by", "steps", "one of 'step', 'lr', 'one', 'grad'", "Did you mean 'step'?"),
    ("state_dtype", "float32", "one of None, 'param'", ""),
    ("momentum_dtype", "float8", "one of float64, float32, bfloat16, float16", ""),
    ("momentum_dtype", torch.int8, "one of float64, float32, bfloat16, float16", ""),
    ("factoring", True, "a factoring rule", "Use factoring.last_two"),
    ("factoring", factoring.largest_two, "a factoring rule", "Call it: largest_two(...)."),
]


@pytest.mark.parametrize(("argument", "value", "must", "remedy"), NUMBERS, ids=str)
@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
def test_a_bad_value_is_refused(argument: str, value: Any, must: str, remedy: str, in_group: bool) -> None:
    with pytest.raises(ValueError, match=message(argument, must, value, remedy)):
        build(in_group, **{argument: value})


@pytest.mark.parametrize("argument", ["eps1", "eps2", "beta1", "beta2", "clipping_threshold", "weight_decay"])
@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
def test_a_tensor_for_a_number_is_refused(argument: str, in_group: bool) -> None:
    """Its value would have to be read back at every step."""
    value = torch.tensor(0.5)
    with pytest.raises(ValueError, match=rf"^{argument} must be a number.*, got tensor\(0\.5000\)\. .*number"):
        build(in_group, **{argument: value})


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "scales": ({"eps2": 1.0, "max_parameter_scale": 0.5}, message("max_parameter_scale", "at least eps2 = 1.0", 0.5)),
    "decay first": (
        {"decay_before_scale": True, "weight_decay": 0.1},
        message(
            "weight_decay_by", "'lr', 'one' or a number with decay_before_scale=True", "step", "The decay comes before"
        ),
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
def test_fields_that_contradict_each_other_are_refused(case: str, in_group: bool) -> None:
    fields, text = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=text):
        build(in_group, **fields)


@pytest.mark.parametrize(
    ("recipe", "remedy"),
    [("papper", "'paper'"), ("adafactor-pytorch", "'adafactor_pytorch'"), ("Optax", "'optax'"), ("xyz", "")],
)
@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
def test_an_unknown_recipe_gets_the_nearest_one(recipe: str, remedy: str, in_group: bool) -> None:
    hint = rf"Did you mean {remedy}\?" if remedy else r"Call a function of adafactor_spec\.recipes"
    with pytest.raises(ValueError, match=rf"^recipe must be a Recipe or one of paper, .*, got '{recipe}'\. {hint}"):
        build(in_group, recipe=recipe)


@pytest.mark.parametrize("recipe", [None, 3, ["paper"], {"lr": 0.1}, Recipe], ids=repr)
def test_what_is_no_recipe_is_refused(recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"^recipe must be a Recipe or one of paper, .*, got .*\. "):
        Adafactor(parameters(), recipe=recipe)


KEYWORDS: dict[str, str] = {
    "betas": "Use beta1 and beta2.",
    "eps": "Use eps1 (added to g^2) and eps2 (the smallest parameter scale).",
    "d": "Use clipping_threshold.",
    "clip_threshold": "Use clipping_threshold.",
    "cliping_threshold": "Use clipping_threshold.",
    "beta2_decay": "Use beta2=schedules.power_decay(0.8) for -0.8.",
    "scale_parameter": "Use multiply_by_parameter_scale.",
    "ams_grad": "Use amsgrad.",
    "lr_decay_step": "Use lr=schedules.piecewise_constant(lr, boundaries, factor).",
    "learning_rate": "Use lr.",
}


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("in_group", [False, True], ids=["keyword", "group"])
def test_a_keyword_of_another_library_gets_its_translation(keyword: str, in_group: bool) -> None:
    with pytest.raises(TypeError, match=f"'{keyword}'. {re.escape(KEYWORDS[keyword])}$"):
        build(in_group, **{keyword: 0.9})


def test_an_unknown_keyword_gets_the_nearest_one() -> None:
    with pytest.raises(
        TypeError, match=r"^Adafactor\(\) has no argument 'weigth_decay'\. Did you mean 'weight_decay'\?"
    ):
        Adafactor(parameters(), weigth_decay=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'weight_decay_mask'\. Use parameter groups\."):
        Adafactor(parameters(), weight_decay_mask=None)  # type: ignore[call-arg]


def test_the_signature_is_explicit() -> None:
    names = list(inspect.signature(Adafactor).parameters)
    options = ["foreach", "fused", "capturable", "maximize", "rounding", "seed", "nonfinite", "telemetry"]
    assert names[:11] == ["params", "lr", "recipe", *options]
    assert set(names[11:]) == set(FIELDS) - {"lr"}


# ------------------------------------------------------------------------------------------------------ parameters


def test_a_rule_of_the_wrong_rank_names_the_parameter() -> None:
    named = [("stem.weight", torch.nn.Parameter(torch.ones(4, 3))), ("stem.bias", torch.nn.Parameter(torch.ones(4)))]
    text = r"^axis of the rule for parameter 'stem\.bias' with shape \(4,\) must be in \[-1, 1\), got 1\. .*by_name"
    with pytest.raises(ValueError, match=text):
        Adafactor(named, factoring=factoring.explicit((0,), (1,)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e5m2], ids=str)
def test_a_parameter_that_is_not_real_floating_point_is_named(dtype: torch.dtype) -> None:
    tensor = torch.ones(2).to(dtype)
    text = r"dtype of the parameter {} must be one of float64, float32, bfloat16, float16, got '{}'\."
    with pytest.raises(ValueError, match=text.format("'gate'", dtype)):
        Adafactor([("gate", tensor)])
    with pytest.raises(ValueError, match=text.format(r"of shape \(2,\)", dtype)):
        Adafactor([tensor])


def test_torchs_own_refusals_stay() -> None:
    first, second = parameters()[:2]
    with pytest.raises(ValueError, match="empty parameter list"):
        Adafactor([])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        Adafactor(first)
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        Adafactor([first, np.ones(2)])
    with pytest.raises(ValueError, match="non-leaf"):
        Adafactor([first * 2])
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        Adafactor([{"params": [first]}, {"params": [second, first]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        Adafactor([first, second, first])
    with pytest.raises(ValueError, match="with/without names"):
        Adafactor([("first", first), second])
    with pytest.raises(TypeError, match="ordered collections"):
        Adafactor([{"params": {first, second}}])


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ("text", TypeError, "param_group must be a dict"),
        ({}, ValueError, "param_group must be a dict with 'params', got {}."),
        ({"lr": 0.1}, ValueError, "param_group must be a dict with 'params', got {'lr': 0.1}."),
    ],
    ids=["text", "empty", "no params"],
)
def test_what_is_no_group_is_refused(group: Any, error: type[Exception], message: str) -> None:
    optimizer = Adafactor([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(error) as caught:
        optimizer.add_param_group(group)
    assert str(caught.value).startswith(message)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("p", ["w", None, 3, [torch.ones(2)]], ids=["text", "None", "number", "list"])
def test_step_param_of_no_parameter_is_refused(p: Any) -> None:
    with pytest.raises(ValueError, match=r"^p must be a parameter of this optimizer, got "):
        Adafactor([torch.nn.Parameter(torch.ones(2))]).step_param(p)


# ----------------------------------------------------------------------------------------------- refused gradients


def sparse(p: Tensor) -> None:
    p.grad = torch.ones_like(p).to_sparse()


def complex_(p: Tensor) -> None:
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch lets no real parameter have a complex gradient")
    p.grad_dtype = None
    p.grad = torch.ones_like(p, dtype=torch.complex64)


def of_another_shape(p: Tensor) -> None:
    p.grad = torch.ones_like(p)
    p.data = torch.ones(7)


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(sparse, "sparse"), (complex_, "complex"), (of_another_shape, r"shape .*got \(5,\)")],
    ids=["sparse", "complex", "shape"],
)
@pytest.mark.parametrize("before", [0, 2], ids=["first step", "third step"])
def test_a_refused_gradient_is_named_and_nothing_has_changed(
    before: int, spoil: Any, message: str, named: bool
) -> None:
    tensors = parameters()
    given: list[Any] = [(f"layer.{index}", p) for index, p in enumerate(tensors)] if named else tensors
    optimizer = Adafactor([{"params": given[:1]}, {"params": given[1:]}], beta1=0.9)
    advance(optimizer, 1, before)
    set_gradients(before + 1, tensors)
    spoil(tensors[1])
    start = snapshot(optimizer)
    with pytest.raises((RuntimeError, ValueError), match=message) as error:
        optimizer.step()
    assert ("'layer.1'" in str(error.value)) == named
    assert snapshot(optimizer) == start
    assert len(optimizer.state) == (len(tensors) if before else 0)
