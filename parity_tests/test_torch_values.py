"""What may stand in a parameter group: every value is plain there or refused, and a state dict has plain ones only."""

import inspect
import io
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

from adafactor_spec import FIELDS, Recipe, per_name, schedules
from adafactor_torch import Adafactor

from .odd_values import FRACTIONS, NO_FIELD, NO_NUMBER, WHOLE, Word, in_form
from .torch_runs import advance, parameters, snapshot

OPTIONS = ("maximize", "foreach", "fused", "capturable", "rounding", "seed", "nonfinite", "telemetry")
NUMBERS = {key: value for of in (FRACTIONS, WHOLE) for key, (value, _) in of.items()}
ODD: dict[str, Any] = NO_NUMBER | NO_FIELD | NUMBERS
ODD |= {"2^31": 2**31, "2^63": 2**63, "1e300": 1e300, "-0.0": -0.0, "infinity": math.inf, "None": None, "-1": -1}
ODD |= {"tensor": torch.tensor(0.25), "three": torch.ones(3), "flag": torch.tensor(True), "JAX's": jnp.float32(0.25)}
ODD |= {"NaN tensor": torch.tensor(math.nan), "complex tensor": torch.tensor(1j), "word": Word("nearest")}
ODD |= {"meta tensor": torch.tensor(0.25, device="meta"), "JAX's below 0": jnp.float32(-1.0)}


def small() -> list[Tensor]:
    return [torch.nn.Parameter(torch.full(shape, 0.5)) for shape in ((4, 3), (3,))]


def in_a_group(**fields: Any) -> Adafactor:
    return Adafactor([{"params": small(), **fields}])


def written_later(**fields: Any) -> Adafactor:
    optimizer = Adafactor(small())
    step_twice(optimizer)
    optimizer.param_groups[0].update(fields)
    return optimizer


def step_twice(optimizer: Adafactor) -> None:
    for _ in range(2):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()


def loaded(optimizer: Adafactor) -> dict[str, Any]:
    """The state dict as it comes out of a file from which nothing but tensors and plain values is read."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@pytest.mark.parametrize("make", [in_a_group, written_later])
@pytest.mark.parametrize("key", [*FIELDS, *OPTIONS])
def test_every_value_is_stepped_with_and_saved_or_refused(key: str, make: Callable[..., Adafactor]) -> None:
    for name, value in ODD.items():
        try:
            optimizer = make(**{key: value})
            step_twice(optimizer)
            again = Adafactor([{"params": group["params"], key: value} for group in optimizer.param_groups])
            again.load_state_dict(loaded(optimizer))
        except ValueError as error:
            if in_form(error):
                continue
            raise
        assert all(torch.isfinite(p).all() for p in optimizer.param_groups[0]["params"]) or key == "weight_decay"
        assert type(optimizer.param_groups[0][key]) in (int, float, bool, str, type(None), Tensor), name


def test_the_keywords_are_those_of_a_group() -> None:
    assert set(inspect.signature(Adafactor).parameters) == {"params", "recipe", *FIELDS, *OPTIONS}


PLAIN: dict[str, tuple[Any, Any]] = {
    "seed": (np.random.default_rng(0).integers(2**32), int(np.random.default_rng(0).integers(2**32))),
    "maximize": (np.bool_(True), True),
    "telemetry": (np.bool_(True), True),
    "foreach": (np.bool_(False), False),
    "rounding": (np.str_("stochastic"), "stochastic"),
    "nonfinite": (Word("skip"), "skip"),
    "lr": (np.float32(0.25), 0.25),
    "beta1": (np.array(0.5), 0.5),
    "weight_decay": (jnp.float32(0.25), 0.25),
    "eps1_mode": (np.str_("floor"), "floor"),
    "momentum_dtype": (np.str_("bfloat16"), "bfloat16"),
    "amsgrad": (np.bool_(True), True),
}


@pytest.mark.parametrize("make", [in_a_group, written_later])
@pytest.mark.parametrize("key", PLAIN)
def test_a_value_of_numpys_is_what_it_is_in_python(key: str, make: Callable[..., Adafactor]) -> None:
    value, plain = PLAIN[key]
    optimizer, expected = make(**{key: value}), make(**{key: plain})
    assert loaded(optimizer)["param_groups"] == loaded(expected)["param_groups"]  # before the step, too
    assert optimizer.param_groups[0][key] == plain and type(optimizer.param_groups[0][key]) is type(plain)
    for one in (optimizer, expected):
        advance(one, 1, 3)
    assert snapshot(optimizer) == snapshot(expected)
    again = make(**{key: value})
    again.load_state_dict(loaded(optimizer))


def test_a_scheduler_that_writes_numbers_of_numpys() -> None:
    optimizer = Adafactor(small(), lr=np.float64(0.5), relative_step=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.float64(0.5) ** epoch)
    advance(optimizer, 1, 1)
    scheduler.step()
    assert type(optimizer.param_groups[0]["lr"]) is np.float64
    group = loaded(optimizer)["param_groups"][0]
    assert (group["lr"], group["initial_lr"]) == (0.25, 0.5)


def test_a_key_of_the_users_own() -> None:
    values = {
        "number": np.float32(0.25),
        "count": np.int64(3),
        "flag": np.True_,
        "word": np.str_("a"),
    }
    optimizer = Adafactor([{"params": small(), **{f"my_{key}": value for key, value in values.items()}}])
    group = loaded(optimizer)["param_groups"][0]
    assert [group[f"my_{key}"] for key in values] == [0.25, 3, True, "a"]


def test_names_of_parameters() -> None:
    optimizer = Adafactor([(np.str_("weight"), small()[0]), (Word("bias"), small()[1])])
    assert loaded(optimizer)["param_groups"][0]["param_names"] == ["weight", "bias"]
    for name in (3, None, b"weight"):
        with pytest.raises(ValueError, match=r"^name of a parameter must be a string, got ") as caught:
            Adafactor([(name, small()[0])])
        assert in_form(caught.value)


def test_the_learning_rate_in_a_tensor() -> None:
    for lr in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(1), torch.tensor(0.25, requires_grad=True)):
        optimizer = Adafactor(small(), lr=lr)
        advance(optimizer, 1, 2)
        assert optimizer.param_groups[0]["lr"] is lr
    for lr in (torch.ones(3), torch.tensor(True), torch.tensor(1j), torch.tensor(0.25, device="meta")):
        for make in (in_a_group, written_later):
            with pytest.raises(ValueError, match=r"^lr must be a number or a tensor with one, got tensor") as caught:
                advance(make(lr=lr), 1, 1)
            assert in_form(caught.value)


LATER: dict[str, Any] = {
    "None": None,
    "a word": "0.1",
    "an array": np.ones(3),
    "complex": 1j,
    "too large": 10**400,
    "below 0": -1.0,
    "NaN": math.nan,
    "infinite": math.inf,
}


@pytest.mark.parametrize("field", ["lr", "beta1", "beta2", "weight_decay"])
@pytest.mark.parametrize("foreach", [None, False])
def test_a_function_that_gives_no_number_later_is_refused_and_nothing_has_changed(field: str, foreach: Any) -> None:
    for name, value in LATER.items():
        fields: dict[str, Any] = {field: lambda t, value=value: 0.1 if t < 3 else value}
        optimizer = Adafactor(small(), foreach=foreach, **fields)
        advance(optimizer, 1, 2)
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=rf"^{field} at t = 3 must be ") as caught:
            advance(optimizer, 3, 3)
        assert in_form(caught.value), name
        assert snapshot(optimizer) == before


def test_who_asks_an_option_first_is_refused_in_form() -> None:
    """A GradScaler asks whether the optimizer unscales before a step looks at the options."""
    for ask in (
        lambda optimizer: optimizer._step_supports_amp_scaling,
        lambda optimizer: optimizer.telemetry(),
        lambda optimizer: optimizer.state_dict(),
    ):
        for key in ("fused", "capturable", "telemetry", "rounding"):
            with pytest.raises(ValueError, match=rf"^{key} must be ") as caught:
                ask(written_later(**{key: torch.ones(2)}))
            assert in_form(caught.value)


def test_a_refused_group_leaves_no_trace() -> None:
    optimizer = Adafactor(parameters())
    before = pickle.dumps(optimizer.param_groups)
    for key, value in {"seed": 2**32, "eps1": np.array(-1.0), "fused": torch.ones(2)}.items():
        with pytest.raises(ValueError, match=f"^{key} must be"):
            optimizer.add_param_group({"params": small(), key: value})
    assert pickle.dumps(optimizer.param_groups) == before


def test_a_schedule_of_numpys_numbers_is_saved() -> None:
    numbers: Any = np.float32(0.25), np.array([2, 3]), np.float64(0.5)
    lr = schedules.piecewise_constant(*numbers)
    optimizer = Adafactor(small(), lr=lr)
    advance(optimizer, 1, 2)
    again = Adafactor(small(), lr=0.1)
    again.load_state_dict(loaded(optimizer))
    assert again.param_groups[0]["lr_schedule"] == schedules.piecewise_constant(0.25, (2, 3), 0.5)
    assert Recipe(lr=lr) == Recipe(lr=again.param_groups[0]["lr_schedule"])


def test_a_value_by_name_is_checked_whatever_equals_it() -> None:
    """A fraction of 0 equals the 0.0 that another group had before."""
    of_zero, of_fraction = (
        {"params": [("a", small()[0])], "weight_decay": per_name({".*": zero})} for zero in (0.0, Fraction(0))
    )
    Adafactor([of_zero])
    with pytest.raises(ValueError, match=r"^weight_decay must be a number"):
        Adafactor([of_fraction])
