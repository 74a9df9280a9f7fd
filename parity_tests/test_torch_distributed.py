"""Several processes: DDP, ZeroRedundancyOptimizer and FSDP2 as one process does it; flat shards, refused."""

import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from adafactor_spec import recipes, schedules
from adafactor_torch import Adafactor

from .torch_runs import Array, assert_near, bits, parameters, values
from .two_processes import WORLD, Ranks, two_processes

pytestmark = pytest.mark.xdist_group("two_processes")  # one pair of processes for the whole file

STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "paper": {"lr": 0.05},
    "momentum": {"lr": 0.05, "beta1": 0.9, "weight_decay": 0.1},
    "schedule": {"lr": schedules.piecewise_constant(0.05, (3, 5), 0.5)},
    "name": {"recipe": "transformers"},
    "recipe": {"recipe": recipes.adafactor_pytorch(0.05, non_constant_decay=False)},
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with two_processes(tmp_path_factory.mktemp("ranks")) as both:
        yield both


# ------------------------------------------------------------------------- what runs in this process or in both ranks


def network() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    for p, fresh in zip(model.parameters(), parameters(shapes=[p.shape for p in model.parameters()]), strict=True):
        p.data.copy_(fresh)
    return model


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last`, each on a new batch of 8; of several ranks, each takes its part of it."""
    part = slice(dist.get_rank(), None, WORLD) if dist.is_initialized() else slice(None)
    for t in range(first, last + 1):
        x, y = (torch.tensor(values((8, width), t))[part] for width in (6, 4))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def arrays(model: torch.nn.Module) -> list[Array]:
    return [p.detach().numpy().copy() for p in model.parameters()]


def one_process(case: str) -> list[Array]:
    model = network()
    train(model, Adafactor(model.parameters(), **CASES[case]), 1, STEPS)
    return arrays(model)


def with_ddp(case: str) -> list[Array]:
    model = DistributedDataParallel(network())
    train(model, Adafactor(model.parameters(), **CASES[case]), 1, STEPS)
    return arrays(model)


# What torch 2.13 says of its own use of torch.jit when torch.distributed.optim is imported.
IMPORTED = (
    "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.",
    "`torch.jit.interface` is deprecated. Please use `torch.compile` instead.",
)


def zero(model: torch.nn.Module, case: str, as_view: bool) -> Any:
    with warnings.catch_warnings():
        for message in IMPORTED:
            warnings.filterwarnings("ignore", re.escape(message), DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=Adafactor, parameters_as_bucket_view=as_view, **CASES[case]
    )


def with_zero(case: str, as_view: bool) -> tuple[list[Array], int]:
    """(the parameters at the end, for how many of them this rank keeps state)"""
    model = DistributedDataParallel(network())
    optimizer = zero(model, case, as_view)
    train(model, optimizer, 1, STEPS)
    return arrays(model), len(optimizer.optim.state)


def through_bytes(state_dict: Any) -> Any:
    """As a file gives it back. torch's wrapper keeps schedules and rules as objects, so it is a pickle."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def with_zero_resumed(case: str, as_view: bool) -> tuple[list[Array], list[Array], list[Array]]:
    """Parameters: uninterrupted, resumed under ZeRO in the middle, resumed with the plain optimizer."""
    model = DistributedDataParallel(network())
    optimizer = zero(model, case, as_view)
    train(model, optimizer, 1, STEPS // 2)
    optimizer.consolidate_state_dict(to=0)
    saved = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved)  # as both would read it from the same file
    weights = [torch.tensor(array) for array in arrays(model)]
    runs = []
    for plain in (False, True):
        again = DistributedDataParallel(network())
        for p, old in zip(again.parameters(), weights, strict=True):
            p.data.copy_(old)
        resumed = Adafactor(again.parameters(), **CASES[case]) if plain else zero(again, case, as_view)
        resumed.load_state_dict(through_bytes(saved[0]))
        train(again, resumed, STEPS // 2 + 1, STEPS)
        runs.append(arrays(again))
    train(model, optimizer, STEPS // 2 + 1, STEPS)
    return arrays(model), runs[0], runs[1]


def with_scheduler(sharded: bool) -> list[Array]:
    model = DistributedDataParallel(network())
    optimizer = zero(model, "paper", False) if sharded else Adafactor(model.parameters(), **CASES["paper"])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for t in range(1, STEPS + 1):
        train(model, optimizer, t, t)
        scheduler.step()
    return arrays(model)


# --------------------------------------------------------------------------------------------------- DDP and ZeRO


def assert_equal(actual: list[Array], expected: list[Array]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert_near(torch.tensor(ours), theirs)


def with_fsdp2(case: str) -> list[Array]:
    from torch.distributed.fsdp import fully_shard

    model: Any = network()
    for module in (*model, model):
        fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (WORLD,)))
    train(model, Adafactor(model.named_parameters(), **CASES[case]), 1, STEPS)
    return [p.detach().full_tensor().numpy() for p in model.parameters()]


def assert_replicas(first: list[Array], second: list[Array]) -> None:
    assert [bits(torch.tensor(array)) for array in first] == [bits(torch.tensor(array)) for array in second]


@pytest.mark.parametrize("case", CASES)
def test_ddp_equals_one_process_on_the_whole_batch(ranks: Ranks, case: str) -> None:
    first, second = ranks(with_ddp, case)
    assert_replicas(first, second)
    assert_equal(first, one_process(case))


def test_fsdp2_equals_one_process_on_the_whole_batch(ranks: Ranks) -> None:
    first, second = ranks(with_fsdp2, "momentum")
    assert_replicas(first, second)
    assert_equal(first, one_process("momentum"))


# Which rank keeps a parameter decides which others it shares a kernel with; so the budget, and not bits.
@pytest.mark.parametrize("as_view", [False, True], ids=["", "bucket_view"])
@pytest.mark.parametrize("case", CASES)
def test_zero_equals_ddp(ranks: Ranks, case: str, as_view: bool) -> None:
    (first, kept), (second, others) = ranks(with_zero, case, as_view)
    assert_replicas(first, second)
    assert_equal(first, ranks(with_ddp, case)[0])
    assert kept and others and kept + others == len(first), "each rank keeps the state of its parameters only"


@pytest.mark.parametrize("as_view", [False, True], ids=["", "bucket_view"])
@pytest.mark.parametrize("case", CASES)
def test_zero_resumes_from_its_consolidated_state(ranks: Ranks, case: str, as_view: bool) -> None:
    first, second = ranks(with_zero_resumed, case, as_view)
    for whole, resumed, plain in (first, second):
        assert_replicas(resumed, whole)
        assert_equal(plain, whole)
    assert_replicas(first[0], second[0])


def test_zero_under_a_learning_rate_scheduler(ranks: Ranks) -> None:
    first, second = ranks(with_scheduler, True)
    plain = ranks(with_scheduler, False)[0]
    assert_replicas(first, second)
    assert_equal(first, plain)
    assert np.abs(plain[0] - ranks(with_ddp, "paper")[0][0]).max() > 1e-3, "the scheduler changes the result"


# ------------------------------------------------------------------------------------------------------- refusals


def refused(model: torch.nn.Module, **fields: Any) -> str:
    with pytest.raises(ValueError, match="must be a whole tensor") as caught:
        Adafactor(model.named_parameters(), **fields)
    return str(caught.value)


def fsdp1_refused(original: bool) -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return refused(FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=original))


def plain_parameters_beside_fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = network()
    ignored = list(model[2].parameters())  # type: ignore[index]
    FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True, ignored_states=ignored)
    for taken in (ignored, list(network().parameters())):
        optimizer = Adafactor(taken)
        with pytest.raises(ValueError, match="must be a whole tensor"):
            optimizer.add_param_group({"params": list(model[0].parameters())})  # type: ignore[index]
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("original", [False, True], ids=["flat", "use_orig_params"])
def test_fsdp1_is_refused(ranks: Ranks, original: bool) -> None:
    for message in ranks(fsdp1_refused, original):
        assert message.startswith(f"parameter '_fsdp_wrapped_module.{'0.weight' if original else '_flat_param'}' must")
        assert "Flat shards have neither rows nor columns and cannot be factored." in message
        assert "torch.distributed.fsdp.fully_shard" in message


def test_plain_parameters_beside_fsdp1_are_not_refused(ranks: Ranks) -> None:
    ranks(plain_parameters_beside_fsdp1)
