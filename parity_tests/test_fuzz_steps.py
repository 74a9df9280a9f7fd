"""Whatever parameters and gradients a step is given: it is the oracle's, by every way to compute it, or refused."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from adafactor_spec import Recipe
from adafactor_torch import Adafactor

from . import hostile_steps as steps
from .hostile import assert_in_form, cases, refusal_of
from .hostile_steps import Drawn, Judge
from .random_recipes import any_recipe

# As torch's optimizers say it, and as tools look for it.
TORCHS_WORDS = ("Adafactor does not support sparse gradients", "Adafactor does not support complex gradients")
WAYS: dict[str, dict[str, Any]] = {"reference": {"foreach": False}, "eager": {"fused": False}, "fused": {"fused": True}}


@contextlib.contextmanager
def _set(setting: Callable[[Any], None], usual: Any, other: Any) -> Iterator[None]:
    setting(other)
    try:
        yield
    finally:
        setting(usual)


# What may be in force around a step, and is none of its business.
AROUND: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "the device meta": lambda: torch.device("meta"),
    "gradients": torch.enable_grad,
    "deterministic algorithms": lambda: _set(torch.use_deterministic_algorithms, False, True),
    "float64 by default": lambda: _set(torch.set_default_dtype, torch.float32, torch.float64),
    "float16 by default": lambda: _set(torch.set_default_dtype, torch.float32, torch.float16),
}


OPTIONS = st.fixed_dictionaries(
    {
        "rounding": st.sampled_from(["nearest", "nearest", "stochastic", "kahan"]),
        "seed": st.sampled_from([0, 1, 2**32 - 1]),
        "maximize": st.booleans(),
        "nonfinite": st.sampled_from(["propagate", "propagate", "skip"]),
        "telemetry": st.booleans(),
    }
)


@cases(120, 4000)
@given(
    any_recipe(),
    st.lists(steps.parameters(), min_size=1, max_size=3),
    st.sampled_from(list(WAYS)),
    OPTIONS,
    st.sampled_from(["nothing", "nothing", *AROUND]),
)
def test_steps(recipe: Recipe, drawn: list[Drawn], way: str, options: dict[str, Any], around: str) -> None:
    given = [(f"{i}.{one.layout}", one.parameter()) for i, one in enumerate(drawn)]
    bad = [steps.must_be_refused(one.layout, p) for one, (_, p) in zip(drawn, given, strict=True)]
    unsure = [p for _, p in given if type(p) not in (torch.Tensor, torch.nn.Parameter)]
    optimizer, why = refusal_of(lambda: Adafactor(given, recipe=recipe, **options, **WAYS[way]))
    if optimizer is None:
        assert any(bad) or unsure, f"refused: {why}"
        return
    assert not any(bad), "taken, although a parameter has no memory of its own"
    judges = [
        Judge(recipe, one.dtype, name, i, options["rounding"], options["seed"], -1.0 if options["maximize"] else 1.0)
        for i, (one, (name, _)) in enumerate(zip(drawn, given, strict=True))
    ]
    for t in range(max(len(one.grads) for one in drawn)):
        rows = []
        for one, judge, (_, p) in zip(drawn, judges, given, strict=True):
            steps.give(p, one.gradient(t) if t < len(one.grads) else None)
            before = {key: x.clone() for key, x in optimizer.state.get(p, {}).items()}
            rows.append(
                (p, judge, steps.array(p), None if p.grad is None or one.is_wrong(t) else steps.array(p.grad), before)
            )
        wrong = any(one.is_wrong(t) for one in drawn)
        try:
            with AROUND[around]():
                optimizer.step()
        except (ValueError, TypeError, RuntimeError) as error:
            if not (unsure or wrong):
                raise
            if not str(error).startswith(TORCHS_WORDS):
                assert_in_form(error)
            assert all(same(steps.array(p), x) for p, _, x, *_ in rows)
            assert all(unchanged(optimizer.state.get(p, {}), before) for p, *_, before in rows)
            return
        assert not wrong, "taken, although a gradient is none"
        for p, judge, x, grad, before in rows:
            state = optimizer.state.get(p, {})
            assert p.grad is None or same(steps.array(p.grad), grad), "the gradient was written to"
            skipped = grad is not None and options["nonfinite"] == "skip" and not np.all(np.isfinite(grad))
            if grad is None or skipped:
                assert same(steps.array(p), x)
                assert unchanged(state, before)
                continue
            judge.check(x, grad, steps.arrays(before), steps.array(p), steps.arrays(state), steps.stored_in(state))


def same(one: Any, other: Any) -> bool:
    """To the bit."""
    return bool(one.shape == other.shape and one.tobytes() == other.tobytes())


def unchanged(state: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    return state.keys() == before.keys() and all(
        same(steps.array(state[key]), steps.array(before[key])) for key in state
    )
