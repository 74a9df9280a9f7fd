"""Steps are counted exactly, past what float32 can count, on every path and after a resume; and with them the random
bits of stochastic rounding, which are the oracle's and new at every step."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from adafactor_jax import adafactor
from adafactor_spec import oracle
from adafactor_torch import Adafactor

from .jax_rounding import EXACT, SEED, signs, wide
from .test_torch_device_steps import count_here
from .torch_runs import advance, all_parameters, snapshot

STEPS = 5
# Finished steps before the first of them. float32 counts to 2^24; the bits take the count modulo 2^32.
STARTS = (2**24 - 2, 2**31 - 2, 2**32 - 2)
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "eager": {},
    "compiled": {"fused": True},
    "plain, counted on a device": {"foreach": False, "capturable": True},
    "eager, counted on a device": {"capturable": True},
    "eager, skipping": {"nonfinite": "skip"},
}
SIZE = 257
FIRST = np.random.default_rng(0).uniform(0.25, 1.0, SIZE)


def gradients(t: int) -> Any:
    """Of the t-th step that is taken here."""
    return wide(signs(t)["scale"])


def by_the_oracle(start: int) -> list[Any]:
    """The weight after one step, and after each of those that follow where `start` have been finished."""
    x, found = FIRST.astype(np.float16).astype(np.float64), []
    state = oracle.init(EXACT, x, dtype="float16", rounding="stochastic")
    for t in range(1 + STEPS):
        state = dataclasses.replace(state, step=start) if t == 1 else state
        how: dict[str, Any] = {"dtype": "float16", "rounding": "stochastic", "seed": SEED}
        x, state = oracle.step(EXACT, x, gradients(t), state, **how)
        found.append(x)
    return found


def built(weight: Any, path: str) -> Adafactor:
    p = torch.nn.Parameter(torch.tensor(np.asarray(weight), dtype=torch.float16))
    return Adafactor([p], recipe=EXACT, rounding="stochastic", seed=SEED, **PATHS[path])


def step(optimizer: Adafactor, t: int) -> torch.Tensor:
    """The parameter, after the t-th step."""
    (p,) = all_parameters(optimizer)
    p.grad = torch.tensor(gradients(t), dtype=torch.float16)
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize("resumed", [False, True], ids=["", "resumed"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("path", PATHS)
def test_torch_counts_on(path: str, start: int, resumed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    count_here(monkeypatch)
    expected = by_the_oracle(start)
    optimizer = built(FIRST, path)
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"].fill_(start)
    optimizer.load_state_dict(saved)
    for t in range(1, 1 + STEPS):
        if resumed:
            again = built(all_parameters(optimizer)[0].detach(), path)
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = again
        np.testing.assert_array_equal(step(optimizer, t).double().numpy(), expected[t])
        (state,) = optimizer.state.values()
        assert (state["step"].dtype, int(state["step"])) == (torch.int64, start + t)
    assert len({weight.tobytes() for weight in expected}) == len(expected)


def test_jax_counts_on_and_stays_at_the_largest_int32() -> None:
    """Where optax's counts stay, too."""
    tx, p = adafactor(recipe=EXACT, rounding="stochastic", seed=SEED), jnp.asarray(FIRST, "float16")
    update, state = jax.jit(tx.update), tx.init(p)
    for t, expected in enumerate(by_the_oracle(STARTS[0])):
        state = state._replace(count=jnp.int32(STARTS[0])) if t == 1 else state
        updates, state = update(jnp.asarray(gradients(t), "float32"), state, p)
        p = (p + updates).astype("float16")
        np.testing.assert_array_equal(wide(p), expected)
    assert (state.count.dtype, int(state.count)) == (jnp.int32, STARTS[0] + STEPS)
    for count in (2**31 - 2, 2**31 - 1):
        _, state = update(jnp.asarray(gradients(1), "float32"), state._replace(count=jnp.int32(count)), p)
        assert int(state.count) == 2**31 - 1


def test_what_float32_has_counted_goes_on_exactly() -> None:
    """A checkpoint of a version that counted in float32, or an optimizer that was pickled by one."""
    optimizer = built(FIRST, "eager")
    for t in (0, 1):
        step(optimizer, t)
    (p,) = all_parameters(optimizer)
    old = copy.deepcopy(optimizer.state_dict())
    old["state"][0]["step"] = old["state"][0]["step"].float()
    resumed, pickled = built(p.detach(), "eager"), copy.deepcopy(optimizer)
    resumed.load_state_dict(old)
    held = all_parameters(pickled)[0]
    pickled.state[held]["step"] = pickled.state[held]["step"].float()  # in the middle of its run
    for t in (2, 3):
        for each in (optimizer, resumed, pickled):
            step(each, t)
    assert snapshot(resumed) == snapshot(optimizer) == snapshot(pickled)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_torch_distributed_from_float32(tmp_path: Path) -> None:
    """It is read into the counters that are there."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    models = [torch.nn.Linear(3, 2).half() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [Adafactor(model.named_parameters(), lr=0.1, rounding="stochastic") for model in models]
    advance(optimizers[0], 1, 3)
    models[1].load_state_dict(models[0].state_dict())
    saved = get_optimizer_state_dict(models[0], optimizers[0])
    states: Any = saved["state"]
    for entries in states.values():
        entries["step"] = entries["step"].float()
    save({"optimizer": saved}, checkpoint_id=tmp_path, no_dist=True)
    loaded = get_optimizer_state_dict(models[1], optimizers[1])
    load({"optimizer": loaded}, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(models[1], optimizers[1], loaded)
    for optimizer in optimizers:
        advance(optimizer, 4, 5)
    assert snapshot(optimizers[1]) == snapshot(optimizers[0])
    assert {int(state["step"]) for state in optimizers[1].state.values()} == {5}


def test_a_step_that_is_left_out_is_taken_back_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    count_here(monkeypatch)
    optimizer = built(FIRST, "eager, skipping")
    step(optimizer, 0)
    (p,) = all_parameters(optimizer)
    optimizer.state[p]["step"].fill_(2**24 + 1)
    p.grad = torch.full_like(p, torch.inf)
    optimizer.step()
    assert int(optimizer.state[p]["step"]) == 2**24 + 1
