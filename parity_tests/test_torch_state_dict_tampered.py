"""State dicts that nobody saved are refused in form, and nothing has changed; what is loaded is what was given."""

import copy
import re
import warnings
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adafactor_torch import Adafactor

from .tampered import CASES, FINE, changed, drawn, optimizer, saved
from .torch_runs import advance, all_parameters, bits, frozen, parameters, snapshot

FORM = re.compile(r" must be .+, got .+|^loaded state dict (has a different number|contains a parameter group)", re.S)
SAVED = saved()


@pytest.fixture(scope="module")
def victim() -> Adafactor:
    """What state dicts are loaded into: in the middle of a run, its gradients there for one more step."""
    made = optimizer()
    advance(made, 1, 1)
    return made


def refused(victim: Adafactor, state_dict: Any) -> bool:
    """Whether loading is refused, in form and with nothing changed: state, groups, counts, or what is remembered."""
    before, engine, message = snapshot(victim), victim._driver, ""
    try:
        victim.load_state_dict(state_dict)
    except ValueError as error:
        message = str(error)
    if message:
        assert FORM.search(message), message
        assert snapshot(victim) == before and victim._driver is engine
    return bool(message)


@pytest.mark.filterwarnings("ignore:.*(quantized tensor|nested tensors|Sparse)")
@pytest.mark.parametrize("case", CASES)
def test_what_nobody_saved_is_refused(case: str, victim: Adafactor) -> None:
    assert refused(victim, changed(CASES[case], SAVED))


def contents(state_dict: Any) -> Any:
    """What it says but for how a count is stored, which paths are taken, and the format."""
    state = {
        key: {entry: float(x) if entry == "step" else bits(x.detach().resolve_neg()) for entry, x in entries.items()}
        for key, entries in state_dict["state"].items()
    }
    ignored = ("format", "foreach", "fused", "capturable", "note")
    groups = [{k: v for k, v in group.items() if k not in ignored} for group in state_dict["param_groups"]]
    for group in groups:  # two ways to write the same
        group["weight_decay"] = group["weight_decay"] or 0.0
        group["weight_decay_by"] = {0: "one", 1: "lr"}.get(group["weight_decay_by"], group["weight_decay_by"])
    return frozen([state, groups])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", FINE)
def test_what_only_looks_wrong_is_loaded_as_it_is(case: str, fused: bool) -> None:
    """Whatever memory a saved tensor has, the steps that follow are those of a plain copy."""
    state_dict, runs = changed(FINE[case], SAVED), []
    plain = copy.deepcopy(state_dict)
    for entries in plain["state"].values():
        for entry, x in entries.items():
            if isinstance(x, torch.Tensor):
                entries[entry] = torch.tensor(x.tolist(), dtype=x.dtype)
    for given_dict in (state_dict, plain):
        loaded = optimizer()
        for group in loaded.param_groups:
            group["fused"] = fused
        assert not refused(loaded, given_dict)
        assert contents(loaded.state_dict()) == contents(given_dict)
        assert all(x.is_contiguous() for p in all_parameters(loaded) for x in loaded.state[p].values())
        advance(loaded, 3, 4)
        runs.append(frozen([all_parameters(loaded), [loaded.state[p] for p in all_parameters(loaded)]]))
    assert runs[0] == runs[1]


@given(seed=st.integers(0, 2**32 - 1))
def test_a_drawn_change_is_refused_or_loaded_as_it_is(seed: int) -> None:
    what, state_dict = drawn(Random(seed), SAVED)
    loaded = optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if refused(loaded, state_dict):
            return
    for group, theirs in zip(loaded.param_groups, state_dict["param_groups"], strict=True):
        theirs.setdefault("param_names", group["param_names"])  # where they are missing, torch keeps those in use
    assert contents(loaded.state_dict()) == contents(state_dict), what
    try:
        advance(loaded, 3, 3)
    except ValueError as error:
        raise AssertionError(f"{what}: loaded, but {error}") from error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_that_was_cast_is_refused(dtype: torch.dtype) -> None:
    """As torch's own loading casts it: the moments of a run with 16-bit parameters would have lost their precision."""
    source = Adafactor(parameters(torch.bfloat16), beta1=0.9)
    advance(source, 1, 2)
    state_dict = copy.deepcopy(source.state_dict())
    for entries in state_dict["state"].values():
        entries["m"] = entries["m"].to(dtype)
    assert refused(Adafactor(parameters(torch.bfloat16), beta1=0.9), state_dict) == (dtype == torch.bfloat16)


def test_the_dtypes_of_a_field_that_was_changed_are_saved_and_loaded() -> None:
    """Whoever changes `momentum_dtype` in the middle of a run changes the state, too."""
    source = Adafactor(parameters(), beta1=0.9)
    advance(source, 1, 2)
    source.param_groups[0]["momentum_dtype"] = "bfloat16"
    advance(source, 3, 3)
    assert {source.state[p]["m"].dtype for p in all_parameters(source)} == {torch.bfloat16}
    loaded = Adafactor(parameters(), beta1=0.9)
    assert not refused(loaded, source.state_dict())
    assert contents(loaded.state_dict()) == contents(source.state_dict())
