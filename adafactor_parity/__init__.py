"""The command line `adafactor`, which compares the two optimizers with each other and reads other libraries' calls.

    adafactor verify                                 # or: python -m adafactor_parity verify
    adafactor lint 'transformers.Adafactor(params, lr=1e-3, relative_step=False)'

`verify` and `lint` are the same as functions; they return a `Verification` and a `Lint`. The runners step a recipe in
the oracle, in JAX and in torch behind one interface, and `budget` says how far two of them may be apart.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._lint.lint import Lint, lint
    from ._verify.stepping.budgets import FLOOR_ULP, Budget, budget, ulp
    from ._verify.stepping.runners import JaxRunner, OracleRunner, TorchRunner
    from ._verify.verification import Verification
    from ._verify.verify import verify

_HOMES = {
    "FLOOR_ULP": "_verify.stepping.budgets",
    "Budget": "_verify.stepping.budgets",
    "JaxRunner": "_verify.stepping.runners",
    "Lint": "_lint.lint",
    "OracleRunner": "_verify.stepping.runners",
    "TorchRunner": "_verify.stepping.runners",
    "Verification": "_verify.verification",
    "budget": "_verify.stepping.budgets",
    "lint": "_lint.lint",
    "ulp": "_verify.stepping.budgets",
    "verify": "_verify.verify",
}

__all__ = [
    "FLOOR_ULP",
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
    # Imported when it is used: both frameworks together take seconds to load, and `adafactor --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
