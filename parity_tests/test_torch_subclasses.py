"""Parameters and gradients of tensor subclasses: what lies at an address is known of few of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_map_only

from adafactor_torch import Adafactor
from adafactor_torch._task.memory import has_address

from .torch_runs import values

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
SHAPES = ((6, 5), (300, 200), (7,))  # eager: in a stack, in blocks, not factored


class Wrapped(Tensor):
    """A tensor without storage that stands for another one; what is computed with it is plain."""

    x: Tensor

    @staticmethod
    def __new__(cls, x: Tensor) -> "Wrapped":
        made: Any = Tensor._make_wrapper_subclass(cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device)
        made.x = x
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        inner, named = tree_map_only(Wrapped, lambda t: t.x, (args, kwargs or {}))
        return cls.result(func, args, func(*inner, **named))

    @classmethod
    def result(cls, func: Any, args: Any, out: Any) -> Any:
        if func._schema.is_mutable:
            return args[0]
        return cls(out) if func is torch.ops.aten.detach.default else out


class Rewrapped(Wrapped):
    """The same, and what is computed with it is of its class."""

    @classmethod
    def result(cls, func: Any, args: Any, out: Any) -> Any:
        return args[0] if func._schema.is_mutable else tree_map_only(Tensor, cls, out)


class Doubled(Wrapped):
    """Stands for twice what it keeps, as quantised weights stand for other numbers; its views are of what it keeps."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        name = func.overloadpacket.__name__
        if name in ("view", "reshape", "permute", "as_strided", "detach", "alias"):
            return cls(func(*tree_map_only(cls, lambda t: t.x, args), **(kwargs or {})))
        if name == "copy_" and isinstance(args[0], cls):
            value = 2.0 * args[1].x if isinstance(args[1], cls) else args[1]
            args[0].x.copy_(value / 2.0)
            return args[0]
        inner, named = tree_map_only(cls, lambda t: 2.0 * t.x, (args, kwargs or {}))
        assert not func._schema.is_mutable or not isinstance(args[0], cls), "no other operator writes"
        return func(*inner, **named)


class Ours(Tensor):
    """Keeps its storage and overrides nothing."""


class Watched(Tensor):
    """Keeps its storage, and overrides what functions do with it."""

    seen = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Watched.seen += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def two(x: Tensor) -> Tensor:
    return TwoTensor(x, x.clone())


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapped": Wrapped,
    "rewrapped": Rewrapped,
    "two": two,
    "doubled": lambda x: Doubled(x / 2.0),
    "ours": lambda x: x.as_subclass(Ours),
    "watched": lambda x: x.as_subclass(Watched),
}


def dense(p: Any) -> Tensor:
    """The values for which a parameter stands."""
    if isinstance(p, TwoTensor):
        assert torch.equal(p.a, p.b)
        return p.a.detach()
    if isinstance(p, Wrapped):
        return p.x.detach() * (2.0 if isinstance(p, Doubled) else 1.0)
    return p.detach().as_subclass(Tensor)


Make = Callable[[Tensor], Tensor]


def run(path: dict[str, Any], param: Make, grad: Make, **options: Any) -> list[Tensor]:
    """Parameters after three steps, beside an ordinary one."""
    params: list[Any] = [torch.nn.Parameter(param(torch.tensor(values(s, 0)).float())) for s in SHAPES]
    params.append(torch.nn.Parameter(torch.ones(4, 3)))
    optimizer = Adafactor(params, lr=0.1, relative_step=False, beta1=0.9, weight_decay=0.1, **path, **options)
    for t in range(1, 4):
        for p in params[:-1]:
            p.grad = grad(torch.tensor(values(tuple(p.shape), t)).float())
        params[-1].grad = torch.ones(4, 3)
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [3] * len(params)
    return [dense(p) for p in params]


def plain(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("which", ["parameters", "gradients", "both"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_is_stepped_as_the_values_it_stands_for(kind: str, path: str, which: str) -> None:
    """By the reference where nothing is known of it, and as any tensor where it overrides nothing."""
    made = KINDS[kind]
    stepped = run(PATHS[path], plain if which == "gradients" else made, plain if which == "parameters" else made)
    *expected, _ = run(PATHS[path if kind == "ours" else "plain"], plain, plain)
    assert all(map(torch.equal, stepped, expected))
    assert torch.equal(stepped[-1], run(PATHS[path], plain, plain)[-1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{"nonfinite": "skip"}, {"telemetry": True}], ids=str)
def test_options_reach_a_subclass(options: dict[str, Any], path: str) -> None:
    stepped = run(PATHS[path], Wrapped, plain, **options)
    assert all(map(torch.equal, stepped[:-1], run(PATHS["plain"], plain, plain, **options)))


@pytest.mark.parametrize("path", PATHS)
def test_a_tensor_that_stands_for_two_takes_a_step_of_each(path: str) -> None:
    a, b = (torch.tensor(values((6, 5), seed)).float() for seed in (1, 2))
    grads = [[torch.tensor(values((6, 5), 10 * t + seed)).float() for seed in (1, 2)] for t in range(3)]
    expected = []
    for which, x in enumerate((a, b)):
        p = torch.nn.Parameter(x.clone())
        optimizer = Adafactor([p], beta1=0.9, foreach=False)
        for of_step in grads:
            p.grad = of_step[which]
            optimizer.step()
        expected.append(p.detach())
    both: Any = torch.nn.Parameter(TwoTensor(a.clone(), b.clone()))
    optimizer = Adafactor([both], beta1=0.9, **PATHS[path])
    for of_step in grads:
        both.grad = TwoTensor(*of_step)
        optimizer.step()
    assert torch.equal(both.a, expected[0]) and torch.equal(both.b, expected[1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["wrapped", "two", "doubled", "zero"])
def test_a_subclass_is_noticed_between_steps_that_are_alike(kind: str, path: str) -> None:
    """As is a tensor of zeros that takes no memory, of which forward-mode autograd makes some."""

    def stepped(made: Make, way: dict[str, Any]) -> Tensor:
        p = torch.nn.Parameter(torch.ones(6, 5))
        optimizer = Adafactor([p], **way)
        for t in range(1, 6):
            grad = torch.tensor(values((6, 5), t)).float()
            p.grad = made(grad) if t == 4 else grad
            optimizer.step()
        return p.detach()

    if kind == "zero":
        expected = stepped(torch.zeros_like, PATHS["plain"])
        given = stepped(lambda x: torch._efficientzerotensor(tuple(x.shape)), PATHS[path])
    else:
        expected, given = stepped(plain, PATHS["plain"]), stepped(KINDS[kind], PATHS[path])
    assert torch.allclose(given, expected, rtol=1e-6, atol=0.0)


def test_what_has_an_address() -> None:
    x = torch.ones(3)
    assert all(map(has_address, (x, torch.nn.Parameter(x), x.as_subclass(Ours), x[:0], x.to("meta"))))
    unknown = [Wrapped(x), two(x), x.as_subclass(Watched), torch._efficientzerotensor((3,))]
    assert not any(map(has_address, [*unknown, torch._to_functional_tensor(x)]))
    in_vmap: list[bool] = []

    def look(row: Tensor) -> Tensor:
        in_vmap.append(has_address(row))
        return row

    torch.func.vmap(look)(torch.ones(2, 3))
    assert in_vmap == [False]


# ----------------------------------------------------------------------------------------------------- fake tensors


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "options", [{}, {"telemetry": True, "rounding": "stochastic", "lr": lambda t: 0.1 / t}], ids=["", "all"]
)
def test_fake_tensors_take_steps_that_are_counted(path: str, options: dict[str, Any]) -> None:
    """As tools do that find out how much memory a training needs."""
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
        optimizer = Adafactor(params, beta1=0.9, **options, **PATHS[path])
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [3] * len(SHAPES)
    assert {type(x).__name__ for p in params for name, x in optimizer.state[p].items() if name != "step"} == {
        "FakeTensor"
    }


# ------------------------------------------------------------------------------------------------------------ compiled


def test_a_compiled_step_counts_a_tensor_that_stands_for_two_once() -> None:
    p: Any = torch.nn.Parameter(two(torch.ones(6, 5)))
    optimizer = Adafactor([p], foreach=False)
    twin = torch.nn.Parameter(torch.ones(6, 5))
    other = Adafactor([twin], foreach=False)
    compiled = torch.compile(optimizer.step, backend="eager")
    for t in range(1, 4):
        p.grad = twin.grad = torch.tensor(values((6, 5), t)).float()
        compiled()
        other.step()
    assert int(optimizer.state[p]["step"]) == 3 and torch.equal(dense(p), twin)


# ----------------------------------------------------------------------------------------------------------- DTensors


class Gathered(Wrapped):
    """With what FSDP2 asks of a class, as torchao's have it."""

    def fsdp_pre_all_gather(self, *_: Any) -> Any:
        raise NotImplementedError


def shared(part: Tensor, mesh: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_parts_of_a_class_that_fsdp_gathers_are_stepped_in_copies(mesh: Any, nonfinite: Any, fused: bool) -> None:
    def stepped(made: Make) -> tuple[Tensor, Any]:
        params: list[Any] = [torch.nn.Parameter(shared(made(torch.tensor(values(s, 0))), mesh)) for s in SHAPES]
        optimizer = Adafactor(params, beta1=0.9, nonfinite=nonfinite, fused=fused)
        for t in range(1, 5):
            for p in params:
                grad = torch.tensor(values(tuple(p.shape), t))
                if t == 3 and nonfinite == "skip":
                    grad[0] = torch.inf
                p.grad = shared(grad, mesh)
            optimizer.step()
        steps = [int(optimizer.state[p]["step"]) for p in params]
        return torch.cat([dense(p.detach().to_local()).flatten() for p in params]), steps

    def gathered_twice(x: Tensor) -> Tensor:
        return type("GatheredDoubled", (Doubled,), {"fsdp_pre_all_gather": None})(x / 2.0)

    expected, steps = stepped(plain)
    assert steps == [3 if nonfinite == "skip" else 4] * len(SHAPES)
    assert torch.equal(expected, stepped(Gathered)[0]) and torch.equal(expected, stepped(gathered_twice)[0])


def test_parts_of_other_classes_are_refused(mesh: Any) -> None:
    with pytest.raises(ValueError, match=r"^part of the parameter 'w' on this process must be .*, got 'TwoTensor'\.$"):
        Adafactor([("w", torch.nn.Parameter(shared(two(torch.ones(4, 3)), mesh)))])
    p: Any = torch.nn.Parameter(shared(torch.ones(4, 3), mesh))
    optimizer = Adafactor([("w", p)])
    p.grad = shared(Rewrapped(torch.ones(4, 3)), mesh)
    with pytest.raises(
        ValueError, match=r"^part of the gradient of 'w' on this process must be .*, got 'Rewrapped'\.$"
    ):
        optimizer.step()
    assert not optimizer.state and torch.equal(p.to_local(), torch.ones(4, 3))
