"""`telemetry()` says what the oracle says of a step, by name, and nothing is read back to the host for it."""

from typing import Any

import numpy as np
import pytest
import torch

from adafactor_spec import Recipe, factoring, oracle, recipes, replace
from adafactor_spec.factoring import explicit
from adafactor_spec.factoring import plan as plan_for
from adafactor_torch import Adafactor

from .test_torch_numbers import NoReads
from .torch_runs import advance, all_parameters, frozen, gradient, parameters, set_gradients, snapshot, values

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHAPES = {"matrix": (4, 3), "stack": (3, 4, 5), "vectors": (2, 6), "scalar": ()}
RULE = factoring.by_name({"stack": explicit(1, 2, 0), "vectors": explicit((), (), 0)})
RECIPES = {
    "paper": replace(recipes.paper(), factoring=RULE),
    "decay before scale": Recipe(
        lr=0.1, weight_decay=0.3, weight_decay_by="lr", decay_before_scale=True, max_parameter_scale=0.9, factoring=RULE
    ),
    "amsgrad of averages": Recipe(lr=0.1, beta1=0.9, momentum_of="grad", amsgrad=True, debias=True, factoring=RULE),
    "momentum": Recipe(lr=0.1, beta1=0.9, clipping_threshold=0.3, relative_step=False, factoring=RULE),
    "no scale, no clipping": Recipe(
        lr=0.1, multiply_by_parameter_scale=False, clipping_threshold=None, weight_decay=0.1, factoring=RULE
    ),
    "L2": Recipe(lr=0.1, weight_decay=0.2, weight_decay_by="grad", eps1=1e-3, eps1_mode="floor", factoring=RULE),
}
# A float64 number, told in float32: half a unit in the last place, and the other half for what float64 rounds.
TOLD = 2.0**-23
NUMBERS = ("step_size", "update_rms", "clip_factor", "parameter_rms")


def expected(recipe: Recipe, name: str, p: Any, g: Any, state: oracle.State) -> dict[str, Any]:
    """The numbers of one step. u is what the oracle subtracts where nothing scales, clips or decays it."""
    plan, own = plan_for(recipe.factoring, p.shape, name), recipe.for_name(name)
    bare: dict[str, Any] = {"lr": 1.0, "relative_step": False, "multiply_by_parameter_scale": False}
    bare |= {"clipping_threshold": None, "decay_before_scale": False}
    bare |= {} if own.weight_decay_by == "grad" else {"weight_decay": None}
    bare |= {} if own.momentum_of == "grad" else {"beta1": None}
    u = p - oracle.step(replace(own, **bare), p, g, state, name=name)[0]
    p_rms, u_rms = (oracle.rms(x, plan.rms_axes) for x in (p, u))
    now = own.at(state.step + 1)
    scale = p_rms * abs(1.0 - now.weight_decay) if own.decay_before_scale else p_rms
    scale = oracle.parameter_scale(scale, own.eps2, own.max_parameter_scale)
    clip = np.maximum(u_rms / (own.clipping_threshold or np.inf), 1.0)
    alpha = now.rho * (scale if own.multiply_by_parameter_scale else np.ones_like(p_rms))
    shape = [p.shape[axis] for axis in plan.batch]
    return {of: x.reshape(shape) for of, x in zip(NUMBERS, (alpha, u_rms, clip, p_rms), strict=True)}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", RECIPES)
def test_it_is_what_the_oracle_says(case: str, path: str) -> None:
    recipe, index = RECIPES[case], {name: i for i, name in enumerate(SHAPES)}
    named = {name: torch.nn.Parameter(torch.tensor(values(shape, index[name]))) for name, shape in SHAPES.items()}
    optimizer = Adafactor(named.items(), recipe=recipe, telemetry=True, **PATHS[path])
    weights = {name: values(shape, index[name]) for name, shape in SHAPES.items()}
    states = {name: oracle.init(recipe, p, name=name) for name, p in weights.items()}
    for t in range(1, 4):
        advance(optimizer, t, t)
        told = optimizer.telemetry()
        assert list(told) == list(SHAPES)
        for name, p in weights.items():
            g = gradient(t, index[name], SHAPES[name])
            numbers = expected(recipe, name, p, g, states[name])
            assert set(told[name]) == {*numbers, "skipped"}
            for of, number in numbers.items():
                found = told[name][of]
                assert (found.dtype, tuple(found.shape)) == (torch.float32, number.shape), (name, of)
                assert np.allclose(found.double().numpy(), number, rtol=TOLD, atol=0.0), (name, of, t)
            weights[name], states[name] = oracle.step(recipe, p, g, states[name], name=name)


@pytest.mark.parametrize("path", PATHS)
def test_the_scale_of_a_compensated_weight_has_the_compensation_in_it(path: str) -> None:
    (p,) = parameters(torch.bfloat16, [(8, 16)])
    optimizer = Adafactor([p], rounding="kahan", telemetry=True, **PATHS[path])
    advance(optimizer, 1, 2)
    whole = p.detach().double() + optimizer.state[p]["compensation"].double()
    assert bool((whole != p).any())
    advance(optimizer, 3, 3)
    exact = float(whole.square().mean().sqrt())
    found = float(optimizer.telemetry()["0.0"]["parameter_rms"])
    assert abs(found - exact) <= 8 * 2.0**-24 * exact  # a float32 sum of 128 squares by halves, and a root


@pytest.mark.parametrize("path", ["plain", "compiled"])
def test_asking_changes_nothing_of_the_step(path: str) -> None:
    """Bit for bit; the eager path takes another order of the same arithmetic then."""
    asked, other = (Adafactor(parameters(), lr=0.1, telemetry=on, **PATHS[path]) for on in (True, False))
    for optimizer in (asked, other):
        advance(optimizer, 1, 3)
    assert snapshot(asked)[:2] == snapshot(other)[:2]
    assert other.telemetry() == {}


def test_only_groups_that_ask_are_told_of() -> None:
    first, second, *rest = parameters()
    groups = [{"params": [first]}, {"params": [second, *rest], "telemetry": True}]
    optimizer = Adafactor(groups)
    assert optimizer.telemetry() == {}
    set_gradients(1, [first, second])
    optimizer.step()
    assert list(optimizer.telemetry()) == ["1.0"], "the others have not been stepped"


def test_a_name_that_two_groups_have_is_told_apart() -> None:
    groups = [{"params": [("bias", p)]} for p in parameters()[:2]]
    optimizer = Adafactor(groups, telemetry=True)
    advance(optimizer, 1, 1)
    assert list(optimizer.telemetry()) == ["bias", "1.bias"]


@pytest.mark.parametrize("path", PATHS)
def test_step_param_tells_of_its_parameter_only(path: str) -> None:
    one, all_at_once = (Adafactor(parameters(), telemetry=True, **PATHS[path]) for _ in range(2))
    advance(all_at_once, 1, 1)
    set_gradients(1, all_parameters(one))
    for index, p in enumerate(all_parameters(one)):
        one.step_param(p)
        assert list(one.telemetry()) == [f"0.{i}" for i in range(index + 1)]
    assert frozen(one.telemetry()) == frozen(all_at_once.telemetry())


@pytest.mark.parametrize("path", PATHS)
def test_a_step_that_is_left_out_tells_nothing_new(path: str) -> None:
    optimizer = Adafactor(parameters(), nonfinite="skip", telemetry=True, **PATHS[path])
    first, second, *_ = all_parameters(optimizer)
    second.grad = torch.full_like(second, torch.nan)
    optimizer.step()
    told = optimizer.telemetry()["0.1"]
    assert {of: float(told[of]) for of in NUMBERS} == dict.fromkeys(NUMBERS, 0.0)
    assert int(told["skipped"]) == 1
    advance(optimizer, 1, 1)
    before = frozen(optimizer.telemetry())
    set_gradients(2, [first, second])
    second.grad.fill_(torch.inf)
    optimizer.step()
    after = frozen(optimizer.telemetry())
    assert after["0.0"] != before["0.0"]
    assert after["0.1"] | {"skipped": None} == before["0.1"] | {"skipped": None}
    assert [int(of["skipped"]) for of in optimizer.telemetry().values()] == [0, 2, 0, 0]


@pytest.mark.parametrize("path", ["plain", "eager"])
def test_nothing_is_read_back(path: str) -> None:
    optimizer = Adafactor(parameters(), telemetry=True, **PATHS[path])
    for t in range(1, 4):
        set_gradients(t, all_parameters(optimizer))
        with NoReads():
            optimizer.step()
            optimizer.telemetry()


def test_the_numbers_stay_where_they_are() -> None:
    """A CUDA graph writes to the addresses that it has seen."""
    optimizer = Adafactor(parameters(), telemetry=True)
    advance(optimizer, 1, 1)
    before = {name: {of: x.data_ptr() for of, x in told.items()} for name, told in optimizer.telemetry().items()}
    advance(optimizer, 2, 2)
    assert {n: {of: x.data_ptr() for of, x in told.items()} for n, told in optimizer.telemetry().items()} == before


def test_a_rule_that_is_changed_changes_the_shape_at_the_next_step() -> None:
    p = torch.nn.Parameter(torch.ones(3, 4, 5))
    optimizer = Adafactor([p], telemetry=True)
    advance(optimizer, 1, 1)
    optimizer.param_groups[0]["factoring"] = explicit(1, 2, 0)
    assert optimizer.telemetry()["0.0"]["step_size"].shape == ()
    advance(optimizer, 2, 2)
    assert optimizer.telemetry()["0.0"]["step_size"].shape == (3,)
