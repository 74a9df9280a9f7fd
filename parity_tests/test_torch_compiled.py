"""The vectorised C++ of float32 and bfloat16 matrices: RMS(u) from phase 1, rounding, threads, carried sums of p^2."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from adafactor_spec import Recipe, factoring
from adafactor_torch import Adafactor

from .torch_runs import GAPS, all_parameters, through_disk, twins, values

Dtypes = tuple[torch.dtype, torch.dtype]  # of the parameter, of its gradient

# One unit and many (65,536 elements), several matrices in a unit, rows that are read side by side (over 2,048 columns),
# columns and rows that do not fill a group (32 columns, 4 rows), batches.
SHAPES = {
    "one unit": (61, 43), "columns": (9, 64), "a few": (3, 5), "tall": (1103, 70), "wide": (133, 2083),
    "row": (1, 70_001), "large stack": (2, 1, 300, 230), "small stack": (5, 9, 40), "lead": (2, 40, 33),
}  # fmt: skip
RULE = factoring.by_name({"large stack": factoring.explicit(2, 3, 0), "small stack": factoring.explicit(1, 2, 0)})
RECIPES = {
    "paper": Recipe(factoring=RULE),
    "decay": Recipe(factoring=RULE, weight_decay=0.1, weight_decay_by="one", clipping_threshold=0.1),
    "momentum": Recipe(factoring=RULE, beta1=0.9, debias=True, weight_decay=0.1),
    "momentum of the step": Recipe(factoring=RULE, beta1=0.9, momentum_of="step", momentum_dtype="float32"),
}
DTYPES: list[Dtypes] = [(p, g) for p in (torch.float32, torch.bfloat16) for g in (torch.float32, torch.bfloat16)]
# All terms of the sum of u^2 are positive, so its relative error is at most that of its terms. In C and in the weighted
# sums, squares are added in float32 over 64 rows or 16 elements. R, C, 1/sqrt(R) and squares are rounded ten times.
UPDATE_RMS = (2 * 64 + 16) * 2.0**-24


@functools.cache
def gradients(t: int, dtype: torch.dtype, shape: tuple[int, ...], exponent: int = 0) -> torch.Tensor:
    """The gradient of step t, whose rows differ a millionfold."""
    sizes = 10.0 ** (exponent + np.linspace(-3, 3, shape[-2]))
    return torch.tensor(values(shape, t) * sizes[:, None]).to(dtype)


def built(dtypes: Dtypes, recipe: Recipe, exact: bool = False, **options: Any) -> Adafactor:
    """An optimizer of parameters of these shapes; an exact one has the same values in float64."""
    named = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        value = torch.tensor(0.3 * values(shape, seed)).to(dtypes[0])
        named[name] = torch.nn.Parameter(value.double() if exact else value)
        if hasattr(named[name], "grad_dtype"):
            named[name].grad_dtype = None
    return Adafactor(named.items(), recipe=recipe, **options)


def contents(optimizer: Adafactor) -> list[torch.Tensor]:
    """All parameters and state tensors."""
    tensors = all_parameters(optimizer)
    return [x.detach().clone() for p in tensors for x in (p, *(x for _, x in sorted(optimizer.state[p].items())))]


def assert_same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def advance(optimizer: Adafactor, dtype: torch.dtype, first: int, last: int, exponent: int = 0) -> None:
    for t in range(first, last + 1):
        for p in all_parameters(optimizer):
            p.grad = gradients(t, dtype, tuple(p.shape), exponent)
        optimizer.step()


@pytest.mark.parametrize("exponent", [-15, 0, 15])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_rms_of_u_is_that_of_the_definition(dtypes: Dtypes, exponent: int) -> None:
    # With an eps1 that is nothing beside g^2, the rows of the smallest gradients count as much as all others.
    recipe = Recipe(factoring=RULE, eps1=1e-37)
    fused = built(dtypes, recipe, fused=True, telemetry=True)
    exact = built(dtypes, recipe, exact=True, foreach=False, telemetry=True)
    for t in (1, 2):
        for optimizer in (fused, exact):
            for p in all_parameters(optimizer):
                p.grad = gradients(t, dtypes[1], tuple(p.shape), exponent).to(
                    p.dtype if optimizer is exact else dtypes[1]
                )
            optimizer.step()
        told, expected = fused.telemetry(), exact.telemetry()
        for name in SHAPES:
            assert torch.allclose(told[name]["update_rms"], expected[name]["update_rms"], rtol=UPDATE_RMS, atol=0.0), (
                name
            )


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_is_that_of_the_reference(name: str, dtypes: Dtypes, rounding: str) -> None:
    """Two steps; in bfloat16 with the reference's random bits, so that nearly all elements round to the same side."""
    options: dict[str, Any] = {"rounding": rounding, "seed": 7}
    fused, plain = (built(dtypes, RECIPES[name], **options, **path) for path in ({"fused": True}, {"foreach": False}))
    for optimizer in (fused, plain):
        advance(optimizer, dtypes[1], 1, 2)
    for which, p, q in zip(SHAPES, all_parameters(fused), all_parameters(plain), strict=True):
        x, y = p.detach().double().numpy(), q.detach().double().numpy()
        size = float(np.max(np.abs(y)))
        # A float32 step differs by some 2^-24 of itself, and each of the two by GAPS of them. A bfloat16 ulp is 2^-8.
        near = 2 * GAPS * 2.0**-24 * size
        if dtypes[0] is torch.float32:
            assert np.max(np.abs(x - y)) <= near, which
        else:
            assert np.all(np.abs(x - y) <= np.ldexp(2.0**-7, np.frexp(y)[1]) + near), which
            assert np.sum(x != y) <= max(2.0**-9 * x.size, 1), which


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(dtypes: Dtypes) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            optimizer = built(dtypes, RECIPES["momentum"], fused=True, rounding="stochastic")
            advance(optimizer, dtypes[1], 1, 2)
            found.append(contents(optimizer))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


@pytest.mark.parametrize("scaled", [[], [2], [3], [2, 3]], ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_a_sum_that_is_carried_has_the_bits_of_a_resumed_run(dtypes: Dtypes, scaled: list[int], tmp_path: Any) -> None:
    """Steps with scaled gradients are computed by another path, which adds the squares of p in another order."""

    def go_on(optimizer: Adafactor, first: int, last: int) -> None:
        for t in range(first, last + 1):
            scale: dict[str, Any] = (
                {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(0.0)} if t in scaled else {}
            )
            for name in ("grad_scale", "found_inf"):
                setattr(optimizer, name, scale.get(name))
            advance(optimizer, dtypes[1], t, t)  # a false warning of a write that torch does not see is an error

    whole = built(dtypes, RECIPES["paper"], fused=True)
    go_on(whole, 1, 2)
    names = list(SHAPES)
    resumed = Adafactor(list(zip(names, twins(whole), strict=True)), recipe=RECIPES["paper"], fused=True)
    for p in all_parameters(resumed):
        if hasattr(p, "grad_dtype"):
            p.grad_dtype = None
    resumed.load_state_dict(through_disk(whole.state_dict(), tmp_path))
    for optimizer in (whole, resumed):
        go_on(optimizer, 3, 4)
    assert_same_bits(contents(whole), contents(resumed))
