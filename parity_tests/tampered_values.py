"""What may stand in a state dict and should not: counts, tensors, texts of schedules, and values of groups."""

import json
import math
from typing import Any

import numpy as np
import torch


def nested(depth: int) -> Any:
    """A dict in a dict in a dict ..."""
    value: Any = {}
    for _ in range(depth):
        value = {"kind": "product", "first": value, "second": 1.0}
    return value


def cyclic() -> Any:
    """A dict inside itself."""
    value: dict[str, Any] = {}
    value["kind"] = value
    return value


def _put(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[-1] = value
    return x


def _negative_beside_nan(x: torch.Tensor) -> torch.Tensor:
    x = _put(x, -1e-20)
    x.view(-1)[0] = math.nan
    return x


class _Tensor(torch.Tensor):
    """A subclass that nobody knows."""


STEPS: dict[str, Any] = {
    "-5": torch.tensor(-5.0),
    "-1, whole": torch.tensor(-1),
    "2.5": torch.tensor(2.5),
    "NaN": torch.tensor(math.nan),
    "inf": torch.tensor(math.inf),
    "-inf": torch.tensor(-math.inf),
    "too many": torch.tensor(1e30),
    "complex": torch.tensor(2.0 + 1.0j),
    "bool": torch.tensor(True),
    "a Python bool": True,
    "a Python NaN": math.nan,
    "one in a list": torch.tensor([2.0]),
    "text": "2",
    "None": None,
    "a list": [2],
    "meta": torch.tensor(2.0, device="meta"),
    "sparse": torch.tensor(2.0).to_sparse(),
}
TENSORS: dict[str, Any] = {
    "None": None,
    "a list": lambda x: x.tolist(),
    "text": "v",
    "a number": 0.5,
    "a dict": {},
    "NumPy": lambda x: x.float().numpy(),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "nested": lambda x: torch.nested.nested_tensor([x]),
    "subclass": lambda x: x.as_subclass(_Tensor),
    "complex": lambda x: x.to(torch.complex64),
    "int": lambda x: x.to(torch.int64),
    "bool": lambda x: x.to(torch.bool),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "empty": lambda x: x.new_empty(0),
    "flat": lambda x: x.reshape(-1, 1, 1, 1),
    "broadcast": lambda x: x.new_zeros(()),
    "longer": lambda x: torch.cat([x, x]),
}
MOMENTS: dict[str, Any] = {
    "negative": lambda x: _put(x, -1e-20),
    "-inf": lambda x: _put(x, -math.inf),
    "negative beside NaN": _negative_beside_nan,
    "float16": lambda x: x.to(torch.float16),
    "bfloat16": lambda x: x.to(torch.bfloat16),
}
TEXTS: dict[str, Any] = {
    "not JSON": "{",
    "no kind": "{}",
    "a kind that is none": '{"kind": "cosine"}',
    "a kind that is a number": '{"kind": 3}',
    "a kind that is a list": '{"kind": []}',
    "a kind that is a dict": '{"kind": {}}',
    "a kind of Python": '{"kind": "__class__"}',
    "a base class": '{"kind": "Schedule"}',
    "a private class": '{"kind": "_LastTwo"}',
    "a function of a module": '{"kind": "check_schedule"}',
    "a rule where a schedule stands": '{"kind": "last_two"}',
    "a field too few": '{"kind": "constant"}',
    "a field too many": '{"kind": "inverse_sqrt", "flat_until": 1, "more": 2}',
    "a field of Python": '{"kind": "inverse_sqrt", "__class__": 1}',
    "a field too many of a rule": '{"kind": "last_two", "rows": 1}',
    "an inner text": '{"kind": "relative_step", "base": "0.1"}',
    "an inner None": '{"kind": "piecewise_constant", "base": 0.1, "boundaries": null, "factor": 0.5}',
    "an inner list": '{"kind": "constant", "value": [1.0]}',
    "an inner NaN": '{"kind": "constant", "value": NaN}',
    "an inner negative": '{"kind": "constant", "value": -1.0}',
    "an inner bool": '{"kind": "linear_warmup", "base": 0.1, "steps": true}',
    "too large": '{"kind": "power", "base": 1e300, "exponent": 20}',
    "a number of many digits": '{"kind": "constant", "value": 1' + 5000 * "0" + "}",
    "a whole number that is too large": '{"kind": "constant", "value": 1' + 400 * "0" + "}",
    "a function and more": '{"function": "f", "kind": "constant"}',
    "a function without a name": '{"function": null}',
    "a function in a schedule": '{"kind": "zero_based", "of_count": {"function": "f"}}',
    "axes that are none": '{"kind": "explicit", "rows": null, "cols": [], "batch": []}',
    "rules that are none": '{"kind": "by_name", "rules": null, "default": null}',
    "rules that are texts": '{"kind": "by_name", "rules": ["ab"], "default": null}',
    "rules that are triples": '{"kind": "by_name", "rules": [["a", {"kind": "last_two"}, 1]], "default": null}',
    "rules with numbers": '{"kind": "by_name", "rules": [[1, {"kind": "last_two"}]], "default": null}',
    "rules twice": '{"kind": "by_name", "rules": [["a", {"kind": "last_two"}], ["a", {"kind": "last_two"}]]}',
    "a rule that is a schedule": '{"kind": "by_name", "rules": [["a", {"kind": "inverse_sqrt"}]], "default": null}',
    "a pattern that is none": '{"kind": "per_name", "rules": [["(", 0.1]], "default": null}',
    "limited to nothing": '{"kind": "limited", "rule": {"kind": "last_two"}, "axes": [3], "rows_last": false}',
    "deep": json.dumps(nested(200)),
    "very deep": 100_000 * '{"kind": ' + "1" + 100_000 * "}",
}
VALUES: dict[str, Any] = {
    "a list": [0.1],
    "a tuple": (0.1,),
    "a dict": {"kind": "last_two"},
    "a cycle": cyclic(),
    "deep": nested(3000),
    "a set": {1},
    "bytes": b"{}",
    "text": "junk",
    "complex": 1j,
    "NaN": math.nan,
    "-1": -1.0,
    "10^400": 10**400,
    "an object": object(),
    "a type": int,
    "a tensor": torch.tensor([-1.0, 2.0]),
    "a tensor of -1": torch.tensor(-1.0),
    "a NumPy array": np.ones(3),
    "a NumPy array of -1": np.array(-1.0),
}
ODD: dict[str, Any] = {"True": True, "0": 0, "1": 1, "1e-3": 1e-3, "inf": math.inf, "'float64'": "float64", "{}": {}}
