"""Numbers in a step: dtypes, one rounding, range, memory layouts, and nothing that the host reads back."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adafactor_spec import Recipe, dtypes, factoring, oracle, recipes
from adafactor_torch import Adafactor

from .torch_runs import (
    DTYPES,
    GAPS,
    SHAPES,
    Array,
    Shape,
    advance,
    all_parameters,
    assert_near,
    bits,
    float32_budget,
    gradient,
    oracle_run,
    parameter_bits,
    parameters,
    set_gradients,
    snapshot,
    values,
)

RECIPES = {
    "paper": recipes.paper(),
    "amsgrad": recipes.adafactor_pytorch(0.1, non_constant_decay=False, weight_decay=0.1),
    "torch": recipes.torch(0.1, weight_decay=0.1),
    "optax": recipes.optax(0.1, min_dim_size_to_factor=3, momentum=0.9),
    "as_matrix": Recipe(lr=0.1, beta1=0.9, factoring=factoring.as_matrix, clipping_threshold=0.5),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


# ---------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_keep_their_dtype_and_state_is_at_least_float32(dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    optimizer = Adafactor(parameters(dtype), recipe=RECIPES["amsgrad"])
    advance(optimizer, 1, 2)
    for p in all_parameters(optimizer):
        kept = {key: tensor.dtype for key, tensor in optimizer.state[p].items()}
        assert p.dtype == dtype
        assert kept.pop("step") == torch.int64
        assert set(kept.values()) == {wide}
        assert len(kept) == (4 if p.ndim >= 2 else 3)  # v_row and v_col or v, v_max, m


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_in_the_parameters_dtype_where_the_recipe_says_so(dtype: torch.dtype) -> None:
    # float16 cannot hold a square of 1e-5, so nobody gets that.
    stored = torch.float32 if dtype == torch.float16 else dtype
    optimizer = Adafactor(parameters(dtype), recipe=RECIPES["torch"], beta1=0.9, momentum_dtype=torch.bfloat16)
    advance(optimizer, 1, 2)
    for p in all_parameters(optimizer):
        kept = {key: tensor.dtype for key, tensor in optimizer.state[p].items() if key != "step"}
        assert kept.pop("m") == torch.bfloat16
        assert set(kept.values()) == {stored}


def test_dtypes_may_be_mixed_in_a_group() -> None:
    mixed = [parameters(dtype)[index] for index, dtype in enumerate(DTYPES)]
    optimizer = Adafactor(mixed, lr=0.1)
    advance(optimizer, 1, 3)
    for index, dtype in enumerate(DTYPES):
        alone = Adafactor(parameters(dtype), lr=0.1)
        advance(alone, 1, 3)
        assert torch.equal(mixed[index], all_parameters(alone)[index])


@pytest.mark.parametrize("name", ["paper", "amsgrad", "as_matrix"])
def test_float64_is_the_oracle(name: str) -> None:
    optimizer = Adafactor(parameters(torch.float64), recipe=RECIPES[name])
    advance(optimizer, 1, 20)
    for index, (p, shape) in enumerate(zip(all_parameters(optimizer), SHAPES, strict=True)):
        grads = [gradient(t, index, shape) for t in range(1, 21)]
        assert_near(p, oracle_run(RECIPES[name], values(shape, index), grads))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["paper", "amsgrad", "as_matrix"])
def test_one_rounding(name: str, dtype: str) -> None:
    """A 16-bit step is the exact step, rounded once.

    From the same parameter and state, float32 arithmetic may be `budget` away from float64. So every new element lies
    between the rounded ends of that interval, which for nearly all elements are one and the same number.
    """
    shape, recipe = (16, 24), RECIPES[name]
    p = torch.nn.Parameter(torch.tensor(values(shape, 0)).to(getattr(torch, dtype)))
    optimizer = Adafactor([p], recipe=recipe)
    unrounded = dataclasses.replace(recipe, eps1=recipe.eps1_for(dtype))
    state, certain = oracle.init(recipe, values(shape, 0)), 0
    for t in range(1, 6):
        before = p.detach().double().numpy()
        set_gradients(t, [p])
        assert p.grad is not None
        grad = p.grad.double().numpy()
        exact, single = (
            oracle.step(unrounded, before, grad, state, compute=compute)[0] for compute in (np.float64, np.float32)
        )
        budget = GAPS * np.max(np.abs(exact - single))
        lowest, highest = (dtypes.round_to(exact + shift, dtype) for shift in (-budget, budget))
        optimizer.step()
        after = p.detach().double().numpy()
        assert np.all((lowest <= after) & (after <= highest))
        certain += int(np.sum(lowest == highest))
        rounded, _ = oracle.step(recipe, before, grad, state, dtype=dtype)
        assert np.array_equal(after[lowest == highest], rounded[lowest == highest])
        kept = {key: tensor.double().numpy() for key, tensor in optimizer.state[p].items() if key != "step"}
        state = oracle.State(t, **kept)
    assert certain > 0.9 * 5 * p.numel(), "an interval with two ends in it proves little"


def test_float32_gradient_of_a_bfloat16_parameter() -> None:
    """As mixed-precision engines hand them over: used as they are, not rounded to the parameter's dtype first."""
    first, second = (torch.nn.Parameter(torch.zeros(64, dtype=torch.bfloat16)) for _ in range(2))
    if not hasattr(first, "grad_dtype"):
        pytest.skip("this torch ties a gradient's dtype to the parameter's")
    grads = torch.tensor(values((64,), 1), dtype=torch.float32)
    first.grad_dtype = None
    first.grad, second.grad = grads, grads.bfloat16()
    one, other = (Adafactor([p], eps2=1.0, lr=1.0, relative_step=False) for p in (first, second))
    one.step()
    other.step()
    assert bits(one.state[first]["v"]) == bits(grads**2 + 1e-30) != bits(other.state[second]["v"])


# ----------------------------------------------------------------------------------------------------------- range


@pytest.mark.parametrize("shape", [(3, 700), (7,), (2, 3, 500)], ids=str)
@pytest.mark.parametrize("exponent", [-18, -9, 9, 18])
def test_gradients_of_any_size_in_float32(exponent: int, shape: Shape, recipe: Recipe) -> None:
    """So many columns that a sum of squares overflows, and a row and a column of zeros, whose factors underflow."""
    param = values(shape, 0).astype(np.float32).astype(np.float64)
    grads = [(values(shape, t) * 10.0**exponent).astype(np.float32).astype(np.float64) for t in range(1, 5)]
    for grad in grads:
        if grad.ndim >= 2:
            grad[..., 0, :] = grad[..., 0] = 0.0
    assert_follows_the_oracle(recipe, param, grads)


def test_rows_of_different_size_in_float32(recipe: Recipe) -> None:
    """Rows of 1e-6 beside such of 1e18 count as much in RMS(u), and those of 1e-18 are below eps1."""
    # V = R C / mean(R) itself, which only amsgrad keeps, leaves float32's range where a row is 1e-36 of another.
    exponents = [-9.0, -3.0, 3.0, 9.0] if recipe.amsgrad else [-18.0, -6.0, 6.0, 18.0]
    rows = 10.0 ** np.array(exponents)[:, None]
    param, *grads = (values((4, 700), t).astype(np.float32).astype(np.float64) for t in range(5))
    assert_follows_the_oracle(recipe, param, [(grad * rows).astype(np.float32).astype(np.float64) for grad in grads])


def assert_follows_the_oracle(recipe: Recipe, param: Array, grads: list[Array]) -> None:
    exact, budget = float32_budget(recipe, param, grads)
    p = torch.nn.Parameter(torch.tensor(param, dtype=torch.float32))
    optimizer = Adafactor([p], recipe=recipe)
    for grad in grads:
        p.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    assert torch.isfinite(p).all()
    assert_near(p, exact, budget)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_gradients_move_nothing_and_make_no_nan(dtype: torch.dtype, recipe: Recipe) -> None:
    optimizer = Adafactor(parameters(dtype), recipe=recipe, weight_decay=0.0)
    before = parameter_bits(optimizer)
    for _ in range(3):
        for p in all_parameters(optimizer):
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert parameter_bits(optimizer) == before
    advance(optimizer, 1, 2)
    for p in all_parameters(optimizer):
        assert all(torch.isfinite(tensor).all() for tensor in (p, *optimizer.state[p].values()))
    assert parameter_bits(optimizer) != before


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_empty_tensors(shape: Shape, recipe: Recipe) -> None:
    empty = torch.nn.Parameter(torch.zeros(shape))
    optimizer, without = Adafactor([empty, *parameters()], recipe=recipe), Adafactor(parameters(), recipe=recipe)
    for t in range(1, 4):
        empty.grad = torch.zeros(shape)
        set_gradients(t, all_parameters(optimizer)[1:])
        optimizer.step()
    advance(without, 1, 3)
    assert parameter_bits(optimizer)[1:] == parameter_bits(without)
    assert empty.shape == shape
    assert all(torch.isfinite(tensor).all() for tensor in optimizer.state[empty].values())


# --------------------------------------------------------------------------------------------------- memory layouts


def laid_out(shape: Shape, layout: str) -> torch.nn.Parameter:
    tensor = torch.tensor(values(shape, 0))
    if layout == "channels_last":
        return torch.nn.Parameter(tensor.to(memory_format=torch.channels_last))
    if layout == "transposed":
        return torch.nn.Parameter(tensor.transpose(0, -1).contiguous().transpose(0, -1))
    buffer = torch.zeros((*shape[:-1], 2 * shape[-1]), dtype=torch.float64)
    view = buffer[..., ::2]
    return torch.nn.Parameter(view.copy_(tensor))


@pytest.mark.parametrize("same_grad", [True, False], ids=["gradient alike", "gradient contiguous"])
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "every second"])
def test_layouts_are_kept_and_do_not_matter(layout: str, same_grad: bool, recipe: Recipe) -> None:
    shape = (4, 3, 2, 5)
    p, plain = laid_out(shape, layout), torch.nn.Parameter(torch.tensor(values(shape, 0)))
    assert not p.is_contiguous()
    where = (p.stride(), p.data_ptr())
    optimizer, contiguous = Adafactor([p], recipe=recipe), Adafactor([plain], recipe=recipe)
    for t in range(1, 4):
        set_gradients(t, [p, plain])
        p.grad = plain.grad = torch.tensor(gradient(t, 0, shape))
        if same_grad:
            p.grad = torch.empty_like(p).copy_(p.grad)
        optimizer.step()
        contiguous.step()
    assert (p.stride(), p.data_ptr()) == where
    assert_near(p, plain.detach().numpy())


# -------------------------------------------------------------------------------------------------- nothing is read


class NoReads(TorchDispatchMode):
    """Refuses every operator whose result the host has to wait for."""

    READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.READS, f"the host reads a value: {name}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [Tensor.item, bool, float, lambda x: x == 0 and 1, lambda x: torch.equal(x, x)])
def test_the_check_sees_a_read(read: Any) -> None:
    with NoReads(), pytest.raises(AssertionError, match="the host reads a value"):
        read(torch.ones(()))


def test_a_step_reads_nothing_back(recipe: Recipe) -> None:
    optimizer = Adafactor(parameters(), recipe=recipe, weight_decay=0.1)
    for t in range(1, 4):
        set_gradients(t, all_parameters(optimizer))
        with NoReads():
            optimizer.step()


def test_a_step_runs_on_parameters_without_memory(recipe: Recipe) -> None:
    """Meta tensors have no value that could be read."""
    tensors = [torch.nn.Parameter(p.to("meta")) for p in parameters()]
    optimizer = Adafactor(tensors, recipe=recipe, weight_decay=0.1)
    for t in range(1, 4):
        for p in tensors:
            p.grad = torch.ones_like(p)
        optimizer.step()
        for p in tensors:
            step = optimizer.state[p]["step"]
            assert (step.device.type, step.item()) == ("cpu", t)
            assert {v.device.type for key, v in optimizer.state[p].items() if key != "step"} == {"meta"}


def test_the_default_device_does_not_matter() -> None:
    """Under `torch.set_default_device("cuda")` the counter stays on the CPU, too."""
    optimizer, other = Adafactor(parameters()), Adafactor(parameters())
    set_gradients(1, all_parameters(optimizer))
    with torch.device("meta"):
        optimizer.step()
        other.load_state_dict(optimizer.state_dict())
    assert {v.device.type for p in all_parameters(other) for v in other.state[p].values()} == {"cpu"}
    advance(optimizer, 2, 2)
    advance(other, 2, 2)
    assert snapshot(other)[1] == snapshot(optimizer)[1]
