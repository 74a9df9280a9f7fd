"""What the difference between two recipes does to the sample matrix."""

import numpy as np
import pytest

from adafactor_parity._recipes.difference import LR, difference, sample
from adafactor_spec import oracle, recipes, replace


def test_the_steps_are_those_of_the_oracle() -> None:
    found = difference("paper", "t5x")
    start, gradients = sample()
    pair = [recipes.paper(), replace(recipes.t5x(), lr=LR)]
    params = [start, start]
    states = [oracle.init(recipe, start) for recipe in pair]
    for t, g in enumerate(gradients):
        for which, recipe in enumerate(pair):
            old = params[which]
            params[which], states[which] = oracle.step(recipe, old, g, states[which])
            rms = float(np.sqrt(np.mean((params[which] - old) ** 2)))
            assert found.rms[which][t] == pytest.approx(rms, rel=1e-12)
        apart = np.linalg.norm(params[0] - params[1]) / np.linalg.norm(params[0] - start)
        assert found.apart[t] == pytest.approx(apart, rel=1e-9, abs=1e-14)
    assert states[0].step == len(found.apart) == 100
    assert states[1].v is None, "both are factored"


def test_the_sample_has_uneven_rows_and_columns_and_changes_slowly() -> None:
    _, gradients = sample()
    steps = list(gradients)
    for axis in (0, 1):
        sizes = np.sqrt(np.mean(np.square(steps), axis=(0, 1 + axis)))
        assert 10 < max(sizes) / min(sizes) < 1000
    sizes = np.sqrt(np.mean(np.square(steps), axis=(1, 2)))
    assert 2 < max(sizes) / min(sizes) < 10
    assert max(abs(np.log(sizes[1:] / sizes[:-1]))) < 0.2
    assert all(np.array_equal(a, b) for a, b in zip(steps, sample()[1], strict=True))


def test_every_recipe_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adafactor_parity._recipes.difference.STEPS", 5)
    for name in recipes.NAMES[1:]:
        found = difference("paper", name)
        assert np.isfinite(found.rms).all() and np.isfinite(found.apart).all(), name
