"""FSDP2: released and accumulated gradients, mixed precision, offloading, `torch.compile` and the usual extras."""

import pytest
import torch

from adafactor_torch._sharding import process_groups as _process_groups
from adafactor_torch._sharding.process_groups import ProcessGroups
from adafactor_torch._task.shard import PartialSum

from . import sharded_models as models
from . import sharded_release as release
from . import sharded_training as training
from .test_torch_sharded import ALL_REDUCE, FLOAT32, FLOAT64
from .torch_runs import Array
from .two_processes import Ranks

pytestmark = pytest.mark.xdist_group("four_processes")


@pytest.fixture(scope="module")
def expected() -> dict[str, Array]:
    return models.single()


@pytest.mark.parametrize(("name", "fused"), [*((name, False) for name in models.MODELS), ("rows", True)])
def test_released_gradients_train_like_one_process(
    four: Ranks, expected: dict[str, Array], name: str, fused: bool
) -> None:
    for error, passed, stepped in four(release.released, name, expected, fused):
        assert error <= FLOAT64
        assert stepped == {}, "what the backward pass has stepped is asked for again"
        if name == "rows":
            assert passed[ALL_REDUCE] == 2 * 3  # for each of two blocks and a head, FSDP2 has no all-reduce of its own


def test_released_parameters_take_their_own_sums(four: Ranks, expected: dict[str, Array]) -> None:
    for error, passed, stepped in four(release.released, "rows", expected, False, True):
        assert error <= FLOAT64
        assert stepped == {}
        assert passed[ALL_REDUCE] == 2 * len(expected)


def test_a_module_that_lacks_a_gradient_is_stepped_by_step(four: Ranks) -> None:
    for error, kept, moved in four(release.with_a_spare):
        assert error <= FLOAT64
        assert kept == {"2.last.weight", "2.last.bias"}
        assert not moved


def test_a_module_that_is_used_twice_is_released_once(four: Ranks) -> None:
    assert max(four(release.used_twice)) <= FLOAT64


def test_refuses_what_cannot_be_released_and_what_was_replaced(four: Ranks) -> None:
    for clipped, second, early in four(release.refusals):
        assert clipped.startswith("clip_grad_norm_ cannot clip released gradients")
        assert second.startswith("parameter '2.last.weight' got a second gradient before optimizer.step()")
        assert early.startswith("parameter '0.norm.weight' must be a parameter of the sharded model, got 'one from")


@pytest.mark.parametrize("way", ["reduced", "not reduced", "released"])
def test_accumulated_gradients_train_like_one_process(four: Ranks, expected: dict[str, Array], way: str) -> None:
    assert max(four(training.accumulated, way, expected)) <= FLOAT64


def test_mixed_precision_steps_float32_weights(four: Ranks) -> None:
    for grads, states, out, error, _ in four(training.mixed, torch.float32):
        assert grads == states == {torch.float32} and out == torch.float32
        assert error <= FLOAT32


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_weights_of_16_bits_are_rounded_as_in_one_process(four: Ranks, rounding: str) -> None:
    for grads, states, out, _, differing in four(training.mixed_in_16_bits, rounding):
        assert grads == {torch.bfloat16} and states == {torch.float32} and out == torch.float32
        # A float32 sum in another order tips some over, 0.005 of them at most in one step, and these stay different.
        assert differing < 5 * 0.005


def test_offloaded_parameters_train_like_one_process(four: Ranks, expected: dict[str, Array]) -> None:
    assert max(four(training.offloaded, expected)) <= FLOAT64


def test_parts_on_the_cpu_under_a_mesh_of_gpus_keep_their_state_there(four: Ranks) -> None:
    for error, places in four(training.offloaded_from_a_gpu):
        assert error <= FLOAT64
        assert places == {"cpu"}


def test_sums_of_two_devices_travel_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FSDP2 offloads some modules only. There is one device here; meta tensors stand for those of another."""
    process_groups, added = ProcessGroups(), list[list[str]]()
    group_key = (0, 1), "cuda"
    monkeypatch.setattr(process_groups, "_order", {group_key: None})
    monkeypatch.setattr(_process_groups, "_add", lambda values, group: added.append([x.device.type for x in values]))
    process_groups.all_reduce(
        [PartialSum(torch.zeros(2, device=kind), (group_key,)) for kind in ("meta", "cpu", "meta")]
    )
    assert added == [["cpu"], ["meta", "meta"]]


@pytest.mark.parametrize("name", ["rows", "both"])
def test_clipping_schedulers_and_groups(four: Ranks, name: str) -> None:
    assert max(four(training.clipped_and_scheduled, name)) <= FLOAT64


def test_a_compiled_loop_steps_between_graphs(four: Ranks) -> None:
    answers = [answer for answer in four(training.compiled) if answer is not None]
    assert len(answers) == 2
    for error, one_graph in answers:
        assert error <= FLOAT64
        assert "step_between_graphs" in one_graph
