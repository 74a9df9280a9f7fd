"""Released gradients: the same bits as `step()`, one gradient at a time, and refusals of what needs all of them."""

import copy
import gc
import itertools
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from adafactor_spec import Recipe, factoring, recipes, schedules
from adafactor_torch import Adafactor, release_gradients
from adafactor_torch._backends.eager.backend import BLOCK, SMALL

from .profiles import some
from .release_runs import WIDTH, Net, backward, guarded, small
from .torch_runs import bits, snapshot, through_disk

PATHS: dict[str, dict[str, Any]] = {"plain": {"foreach": False}, "eager": {}, "compiled": {"fused": True}}
# Without a rounding but "nearest" in float32, which has nothing to round.
ROUNDINGS = [(torch.float32, "nearest"), *((torch.bfloat16, way) for way in ("nearest", "stochastic", "kahan"))]
RECIPES = {
    "paper": recipes.paper(),
    "amsgrad": recipes.adafactor_pytorch(lr_decay_step=(2, 4), lr_decay_factor=0.5, weight_decay=0.1),
    "scheduled": Recipe(
        lr=schedules.piecewise_constant(schedules.linear_warmup(0.2, 4), (3, 5), 0.5),
        beta2=schedules.power_decay(0.8, cap=0.99, offset=1),
        beta1=schedules.adam_decay(0.9),
        weight_decay=schedules.inverse_sqrt(),
        factoring=factoring.as_matrix,
    ),
}
CASES = {
    f"{path} {str(dtype).removeprefix('torch.')} {rounding} {name}": (path, dtype, rounding, name)
    for path, (dtype, rounding), name in itertools.product(PATHS, ROUNDINGS, RECIPES)
}
STEPS = 6


def test_the_net_has_a_matrix_of_every_kind_of_the_eager_path() -> None:
    sizes = {p.numel() for p in Net().parameters()}
    assert min(sizes) < SMALL and max(sizes) > BLOCK and any(SMALL <= size <= BLOCK for size in sizes)


def made(case: str) -> tuple[Net, Adafactor]:
    path, dtype, rounding, name = CASES[case]
    net = Net(dtype)
    return net, Adafactor(net.named_parameters(), recipe=RECIPES[name], rounding=rounding, seed=7, **PATHS[path])


def advance(net: Net, optimizer: Adafactor, first: int = 1, last: int = STEPS) -> list[float]:
    """The learning rates in force after each of the steps `first` to `last`."""
    rates = []
    for t in range(first, last + 1):
        optimizer.zero_grad()
        net.loss(t).backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.fixture(autouse=True)
def no_release_from_before() -> None:
    gc.collect()


# ------------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("case", some(CASES))
def test_bit_identical_to_step(case: str) -> None:
    (kept, expected), (net, optimizer) = made(case), made(case)
    release_gradients(net, optimizer)
    assert advance(net, optimizer) == advance(kept, expected)
    assert snapshot(optimizer) == snapshot(expected)
    counts = {name: float(optimizer.state[p]["step"]) for name, p in net.named_parameters()}
    assert {counts["sometimes.weight"], counts["words.weight"]} == {STEPS / 2, STEPS}


@pytest.mark.sampled
@pytest.mark.parametrize("case", [case for case in CASES if "stochastic" in case and "amsgrad" not in case])
@pytest.mark.parametrize("released_first", [True, False])
def test_resumes_with_and_without_release(case: str, released_first: bool, tmp_path: Path) -> None:
    kept, expected = made(case)
    advance(kept, expected)
    net, optimizer = made(case)
    if released_first:
        release_gradients(net, optimizer)
    advance(net, optimizer, 1, 3)
    weights, saved = copy.deepcopy(net.state_dict()), through_disk(optimizer.state_dict(), tmp_path)
    net, optimizer = made(case)
    if not released_first:
        release_gradients(net, optimizer)  # before it is loaded
    net.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    advance(net, optimizer, 4)
    assert snapshot(optimizer) == snapshot(expected)


def test_a_learning_rate_scheduler_keeps_its_word() -> None:
    runs = []
    for released in (True, False):
        net = Net()
        optimizer = Adafactor(net.parameters(), lr=0.1, relative_step=False)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        if released:
            release_gradients(net, optimizer)
        for t in range(1, STEPS + 1):
            net.loss(t).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        runs.append(snapshot(optimizer))
        assert optimizer.param_groups[0]["lr"] == 0.1 * (1 / (1 + STEPS))
    assert runs[0] == runs[1]


def test_a_closure_and_step_hooks() -> None:
    runs = []
    for released in (True, False):
        model, optimizer = small()
        called: list[str] = []
        optimizer.register_step_pre_hook(lambda *_, to=called: to.append("before"))
        optimizer.register_step_post_hook(lambda *_, to=called: to.append("after"))

        def closure(model: torch.nn.Module = model, optimizer: Adafactor = optimizer) -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().sum()
            loss.backward()
            return loss.item()

        if released:
            release_gradients(model, optimizer)
        losses = [optimizer.step(closure) for _ in range(4)]
        optimizer.zero_grad()
        backward(model)  # and once without a closure
        optimizer.step()
        runs.append((losses, called, snapshot(optimizer)))
    assert runs[0] == runs[1]
    assert runs[0][1] == ["before", "after"] * 5


def test_options_that_a_step_may_have() -> None:
    """A gradient that is not finite is skipped, and telemetry tells of the step in the backward pass."""
    runs = []
    for released in (True, False):
        model, optimizer = small(nonfinite="skip", telemetry=True, maximize=True)
        if released:
            release_gradients(model, optimizer)
        for factor in (1.0, math.inf, 2.0):
            (model(torch.ones(4, 3)) * factor).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        told = optimizer.telemetry()
        assert told["weight"]["skipped"] == 1
        runs.append((snapshot(optimizer), {who: {of: bits(x) for of, x in now.items()} for who, now in told.items()}))
    assert runs[0] == runs[1]


def test_two_losses_of_different_parameters_are_one_step() -> None:
    """As a generator and its critic have; neither gradient is a second one."""
    (kept, expected), (model, optimizer) = small(), small()
    release_gradients(model, optimizer)
    for net, who in ((kept, expected), (model, optimizer)):
        for _ in range(3):
            net.weight.square().sum().backward()
            net.bias.exp().sum().backward()
            who.step()
            who.zero_grad()
    assert snapshot(optimizer) == snapshot(expected)


def test_a_compiled_model_and_checkpointed_activations() -> None:
    def compiled(net: Net) -> Callable[[Tensor], Tensor]:
        return torch.compile(lambda x: net.layers[1](torch.tanh(net.layers[0](x))), backend="aot_eager")

    def checkpointed(reentrant: bool) -> Callable[[Net], Callable[[Tensor], Tensor]]:
        def of(net: Net) -> Callable[[Tensor], Tensor]:
            layers = (net.layers[0], net.layers[1], *([] if reentrant else [net.layers[0]]))

            def forward(x: Tensor) -> Tensor:
                for layer in layers:
                    x = checkpoint(lambda x, layer=layer: torch.tanh(layer(x)), x, use_reentrant=reentrant)
                return x

            return forward

        return of

    for function_of in (compiled, checkpointed(reentrant=False), checkpointed(reentrant=True)):
        runs = []
        for released in (True, False):
            net = Net()
            optimizer, function = Adafactor(net.parameters()), function_of(net)
            if released:
                release_gradients(net, optimizer)
            for t in (1, 2, 3):
                x = torch.full((5, WIDTH), float(t), requires_grad=True)
                function(x).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            runs.append(snapshot(optimizer))
        assert runs[0] == runs[1]


# -------------------------------------------------------------------------------------------------------------- memory


def peak_of_gradients(released: bool) -> tuple[int, int, int]:
    """(the most bytes of gradients at once, of the largest, of all)"""
    net = Net()
    optimizer = Adafactor(net.parameters())
    alive: dict[int, weakref.ref[Tensor]] = {}
    peak = 0

    def measure(p: Tensor) -> None:
        nonlocal peak
        assert p.grad is not None
        alive[id(p)] = weakref.ref(p.grad)
        grads = [grad for grad in (known() for known in alive.values()) if grad is not None]
        peak = max(peak, sum(grad.nbytes for grad in grads))

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(measure)  # before the one that frees
    if released:
        release_gradients(net, optimizer)
    net.loss(1).backward()
    assert all((p.grad is None) == released for p in net.parameters())
    optimizer.step()
    sizes = [p.nbytes for p in net.parameters()]
    return peak, max(sizes), sum(sizes)


def test_one_gradient_at_a_time() -> None:
    peak, largest, together = peak_of_gradients(released=True)
    assert peak == largest
    assert peak_of_gradients(released=False) == (together, largest, together)


def test_a_release_goes_with_its_model() -> None:
    model, optimizer = small()
    release_gradients(model, optimizer)
    backward(model)
    dead = weakref.ref(model.weight)
    del model, optimizer
    gc.collect()
    assert dead() is None
    assert not guarded(), "and torch's functions are as they were"


# ------------------------------------------------------------------------------------------------------------- removal


def test_remove_undoes_everything_and_may_come_twice() -> None:
    (model, optimizer), (kept, expected) = small(), small()
    with release_gradients(model, optimizer) as handle:
        assert guarded() and optimizer._step_supports_amp_scaling
        backward(model)
        optimizer.step()
    handle.remove()
    assert not guarded() and not optimizer._step_supports_amp_scaling
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    for net, who in ((model, optimizer), (kept, expected)):
        for _ in range(1 if net is model else 2):
            backward(net)
            assert net.weight.grad is not None
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1e6)
            who.step()
            who.zero_grad()
    assert snapshot(optimizer) == snapshot(expected)
    release_gradients(model, optimizer).remove()  # it can be released again


def test_two_releases_end_each_by_itself() -> None:
    model, optimizer = small()
    weight, bias = release_gradients([model.weight], optimizer), release_gradients([("b", model.bias)], optimizer)
    weight.remove()
    backward(model)
    assert (model.weight.grad is None, model.bias.grad is None) == (False, True)
    with pytest.raises(RuntimeError, match="clip_grad_norm_ cannot clip released gradients"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.nn.utils.clip_grad_norm_(model.weight, 1.0)
    optimizer.step()
    bias.remove()
    (kept, expected) = small()
    backward(kept)
    torch.nn.utils.clip_grad_norm_(kept.weight, 1.0)
    expected.step()
    assert snapshot(optimizer) == snapshot(expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_is_not_released(copied: Callable[[Any], Any]) -> None:
    model, optimizer = small()
    release_gradients(model, optimizer)
    model, optimizer = copied((model, optimizer))
    backward(model)
    assert model.weight.grad is not None and not optimizer._step_supports_amp_scaling
