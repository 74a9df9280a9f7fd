"""Adafactor for torch: `Adafactor`, a `torch.optim.Optimizer`, and `release_gradients`.

    from adafactor_torch import Adafactor

    optimizer = Adafactor(model.parameters(), lr=1e-2)

Learning rates, decays and factoring rules are values of `adafactor_spec.schedules` and `adafactor_spec.factoring`.
"""

from ._adafactor import Adafactor
from ._gradient_release import release_gradients

__all__ = ["Adafactor", "release_gradients"]
