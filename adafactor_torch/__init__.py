"""Adafactor for torch: `Adafactor`, a `torch.optim.Optimizer`.

    from adafactor_torch import Adafactor

    optimizer = Adafactor(model.parameters(), lr=1e-2)

Learning rates, decays and factoring rules are values of `adafactor_spec.schedules` and `adafactor_spec.factoring`.
"""

from ._adafactor import Adafactor

__all__ = ["Adafactor"]
