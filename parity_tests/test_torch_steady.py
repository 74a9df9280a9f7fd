"""A step that is like the one before is not decided anew; whatever has changed since is noticed nevertheless."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adafactor_torch import Adafactor
from adafactor_torch._step.task_cache import TaskCache

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHAPES = [(6, 5), (7,), (6, 5), (3, 4, 2)]
Params = list[Tensor]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> dict[str, Any]:
    return PATHS[request.param]


def drawn(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def built(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Adafactor, Params]:
    """An optimizer of two groups, the second one with most of the parameters."""
    params: Params = [torch.nn.Parameter(x) for x in drawn(0, dtype)]
    return Adafactor([{"params": params[:1]}, {"params": params[1:]}], **options), params


def give_gradients(params: Params, seed: int) -> None:
    for p, grad in zip(params, drawn(seed, params[0].dtype)[: len(params)], strict=True):
        p.grad = grad


def in_other_memory(x: Tensor) -> Tensor:
    """The same values; of a matrix column by column."""
    return x.detach().t().contiguous().t() if x.ndim == 2 else x.detach().clone()


def swap_state(optimizer: Adafactor, params: Params) -> None:
    state = optimizer.state[params[2]]
    for name in state:
        state[name] = state[name] + 1.0


def move_state(optimizer: Adafactor, params: Params) -> None:
    for x in optimizer.state[params[2]].values():
        x.data = x + 1.0


def replace_state(optimizer: Adafactor, params: Params) -> None:
    optimizer.state[params[2]] = {name: x + 1.0 for name, x in optimizer.state[params[2]].items()}


def move_params(optimizer: Adafactor, params: Params) -> None:
    for p in params:
        p.data = in_other_memory(p) * 2.0


def move_params_alike(optimizer: Adafactor, params: Params) -> None:
    for p in params:
        p.data = p.detach() * 2.0


def widen(optimizer: Adafactor, params: Params) -> None:
    for p in params:
        p.data = p.double()
        assert p.grad is not None
        p.grad = p.grad.double()


def other_gradients(optimizer: Adafactor, params: Params) -> None:
    params[0].grad = in_other_memory(params[0].grad)  # type: ignore[arg-type]
    if hasattr(params[2], "grad_dtype"):  # without it, torch lets a gradient have any dtype
        params[2].grad_dtype = None
    params[2].grad = params[2].grad.double()  # type: ignore[union-attr]
    params[3].grad = params[3].grad.expand(2, 3, 4, 2)[0]  # type: ignore[union-attr]


def negate(optimizer: Adafactor, params: Params) -> None:
    params[1].grad = torch._neg_view(params[1].grad)  # type: ignore[arg-type]


def move_gradient(optimizer: Adafactor, params: Params) -> None:
    params[2].grad.data = in_other_memory(params[2].grad)  # type: ignore[union-attr,arg-type]


def freeze(optimizer: Adafactor, params: Params) -> None:
    params[2].grad = None


def freeze_all(optimizer: Adafactor, params: Params) -> None:
    for p in params:
        p.grad = None


def count_on(optimizer: Adafactor, params: Params) -> None:
    optimizer.state[params[2]]["step"] += 5


def reload(optimizer: Adafactor, params: Params) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def reorder(optimizer: Adafactor, params: Params) -> None:
    optimizer.param_groups[1]["params"].reverse()


def lose(optimizer: Adafactor, params: Params) -> None:
    del optimizer.param_groups[1]["params"][1]


def take_its_place(optimizer: Adafactor, params: Params) -> None:
    # Its state and its memory, but a version counter of its own, which shows what is written next.
    new = torch.nn.Parameter(params[2].data)
    new.grad = params[2].grad
    optimizer.state[new] = optimizer.state.pop(params[2])
    params[2] = optimizer.param_groups[1]["params"][1] = new
    with torch.no_grad():
        new.mul_(2.0)


def stand_twice(optimizer: Adafactor, params: Params) -> None:
    optimizer.param_groups[1]["params"].append(params[2])


def come_before(optimizer: Adafactor, params: Params) -> None:
    # The positions of all the others, on which their random bits depend, move on.
    new = torch.nn.Parameter(torch.ones(2, 2, dtype=params[0].dtype))
    new.grad = torch.ones_like(new)
    optimizer.param_groups[0]["params"].append(new)


def step_one(optimizer: Adafactor, params: Params) -> None:
    optimizer.step_param(params[2])


def written(**values: Any) -> Callable[[Adafactor, Params], None]:
    def write(optimizer: Adafactor, params: Params) -> None:
        optimizer.param_groups[1].update(values)

    write.__name__ = "_".join(values)
    return write


CHANGES = [
    *(swap_state, move_state, replace_state, move_params, move_params_alike, widen),
    *(other_gradients, negate, move_gradient, freeze, freeze_all, count_on, reload, reorder, lose),
    *(take_its_place, stand_twice, come_before, step_one),
    *(written(maximize=True), written(eps2=0.5), written(lr=0.25), written(lr=torch.tensor(0.25))),
    *(written(telemetry=True), written(beta1=0.5), written(fused=False, foreach=False), written(seed=3)),
    *(written(rounding="nearest"), written(nonfinite="skip")),
]


@pytest.mark.parametrize(
    ("kind", "rounding"), [("eager", "nearest"), ("compiled", "nearest"), ("compiled", "stochastic")]
)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:A parameter was written through .data")
def test_a_change_is_noticed(
    kind: str, rounding: str, change: Callable[[Adafactor, Params], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, dtype = PATHS[kind], torch.float32 if rounding == "nearest" else torch.bfloat16

    def run() -> list[Tensor]:
        optimizer, params = built(dtype, rounding=rounding, **path)
        for t in range(1, 7):
            give_gradients(params, t)
            if params[0].grad is not None and t == 4:
                change(optimizer, params)
            elif t > 4 and change is widen:
                continue
            optimizer.step()
        found = [p for group in optimizer.param_groups for p in group["params"]]
        return [p.detach().clone() for p in (*params, *found)] + [
            x.clone() for p in found for x in optimizer.state[p].values()
        ]

    kept = run()
    monkeypatch.setattr(TaskCache, "still_holds", lambda *_: False)
    for x, y in zip(kept, run(), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


def test_the_third_step_is_like_the_second(path: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    again = TaskCache.still_holds

    def overheard(*args: Any) -> bool:
        said.append(again(*args))
        return said[-1]

    monkeypatch.setattr(TaskCache, "still_holds", overheard)
    optimizer, params = built(lr=lambda t: 0.1 / t, **path)
    for t in range(1, 5):
        give_gradients(params, t)
        optimizer.step()
    assert said == [True] * 6  # two groups, from the second step on: the first one makes the state


def test_no_gradient_is_held(path: dict[str, Any]) -> None:
    optimizer, params = built(**path)
    for t in range(1, 4):
        give_gradients(params, t)
        held = [weakref.ref(p.grad) for p in params if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        assert [ref() for ref in held] == [None] * len(SHAPES)


@pytest.mark.parametrize("shape", [(2, 3), (3, 5)], ids=str)  # with other strides, and with the same
def test_a_gradient_that_no_longer_fits_is_refused(shape: tuple[int, int], path: dict[str, Any]) -> None:
    optimizer, params = built(**path)
    for t in range(1, 4):
        give_gradients(params, t)
        optimizer.step()
    grad = params[2].grad
    assert grad is not None
    before = [p.detach().clone() for p in params]
    grad.resize_(shape)
    with pytest.raises(ValueError, match="shape of the gradient"):
        optimizer.step()
    assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))


def test_another_parameter_with_the_same_memory_is_seen_to_be_written(path: dict[str, Any]) -> None:
    optimizer, params = built(**path)
    for t in range(1, 5):
        give_gradients(params, t)
        if t == 3:
            take_its_place(optimizer, params)
        before = params[2]._version
        optimizer.step()
        assert params[2]._version > before  # or autograd would take what it has saved of it for unchanged


@pytest.mark.parametrize("one_by_one", [False, True], ids=["step", "step_param"])
def test_a_parameter_that_stands_twice_in_its_group_takes_one_step(one_by_one: bool, path: dict[str, Any]) -> None:
    def run(twice: bool) -> list[Tensor]:
        params: Params = [torch.nn.Parameter(x) for x in drawn(0, torch.bfloat16)]
        optimizer = Adafactor(params, rounding="stochastic", **path)
        optimizer.param_groups[0]["params"] += params[:3] if twice else []
        for t in range(1, 5):
            give_gradients(params, t)
            if one_by_one and t > 1:
                for p in params:
                    optimizer.step_param(p)
            else:
                optimizer.step()
        return [p.detach() for p in params] + [x for p in params for x in optimizer.state[p].values()]

    for x, y in zip(run(True), run(False), strict=True):
        assert torch.equal(x, y)


def test_a_parameter_that_has_left_is_not_held(path: dict[str, Any]) -> None:
    optimizer, params = built(telemetry=True, **path)
    left: list[weakref.ref[Tensor]] = []
    for t in range(1, 7):
        give_gradients(params, t)
        if t == 5:
            left += [weakref.ref(p) for p in params[1:]]
            left += [weakref.ref(x) for p in params[1:] for x in optimizer.state.pop(p).values()]
            del optimizer.param_groups[1], params[1:]
            # Frozen ones, so that there are no fewer parameters than before.
            optimizer.param_groups[0]["params"] += [torch.nn.Parameter(x) for x in drawn(1, torch.float32)]
        elif t > 2:
            left.append(weakref.ref(params[0]))
            new = torch.nn.Parameter(params[0].detach().clone())
            new.grad = params[0].grad
            optimizer.state[new] = optimizer.state.pop(params[0])
            params[0] = optimizer.param_groups[0]["params"][0] = new
            del new
        if t < 5:
            optimizer.step_param(params[0])
            params[0].grad = None
        optimizer.step()
        gc.collect()
        assert [ref() for ref in left] == [None] * len(left)


def test_the_lr_of_a_schedule_is_that_of_the_group_when_one_before_it_has_gone(path: dict[str, Any]) -> None:
    optimizer, params = built(lr=lambda t: 1.0 / t, **path)
    for t in range(1, 5):
        give_gradients(params, t)
        if t < 4:
            freeze_all(optimizer, params[1:])
        else:
            del optimizer.param_groups[0]
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
