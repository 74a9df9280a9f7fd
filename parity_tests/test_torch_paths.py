"""Every path computes what the plain one does, for every recipe, dtype, layout and option."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adafactor_spec import Recipe, factoring
from adafactor_torch import Adafactor
from adafactor_torch._backends.cpp import build as _build
from adafactor_torch._backends.eager import backend as _eager_backend

from .profiles import examples
from .random_recipes import any_recipe, problems
from .torch_runs import FLOAT64, GAPS, float32_budget, snapshot, values

PLAIN: dict[str, Any] = {"foreach": False, "fused": False}
PATHS: dict[str, dict[str, Any]] = {"eager": {}, "small blocks": {}, "compiled": {"fused": True}}
FUZZ = settings(max_examples=examples(50), suppress_health_check=list(HealthCheck))

# Large enough that the compiled path splits them (65,536 elements), and of every kind: tall, wide, kernels, stacks.
SPLIT = {
    "tall": (1100, 70), "row": (1, 70_000), "column": (70_000, 1), "wide": (70, 1100), "kernel": (40, 30, 8, 9),
    "kernels": (90, 90, 3, 3), "points": (300, 250, 1, 1),
    "vector": (70_000,), "folded": (70 * 1024,), "stack": (3, 160, 170), "scalar": (), "empty": (0, 3),
}  # fmt: skip
BATCHES = {
    "stack": factoring.explicit(1, 2, 0),
    "kernel": factoring.explicit((0, 2), (1, 3)),
    "tall": factoring.explicit((), (), 0),
}
RECIPES = {
    "paper": Recipe(),
    "ascent and decay": Recipe(beta1=0.9, weight_decay=0.1, debias=True),
    "amsgrad": Recipe(beta1=0.9, momentum_of="grad", amsgrad=True, weight_decay=0.1, weight_decay_by="grad"),
    "floor": Recipe(eps1=1e-3, eps1_mode="floor", beta1=0.5, momentum_of="step", weight_decay_by="one"),
    "batch": Recipe(factoring=factoring.by_name(BATCHES)),
    "ascent in batches": Recipe(factoring=factoring.by_name(BATCHES), beta1=0.9),
    "debiased": Recipe(beta1=0.9, debias=True),
    "narrow momentum": Recipe(beta1=0.9, momentum_dtype="float32"),
    "unfactored": Recipe(factoring=factoring.no_factoring, clipping_threshold=None, multiply_by_parameter_scale=False),
    "as_matrix": Recipe(factoring=factoring.as_matrix, max_parameter_scale=0.5),
}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keywords of a path; "small blocks" is the eager one with everything cut and stacked."""
    if request.param == "small blocks":
        monkeypatch.setattr(_eager_backend, "BLOCK", 40)
        monkeypatch.setattr(_eager_backend, "SMALL", 16)
    return PATHS[request.param]


def run(problem: tuple[Any, Any], dtype: torch.dtype, recipe: Recipe, **options: Any) -> Adafactor:
    """The optimizer after a step for each of the gradients of a problem, (parameters, gradients)."""
    params, grads = problem
    tensors = {name: torch.nn.Parameter(torch.tensor(value).to(dtype)) for name, value in params.items()}
    optimizer = Adafactor(tensors.items(), recipe=recipe, **options)
    for now in grads:
        for name, p in tensors.items():
            p.grad = torch.tensor(now[name]).to(dtype)
        optimizer.step()
    return optimizer


def pairs(one: Adafactor, other: Adafactor) -> Iterator[tuple[str, Any, Any]]:
    """(what it is, float64 array of one, of the other) of every parameter and state tensor."""
    group, twin = one.param_groups[0], other.param_groups[0]
    for name, p, q in zip(group["param_names"], group["params"], twin["params"], strict=True):
        for entry, x, y in [("p", p, q)] + [(k, v, other.state[q][k]) for k, v in one.state[p].items()]:
            yield f"{entry} of {name}", x.detach().double().numpy(), y.detach().double().numpy()


def assert_same(one: Adafactor, other: Adafactor, relative: float) -> None:
    """Parameters and state within `relative` of the largest element."""
    for what, x, y in pairs(one, other):
        assert np.array_equal(np.isfinite(x), np.isfinite(y)), what
        deviation = float(np.max(np.abs(x - y), initial=0.0))
        assert deviation <= relative * float(np.max(np.abs(x), initial=0.0)), (what, deviation)


def large(steps: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parameters of the shapes of SPLIT and gradients that vary over the steps."""
    params = {name: 0.3 * values(shape, 1) for name, shape in SPLIT.items()}
    return params, [{name: 10.0**t * values(shape, t) for name, shape in SPLIT.items()} for t in range(2, steps + 2)]


@FUZZ
@given(recipe=any_recipe(), problem=problems(), maximize=st.booleans())
def test_any_recipe_in_float64(path: dict[str, Any], recipe: Recipe, problem: Any, maximize: bool) -> None:
    plain = run(problem, torch.float64, recipe, maximize=maximize, **PLAIN)
    assert_same(plain, run(problem, torch.float64, recipe, maximize=maximize, **path), FLOAT64)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_tensors_that_are_taken_apart(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eager_backend, "BLOCK", 20_000)
    problem = large()
    options = {"maximize": name.startswith("ascent")}
    plain = run(problem, torch.float64, RECIPES[name], **options, **PLAIN)
    assert_same(plain, run(problem, torch.float64, RECIPES[name], **options, **PATHS[kind]), FLOAT64)


@pytest.mark.parametrize("exponent", [-18, 0, 18])
@pytest.mark.parametrize("shape", [(60, 40), (7,), (2, 3, 500), (40, 3, 3, 3)], ids=str)
def test_float32_is_as_near_as_float32_is(path: dict[str, Any], shape: tuple[int, ...], exponent: int) -> None:
    assert_near_in_float32(path, shape, exponent)


@pytest.mark.parametrize("exponent", [-18, 0, 18])
@pytest.mark.parametrize("shape", [(300, 400), (70_000, 1), (1, 70_000), (70_000,)], ids=str)
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_float32_in_parts(kind: str, shape: tuple[int, ...], exponent: int) -> None:
    assert_near_in_float32(PATHS[kind], shape, exponent)


def assert_near_in_float32(path: dict[str, Any], shape: tuple[int, ...], exponent: int) -> None:
    """Three float32 steps within the budget around the float64 oracle, with gradients of size 10^exponent."""
    param = values(shape, 0).astype(np.float32).astype(np.float64)
    grads = [(values(shape, t) * 10.0**exponent).astype(np.float32).astype(np.float64) for t in range(1, 4)]
    exact, budget = float32_budget(Recipe(), param, grads)
    optimizer = run(({"p": param}, [{"p": grad} for grad in grads]), torch.float32, Recipe(), **path)
    (p,) = optimizer.param_groups[0]["params"]
    assert np.max(np.abs(p.detach().double().numpy() - exact)) <= budget


# A float32 step differs between paths by a few 2^-24 of itself, and a bfloat16 spacing is 2^-8: for 2^-16 of all values
# times a few, that decides which neighbour is taken. 2^-9 leaves two orders.
TURNED = 2.0**-9


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_sixteen_bits(kind: str, dtype: torch.dtype, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_eager_backend, "BLOCK", 20_000)
    params, grads = large(1)
    for recipe in (Recipe(weight_decay=0.1), RECIPES["batch"]):
        options = {"rounding": rounding, "seed": 7}
        plain = run((params, grads), dtype, recipe, **options, **PLAIN)
        other = run((params, grads), dtype, recipe, **options, **PATHS[kind])
        for what, x, y in pairs(plain, other):
            if what.startswith("p of"):
                ulp = np.ldexp(torch.finfo(dtype).eps, np.frexp(x)[1])
                near_zero = GAPS * 2.0**-24 * float(np.max(np.abs(params[what[5:]]), initial=0.0))
                assert np.all(np.abs(x - y) <= ulp + near_zero), what
                assert np.sum(x != y) <= max(TURNED * x.size, 1), what


def test_layouts(path: dict[str, Any]) -> None:
    """A parameter keeps its strides, whatever its gradient's are; what has no canonical view goes through a copy."""

    def tensors() -> list[torch.nn.Parameter]:
        kernel = torch.tensor(values((6, 5, 3, 4), 0)).to(memory_format=torch.channels_last)
        matrix, sliced = torch.tensor(values((9, 7), 1)).t(), torch.tensor(values((6, 20), 2))[:, ::2]
        return [torch.nn.Parameter(x) for x in (kernel, matrix, sliced)]

    rule = factoring.by_name({"0": factoring.explicit((0, 2), (1, 3)), "1": factoring.as_matrix})
    both = []
    for options in (PLAIN, path):
        ps = tensors()
        where = [(p.stride(), p.data_ptr()) for p in ps]
        optimizer = Adafactor([(str(i), p) for i, p in enumerate(ps)], factoring=rule, beta1=0.9, **options)
        for t in range(1, 4):
            for i, p in enumerate(ps):
                grad = torch.tensor(values(tuple(p.shape), 10 * t + i))
                p.grad = grad if t % 2 else torch.empty_like(p).copy_(grad)
            optimizer.step()
        assert where == [(p.stride(), p.data_ptr()) for p in ps]
        both.append(optimizer)
    plain, other = both
    assert_same(plain, other, FLOAT64)


def test_the_number_of_threads_does_not_matter_to_the_compiled_path() -> None:
    problem, before, found = large(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(snapshot(run(problem, torch.float32, RECIPES["paper"], fused=True)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_without_a_compiler_fused_steps_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = large(1)
    eager = snapshot(run(problem, torch.float32, RECIPES["paper"]))
    monkeypatch.setenv("CXX", "no-such-compiler")
    _build.found.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no CPU kernels .* no-such-compiler could not be run.* name one in CXX"):
            fused = run(problem, torch.float32, RECIPES["paper"], fused=True)
    finally:
        _build.found.cache_clear()
        _build.warned.clear()
    assert snapshot(fused)[:2] == eager[:2]


def test_a_write_that_torch_does_not_see_is_noticed_once() -> None:
    """The compiled step after an unseen write uses the RMS(p) that it has carried, warns, and carries none any more."""
    p = torch.nn.Parameter(torch.ones(300, 200))
    optimizer = Adafactor([p], fused=True)
    moved = []
    for t in range(5):
        if t in (2, 3):
            p.data.mul_(4.0)
        elif t == 4:
            with torch.no_grad():
                p.mul_(0.25)
        p.grad = torch.ones_like(p)
        before = p.detach().clone()
        if t == 2:
            with pytest.warns(UserWarning, match=r"was written through \.data"):
                optimizer.step()
        else:
            optimizer.step()
        moved.append(float((before - p.detach()).mean() / before.mean()))
    assert moved == pytest.approx([1e-2, 1e-2, 2.5e-3, 1e-2, 1e-2], rel=1e-3)


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_a_nan_or_another_number_of_threads_is_no_write(kind: str) -> None:
    before = torch.get_num_threads()
    p = torch.nn.Parameter(torch.ones(300, 400))
    optimizer = Adafactor([p, bad := torch.nn.Parameter(torch.ones(4, 3))], **PATHS[kind])
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            p.grad, bad.grad = torch.ones_like(p), torch.full_like(bad, float("nan"))
            optimizer.step()  # warnings are errors here
    finally:
        torch.set_num_threads(before)
    assert torch.isfinite(p).all() and torch.isnan(bad).all()


@pytest.mark.parametrize("path", [PLAIN, {}, {"fused": True}], ids=["plain", "eager", "compiled"])
def test_what_a_kernel_could_not_read_is_refused_and_nothing_has_changed(path: dict[str, Any]) -> None:
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = Adafactor([p], **path)
    p.grad = torch.ones(4, 3)
    optimizer.step()
    before = snapshot(optimizer)
    kept = optimizer.state[p]["v_row"]
    optimizer.state[p]["v_row"] = kept.to("meta")
    with pytest.raises(ValueError, match=r"^device of the state 'v_row' .* must be cpu, got 'meta'"):
        optimizer.step()
    optimizer.state[p]["v_row"] = kept
    if hasattr(p, "grad_dtype"):
        p.grad_dtype = None
        p.grad = torch.ones(4, 3, dtype=torch.int32)
        with pytest.raises(
            ValueError, match=r"^dtype of the gradient .* must be one of float64, .*, got 'torch.int32'"
        ):
            optimizer.step()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("kind", ["negated", "expanded"])
def test_a_parameter_whose_memory_is_not_its_own_is_refused(kind: str) -> None:
    negated = torch.complex(torch.zeros(4), -torch.ones(4)).conj().imag
    x = negated if kind == "negated" else torch.ones(1, 1).expand(4, 4)
    with pytest.raises(ValueError, match=r"^memory of the parameter of shape .* must be one number for each element"):
        Adafactor([torch.nn.Parameter(x)])
