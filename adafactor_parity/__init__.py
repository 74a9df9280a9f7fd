"""Where the two frameworks meet: the command-line tool that shows that they compute the same.

    adafactor verify                                 # or: python -m adafactor_parity verify
    adafactor lint 'transformers.Adafactor(params, lr=1e-3, relative_step=False)'

`verify` and `lint` are the same as functions; they return a `Verification` and a `Lint`. The runners step a recipe in
the oracle, in JAX and in torch behind one interface, and `budget` says how far two of them may be apart.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._budgets import Budget, budget, ulp
    from ._lint import Lint, lint
    from ._runners import JaxRunner, OracleRunner, TorchRunner
    from ._verification import Verification
    from ._verify import verify

_HOMES = {
    "Budget": "_budgets",
    "JaxRunner": "_runners",
    "Lint": "_lint",
    "OracleRunner": "_runners",
    "TorchRunner": "_runners",
    "Verification": "_verification",
    "budget": "_budgets",
    "lint": "_lint",
    "ulp": "_budgets",
    "verify": "_verify",
}

__all__ = [
    "Budget",
    "JaxRunner",
    "Lint",
    "OracleRunner",
    "TorchRunner",
    "Verification",
    "budget",
    "lint",
    "ulp",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Only on use: both frameworks together take seconds to load, and `adafactor --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
