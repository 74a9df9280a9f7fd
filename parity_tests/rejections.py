"""Which recorded runs reject which named wrong Adafactor: what the tests and the table ask."""

from collections.abc import Iterator

import numpy as np
import pytest

from adafactor_spec import oracle
from parity_tests import recorded, replay
from parity_tests.faults import FAULTS

# Small ones, with everything that a fault can be about: no axis, ties, a shortest axis of 4, batch axes with factors
# and without.
SHAPES = ("vec7", "mat4x6", "cube", "perm5x9x7", "rank5")


def rejections(fault: str, implementation: str) -> Iterator[tuple[str, float]]:
    """(setting, worst deviation) of every setting of an original that rejects the fault, planted in the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch, oracle)
        for setting in recorded.settings(implementation):
            if {run.shape for run in recorded.runs(setting)} - setting.unsupported:
                worst = _worst(setting)
                if worst > replay.tolerance(setting):
                    yield setting.name, worst


def _worst(setting: recorded.Setting) -> float:
    with np.errstate(all="ignore"):
        try:
            return replay.replay(setting, replay.run_oracle, SHAPES).worst[0]
        except ValueError:  # two factors that cannot be multiplied are a rejection, too
            return float("inf")
