"""The oracle, JAX and torch against recorded runs of the originals."""

import numpy as np
import pytest

from adafactor_spec import dtypes, factoring, recipes
from parity_tests import recorded, replay
from parity_tests.profiles import draws_many
from parity_tests.recorded import Setting

ALL = [setting for name in recorded.implementations() for setting in recorded.settings(name)]
SUPPORTED = [setting for setting in ALL if any(run.shape not in setting.unsupported for run in recorded.runs(setting))]
UNSUPPORTED = [setting for setting in ALL if setting.unsupported]
# Of each original the setting with the most arguments: what XLA makes of a whole step is another order of the same
# arithmetic for all of them.
RICHEST = [
    max(recorded.settings(name), key=lambda setting: len(setting.arguments()) * (setting in SUPPORTED))
    for name in recorded.implementations()
]


def name_of(setting: Setting) -> str:
    return f"{setting.implementation}-{setting.name}"


# One process for all of JAX: it compiles an operator once for every shape, which takes longer than running it.
RUNNERS = [
    pytest.param(runner, marks=pytest.mark.xdist_group("recorded in JAX") if runner == "jax" else ())
    for runner in replay.RUNNERS
]


@pytest.mark.sampled  # each setting in one of the three; `make tables` shows all of them
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("setting", SUPPORTED, ids=name_of)
def test_recorded_runs(setting: Setting, runner: str) -> None:
    assert_matched(setting, replay.replay(setting, replay.RUNNERS[runner]))


@pytest.mark.parametrize("setting", RICHEST, ids=name_of)
def test_recorded_runs_compiled(setting: Setting) -> None:
    shapes = recorded.SHAPES if draws_many() else ("vec7", "mat4x6", "rank5")  # half a second of compiling each
    assert_matched(setting, replay.replay(setting, replay.COMPILED, tuple(shapes)))


@pytest.mark.parametrize("runner", replay.RUNNERS)
@pytest.mark.parametrize("setting", UNSUPPORTED, ids=name_of)
def test_unsupported_runs_are_refused(setting: Setting, runner: str) -> None:
    taken = [shape for shape in setting.unsupported if not replay.refuses(setting, runner, shape)]
    assert not taken


@pytest.mark.parametrize("runner", replay.RUNNERS)
@pytest.mark.parametrize("setting", [s for s in ALL if s.name == "bf16_momentum"], ids=name_of)
def test_a_bfloat16_momentum_is_stored_in_bfloat16(setting: Setting, runner: str) -> None:
    for state in replay.replay(setting, replay.RUNNERS[runner], ("mat4x6",)).states.values():
        np.testing.assert_array_equal(state["m"], dtypes.round_to(state["m"], "bfloat16"))


def test_every_recorded_run_is_here() -> None:
    """(runs that must match, runs that must be refused) of each original."""
    counts = {
        name: (len(found), sum(run.shape in setting.unsupported for setting, run in found))
        for name in recorded.implementations()
        for found in [[(setting, run) for setting in recorded.settings(name) for run in recorded.runs(setting)]]
    }
    assert {name: (total - refused, refused) for name, (total, refused) in counts.items()} == {
        "paper": (14, 0),
        "adafactor_pytorch": (195, 0),
        "adafactor_pytorch_parent": (195, 0),
        "tensor2tensor": (143, 0),
        "mesh_tensorflow": (84, 12),
        "flax": (143, 0),
        "t5x": (116, 0),
        "optax": (195, 0),
        "big_vision": (104, 0),
        "praxis": (153, 3),
        "fairseq": (169, 0),
        "transformers": (182, 0),
        "kohya": (52, 0),
        "colossalai": (143, 0),
        "torch": (169, 0),
        "keras": (130, 0),
        "timm": (156, 0),
        "timm_big_vision": (195, 0),
        "pytorch_optimizer": (208, 0),
    }
    assert sum(total for total, _ in counts.values()) == 2761
    assert set(counts) == set(recipes.ORIGINALS)


def test_a_replay_has_every_recorded_tensor() -> None:
    for setting in SUPPORTED:
        for run in recorded.runs(setting):
            assert run.dtype == setting.dtype
            assert set(run.params) == set(recorded.RECORDED)
            assert set(run.state) <= set(setting.state_names)
    setting = SUPPORTED[1]
    found = replay.replay(setting, replay.run_oracle, ("mat4x6",)).deviations
    assert list(found) == ["mat4x6"]
    (run,) = (run for run in recorded.runs(setting) if run.shape == "mat4x6")
    assert set(found["mat4x6"]) == {*(f"t={t}" for t in recorded.RECORDED), *run.state}


def test_rules_by_name_are_those_that_were_recorded() -> None:
    """`arguments` gives each shape's rule a name; recorded was one rule for every name."""
    setting = next(setting for setting in recorded.settings("t5x") if setting.name == "rules")
    rule = replay.recipe_of(setting).factoring
    plans = {run.shape: factoring.plan(rule, recorded.SHAPES[run.shape], run.shape) for run in recorded.runs(setting)}
    assert {shape: (plan.rows, plan.cols, plan.batch) for shape, plan in plans.items()} == {
        "batch2x130x140": ((1,), (2,), (0,)),
        "conv_hwio": ((0, 1, 2), (3,), ()),
        "rank5": ((1, 4), (2, 3), (0,)),
        "cube": ((0,), (2,), (1,)),
        "conv_oihw": ((1, 2, 3), (0,), ()),
        "perm5x9x7": ((), (), (0,)),
    }


def test_inputs_are_those_that_were_recorded() -> None:
    with np.load(recorded.HERE / "inputs.npz") as stored:
        for name in recorded.SHAPES:
            param, grads = recorded.inputs(name)
            np.testing.assert_array_equal(recorded.pack(param), stored[f"{name}/param"])
            np.testing.assert_array_equal([recorded.pack(g) for g in grads], stored[f"{name}/grads"])


def assert_matched(setting: Setting, found: replay.Replay) -> None:
    (worst, where), allowed = found.worst, replay.tolerance(setting)
    assert found.deviations
    assert worst <= allowed, f"{where}: {worst:.3g} of the largest element, allowed {allowed}"
