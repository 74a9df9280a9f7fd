"""What `adafactor verify` trains on and with: the text, its batches, the same model in both frameworks, the drift."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from adafactor_parity._verify.training import model_jax
from adafactor_parity._verify.training.corpus import (
    LARGEST_ALPHABET,
    Codes,
    batch,
    default_text,
    load,
    split,
    unigram_entropy,
    windows,
)
from adafactor_parity._verify.training.model import Config, Weights, initial_weights
from adafactor_parity._verify.training.model_torch import Transformer
from adafactor_parity._verify.training.train import furthest
from adafactor_parity.errors import UsageError

CONFIG = Config(vocabulary=11, context=8, width=12, heads=3, layers=2)

# Text ---------------------------------------------------------------------------------------------------------------


def test_the_default_text_is_there_and_its_last_tenth_is_held_out() -> None:
    corpus = load(None)
    assert corpus.is_default
    assert corpus.characters > 400_000
    assert corpus.train.size + corpus.held_out.size == corpus.characters
    assert corpus.held_out.size == corpus.characters // 10
    assert corpus.train.max() < corpus.vocabulary == len(set(default_text()))


def test_codes_stand_for_characters() -> None:
    text = "hello world " * 100
    corpus = split(text, "a test")
    alphabet = sorted(set(text))
    codes = np.concatenate([corpus.train, corpus.held_out])
    assert "".join(alphabet[code] for code in codes) == text


def test_rare_characters_share_a_code() -> None:
    common = "".join(chr(0x4E00 + i) for i in range(LARGEST_ALPHABET - 1)) * 3
    rare = "".join(chr(0x3041 + i) for i in range(20))
    corpus = split(rare + common, "a test")
    codes = np.concatenate([corpus.train, corpus.held_out])
    assert corpus.vocabulary == LARGEST_ALPHABET
    assert set(codes[: len(rare)]) == {LARGEST_ALPHABET - 1}
    assert LARGEST_ALPHABET - 1 not in codes[len(rare) :]


def test_batches_replay_from_the_seed_and_the_step() -> None:
    codes = load(None).train
    how: dict[str, Any] = {"size": 4, "context": 16}
    inputs, targets = batch(codes, seed=3, step=5, **how)
    again, _ = batch(codes, seed=3, step=5, **how)
    assert inputs.shape == targets.shape == (4, 16)
    assert np.array_equal(inputs, again)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    for seed, step in ((3, 6), (4, 5)):
        other, _ = batch(codes, seed=seed, step=step, **how)
        assert not np.array_equal(inputs, other)


def test_windows_cover_the_held_out_part_and_do_not_leave_it() -> None:
    codes = np.arange(101, dtype=np.int32)
    inputs, targets = windows(codes, count=100, context=10)
    assert inputs.shape == (10, 10)
    assert inputs[0, 0] == 0
    assert targets[-1, -1] == 100


def test_the_entropy_of_single_characters() -> None:
    assert unigram_entropy(np.array([0, 1] * 8, np.int32)) == pytest.approx(np.log(2))
    assert unigram_entropy(np.zeros(8, np.int32)) == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "which is empty"),
        (b"short", "which has 5"),
        (b"\xff\xfe" * 1000, "which is not UTF-8"),
        (b"text \0 " * 1000, "which is binary"),
        (None, "which does not exist"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"--text must be .*{says}.*leave --text out"):
        load(path)


def test_a_file_of_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Grüße. " * 200, encoding="utf-8-sig")
    corpus = load(path)
    assert (corpus.source, corpus.characters, corpus.vocabulary) == ("a.txt", 1400, 7)
    assert not corpus.is_default


# The two models -----------------------------------------------------------------------------------------------------


def _batch() -> tuple[Codes, Codes]:
    codes = np.random.default_rng(1).integers(0, CONFIG.vocabulary, 100).astype(np.int32)
    return batch(codes, seed=0, step=1, size=3, context=CONFIG.context)


def _in_jax(weights: Weights) -> tuple[float, dict[str, Any]]:
    with jax.enable_x64(True):
        params = {name: jax.numpy.asarray(value, "float64") for name, value in weights.items()}
        value, grads = jax.jit(jax.value_and_grad(model_jax.loss), static_argnums=3)(params, *_batch(), CONFIG)
        return float(value), {name: np.asarray(grad) for name, grad in grads.items()}


def _in_torch(weights: Weights) -> tuple[float, dict[str, Any]]:
    model = Transformer(CONFIG, weights, dtype=torch.float64, device=torch.device("cpu"))
    value = model.loss(*(torch.from_numpy(codes).long() for codes in _batch()))
    value.backward()
    return value.item(), {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.max(np.abs(one[name] - other[name])) / np.max(np.abs(other[name]))) for name in other)


def test_the_models_agree_in_loss_and_gradient() -> None:
    weights = initial_weights(CONFIG, seed=7)
    jax_loss, jax_grads = _in_jax(weights)
    torch_loss, torch_grads = _in_torch(weights)
    assert torch_grads.keys() == weights.keys()
    assert jax_loss == pytest.approx(torch_loss, rel=1e-12)
    assert _apart(jax_grads, torch_grads) < 1e-12
    assert all(np.any(grad) for grad in torch_grads.values()), "a weight without a gradient proves nothing"


def test_another_gelu_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=False))
    weights = initial_weights(CONFIG, seed=7)
    assert _apart(_in_jax(weights)[1], _in_torch(weights)[1]) > 1e-6


def test_no_character_sees_the_future() -> None:
    weights = initial_weights(CONFIG, seed=7)
    model = Transformer(CONFIG, weights, dtype=torch.float64, device=torch.device("cpu"))
    codes = torch.zeros(1, CONFIG.context, dtype=torch.long)
    changed = codes.clone()
    changed[0, 5] = 1
    same = (model(codes) == model(changed)).all(dim=-1)[0]
    assert same[:5].all()
    assert not same[5:].any()


def test_the_drift_names_the_worst_element() -> None:
    theirs = {"a": np.array([[1.0, -4.0]]), "b": np.array([2.0])}
    ours = {"a": np.array([[1.0, -4.2]]), "b": np.array([2.001])}
    drift = furthest(ours, theirs)
    assert (drift.parameter, drift.shape, drift.element) == ("a", (1, 2), (0, 1))
    assert drift.relative == pytest.approx(0.05)
    for bad in (np.nan, np.inf):
        assert furthest({**ours, "b": np.array([bad])}, theirs).relative == np.inf
        assert furthest(theirs, {**theirs, "b": np.array([bad])}).relative == np.inf
    assert furthest(theirs, theirs).relative == 0
