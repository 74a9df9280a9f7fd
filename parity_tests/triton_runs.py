"""Steps by the Triton kernels, and the oracle's answers to them: a pytest plugin with what the tests of both need.

Without a CUDA device the kernels run in Triton's interpreter, which TRITON_INTERPRET=1 must ask for before anything
imports Triton: `test_torch_triton.py` runs `triton_numbers.py` and `triton_contract.py` in processes of their own.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adafactor_spec import Numbers, Recipe, factoring, oracle, rounding_key, schedules
from adafactor_torch._backends.cpp.backend import CppBackend
from adafactor_torch._backends.triton import TritonBackend
from adafactor_torch._backends.triton.launch_group import step
from adafactor_torch._param_groups import numbers_of
from adafactor_torch._task.matrix_view import matrix_view
from adafactor_torch._task.task import FLOATS, ParamConfig, Task
from parity_tests.torch_runs import FLOAT64, Array, Shape, bits, gradient, values

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = 7
DONE = 2**24 + 1  # steps that are counted before the first one here: float32 has no such number
SHAPES: tuple[Shape, ...] = ((4, 6), (5,), (), (0, 3), (1, 7), (7, 1), (3, 4, 5), (3, 2, 3, 3), (1500,), (70, 300))
FEW: tuple[Shape, ...] = ((4, 6), (5,), (3, 2, 3, 3))  # a program takes the interpreter some milliseconds

MOMENT: dict[str, Any] = {"beta1": 0.9, "debias": True}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "floor": {"eps1": 0.3, "eps1_mode": "floor"},
    "amsgrad": {"amsgrad": True, "beta2": schedules.adam_decay(0.99), "eps1": 1e-3},
    "amsgrad with a floor": {"amsgrad": True, "eps1": 0.3, "eps1_mode": "floor", "beta2": 0.9},
    "no clipping": {"clipping_threshold": None},
    "infinite threshold": {"clipping_threshold": float("inf")},
    "no scale": {"multiply_by_parameter_scale": False, "relative_step": False},
    "scale between": {"max_parameter_scale": 0.5, "eps2": 0.4},
    "average of gradients": {**MOMENT, "momentum_of": "grad"},
    "average of updates": {**MOMENT, "momentum_of": "update"},
    "average of steps": {**MOMENT, "momentum_of": "step", "debias": False},
    "gradients and amsgrad": {**MOMENT, "momentum_of": "grad", "amsgrad": True, "beta2": 0.9},
    "bfloat16 average, stored": {**MOMENT, "momentum_dtype": "bfloat16"},
    "bfloat16 average, used": {**MOMENT, "momentum_dtype": "bfloat16", "momentum_rounding": "use"},
    "float16 average, near": {"beta1": 0.3, "momentum_dtype": "float16", "momentum_rounding": "use"},
    "float16 average, decayed": {**MOMENT, "momentum_dtype": "float16", "momentum_rounding": "decay"},
    "float32 average, decayed": {**MOMENT, "momentum_dtype": "float32", "momentum_rounding": "decay"},
    "decay by step": {"weight_decay": 0.1},
    "decay by lr": {"weight_decay": 0.1, "weight_decay_by": "lr"},
    "decay by one": {"weight_decay": 0.1, "weight_decay_by": "one"},
    "decay by lr^2": {"weight_decay": 0.1, "weight_decay_by": 2},
    "decay of gradients": {"weight_decay": 0.1, "weight_decay_by": "grad"},
    "decay before scale": {"weight_decay": 0.1, "weight_decay_by": "one", "decay_before_scale": True},
    "as_matrix": {"factoring": factoring.as_matrix},
    "largest two": {"factoring": factoring.largest_two(2, ties="first")},
    "leading two": {"factoring": factoring.leading_or_last_two(2)},
    "not factored": {"factoring": factoring.no_factoring},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The interpreter's NumPy warns of what a masked element or an infinity computes, and a GPU does not."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fused=True` on the CPU takes the Triton kernels in place of the C++."""
    monkeypatch.setattr(CppBackend, "why_not", lambda *_: "Triton is tested")
    monkeypatch.setattr(TritonBackend, "why_not", lambda _, task: None if task.fused else "it is not asked for")


def work_of(
    recipe: Recipe,
    p: Tensor,
    *,
    rounding: str = "nearest",
    maximize: bool = False,
    telemetry: bool = False,
    skipped: bool = False,
) -> Task:
    """A parameter before its first step."""
    config = ParamConfig(recipe, factoring.plan(recipe.factoring, tuple(p.shape)), FLOATS[p.dtype], rounding)
    state = {key: torch.zeros(shape, dtype=dtype, device=DEVICE) for key, (shape, dtype) in config.layout.items()}
    state["step"] = torch.full((), DONE, dtype=torch.int64, device=DEVICE)
    task = Task(p, torch.zeros_like(p), state, config, numbers_of(recipe, 1), maximize=maximize)
    if telemetry:
        task.telemetry = torch.zeros((matrix_view(config.plan).sizes[0], 4), device=DEVICE)
    if skipped:
        task.skipped = torch.zeros((), dtype=torch.int64, device=DEVICE)
    return task


def works_of(recipe: Recipe, shapes: Sequence[Shape], dtype: torch.dtype, **how: Any) -> list[Task]:
    params = [torch.tensor(values(shape, i)).to(dtype).to(DEVICE) for i, shape in enumerate(shapes)]
    return [work_of(recipe, p, **how) for p in params]


def few(name: str, dtype: torch.dtype = torch.float64, shapes: Sequence[Shape] = FEW, **how: Any) -> list[Task]:
    return works_of(Recipe(lr=0.1, **RECIPES[name]), shapes, dtype, **how)


def set_step(tasks: Sequence[Task], t: int, indices: Sequence[int] | None = None) -> None:
    """Numbers, keys and gradients of step t, of tasks that stand at `indices` of a list of parameters."""
    now = {id(task.config.recipe): numbers_of(task.config.recipe, t) for task in tasks}
    for index, task in zip(indices or range(len(tasks)), tasks, strict=True):
        task.now, task.key = now[id(task.config.recipe)], rounding_key(SEED, t, index)
        task.state["step"] += 1
        task.grad.copy_(torch.tensor(gradient(t, index, tuple(task.p.shape))))


def kept(task: Task) -> list[Any]:
    return [bits(x.cpu()) for x in (task.p, *task.state.values())]


def array(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy().copy()


def state_of(task: Task, t: int) -> oracle.State:
    return oracle.State(t, **{key: array(x) for key, x in task.state.items() if key != "step"})


def assert_near(actual: Tensor, expected: Array, budget: float, where: object) -> None:
    deviation = np.max(np.abs(array(actual) - expected), initial=0.0)
    assert deviation <= budget, f"{where}: {deviation} is more than {budget}"


def run_against_oracle(tasks: Sequence[Task], steps: int = 3) -> None:
    """Float64 parameters and their states against the oracle's."""
    recipes = [task.config.recipe for task in tasks]
    answers = [(array(w.p), oracle.init(r, array(w.p))) for w, r in zip(tasks, recipes, strict=True)]
    for t in range(1, steps + 1):
        set_step(tasks, t)
        signs = [-1.0 if task.maximize else 1.0 for task in tasks]
        step(tasks)
        answers = [
            oracle.step(recipe, p, sign * array(task.grad), state)
            for task, recipe, sign, (p, state) in zip(tasks, recipes, signs, answers, strict=True)
        ]
    for task, (p, state) in zip(tasks, answers, strict=True):
        assert int(task.state["step"]) == DONE + steps
        for name, x in {"p": task.p, **task.state}.items():
            if name == "step":
                continue
            expected = p if name == "p" else getattr(state, name)
            budget = FLOAT64 * float(np.max(np.abs(expected), initial=1.0))
            assert_near(x, expected, budget, (name, tuple(task.p.shape)))


@pytest.fixture(autouse=True, scope="session")
def patched_once() -> None:
    patch_once()


def patch_once() -> None:
    """The interpreter patches Triton's language at every call of every function, which is most of its time."""
    if DEVICE.type == "cpu":
        from triton.runtime import interpreter

        patch, seen = interpreter._patch_lang, dict[str, Any]()

        def once(function: Any) -> Any:
            module = function.__globals__["__name__"]
            if module not in seen:
                seen[module] = patch(function)
                if seen[module] is not None:  # from Triton 3.7 on
                    seen[module].restore = lambda: None
            return seen[module]

        interpreter._patch_lang = once


def oracle_run(recipe: Recipe, p: Array, grads: Sequence[Array], compute: Any) -> Array:
    state = oracle.init(recipe, p, compute=compute)
    for grad in grads:
        p, state = oracle.step(recipe, p, grad, state, compute=compute)
    return p


def on_device(now: Numbers) -> Numbers:
    """beta1 stays a float, as a constant does."""
    given = {name: x for name, x in vars(now).items() if isinstance(x, float) and name != "beta1"}
    tensors = {name: torch.tensor(x, dtype=torch.float64, device=DEVICE) for name, x in given.items()}
    return dataclasses.replace(now, **tensors)


def columns_on_device(nows: Sequence[Numbers]) -> list[Numbers]:
    """Numbers that are elements of one tensor for each name, as step counts on a device make them."""
    made: dict[str, list[Any]] = {name: [x] * len(nows) for name, x in vars(nows[0]).items() if x is None}
    for name in set(vars(nows[0])) - set(made):
        made[name] = list(torch.tensor([float(getattr(now, name)) for now in nows], dtype=torch.float64).to(DEVICE))
    return [Numbers(**{name: column[i] for name, column in made.items()}) for i in range(len(nows))]
