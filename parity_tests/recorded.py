"""The recorded runs of the originals: their inputs, their settings, and what came out (see vectors/README.md)."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HERE = Path(__file__).parent / "vectors"
SEED = 0
STEPS = 20
RECORDED = (1, 2, 3, 8, 9, 12, 20)  # the parameters after these steps are stored; t = 1 is the first update
ZERO_STEP = 8  # the gradient of this step is zero in every element
SHAPES = {
    "scalar": (),
    "vec7": (7,),
    "row1x5": (1, 5),
    "col5x1": (5, 1),
    "mat4x6": (4, 6),
    "mat130x140": (130, 140),
    "mat256x128": (256, 128),
    "conv_hwio": (3, 3, 16, 32),
    "batch2x130x140": (2, 130, 140),
    "rank5": (5, 4, 3, 2, 6),
    "conv_oihw": (32, 24, 3, 3),
    "cube": (6, 6, 6),
    "perm5x9x7": (9, 5, 7),
}
PARAM_SCALE = {"scalar": 0.5, "vec7": 0.0, "row1x5": 1e-5, "col5x1": 2.0}  # 0.05 where not listed
WHOLE_UP_TO = 24  # tensors with at most this many elements are stored whole ...
SAMPLES = 6  # ... of a larger one, this many evenly spaced elements in C order


@dataclass(frozen=True)
class Setting:
    """One setting of one original: the recipe's arguments, and what was done to the original from outside."""

    implementation: str
    name: str
    dtype: str  # of the parameters
    late_step: int | None  # before this step the counter was set to `late_finished`
    late_finished: int
    external_lr: Callable[[int], float] | None
    maximize: bool
    unsupported: frozenset[str]  # shapes that the recipe must refuse
    state_names: Mapping[str, str]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the recipe function.

        The rules for names that one shape was recorded with become rules for its name: a parameter is called as its
        shape here, so that one recipe is right for all of them.
        """
        entry = _settings()["implementations"][self.implementation]["settings"][self.name]
        given = {**entry["kwargs"], **entry.get("chain", {})}
        for shape, further in entry.get("kwargs_by_shape", {}).items():
            for argument, rules in further.items():
                assert [pattern for pattern, _ in rules] == [".*"]
                given[argument] = [*given.get(argument, []), *([f"^{shape}$", rule] for _, rule in rules)]
        return {key: _decode(value) for key, value in given.items()}


@dataclass(frozen=True)
class Run:
    """One setting on one shape: packed parameters by step, and packed state after the last one."""

    shape: str
    dtype: str
    params: dict[int, Array]
    state: dict[str, Array]
    state_shapes: dict[str, tuple[int, ...]]


def implementations() -> list[str]:
    """The originals whose runs are here; a name is that of the recipe."""
    return list(_settings()["implementations"])


def settings(implementation: str) -> list[Setting]:
    """The recorded settings of one original."""
    entry = _settings()["implementations"][implementation]
    found = []
    for name, setting in entry["settings"].items():
        late, external = setting.get("late", {}), setting.get("external_lr")
        found.append(
            Setting(
                implementation,
                name,
                dtype=setting.get("dtype", entry["dtype"]),
                late_step=late.get("before_step"),
                late_finished=late.get("finished_steps", 0),
                external_lr=_decode(external) if external else None,
                maximize=setting.get("optimizer_kwargs", {}).get("maximize", False),
                unsupported=frozenset(setting.get("unsupported", {}).get("shapes", ())),
                state_names=entry["state"],
            )
        )
    return found


def runs(setting: Setting) -> list[Run]:
    """Every recorded shape of one setting, the unsupported ones included."""
    return _runs(setting.implementation).get(setting.name, [])


@functools.cache
def _runs(implementation: str) -> dict[str, list[Run]]:
    with np.load(HERE / f"{implementation}.npz") as file:
        index, params, states = json.loads(str(file["index"])), file["params"], file["states"]
    found: dict[str, list[Run]] = {}
    p = s = 0
    for name, shape, dtype, tensors in index:
        size = _packed_size(SHAPES[shape])
        rows = params[p : p + size * len(RECORDED)].reshape(len(RECORDED), size)
        p += rows.size
        state = {}
        for tensor, tensor_shape in tensors:
            size = _packed_size(tensor_shape)
            state[tensor], s = states[s : s + size], s + size
        shapes = {tensor: tuple(tensor_shape) for tensor, tensor_shape in tensors}
        run = Run(shape, dtype, dict(zip(RECORDED, rows, strict=True)), state, shapes)
        found.setdefault(name, []).append(run)
    assert (p, s) == (params.size, states.size)
    return found


@functools.cache
def inputs(name: str) -> tuple[Array, Array]:
    """Initial parameter and the gradients of all steps for one of the named shapes; all values fit in float32.

    The gradients span six orders of magnitude from step to step and about two along every axis, so that rows differ
    from columns and the update clipping is sometimes active and sometimes not.
    """
    shape = SHAPES[name]
    rng = np.random.default_rng([SEED, list(SHAPES).index(name)])
    param = rng.standard_normal(shape) * PARAM_SCALE.get(name, 0.05)
    per_step = 10.0 ** rng.uniform(-3, 3, STEPS)
    largest, smallest = rng.permutation(STEPS)[:2]
    per_step[largest], per_step[smallest] = 1e3, 1e-3
    grads = rng.standard_normal((STEPS, *shape)) * per_step.reshape(STEPS, *[1] * len(shape))
    for axis, length in enumerate(shape, start=1):
        weights = 10.0 ** rng.uniform(-1, 1, length)
        grads = grads * weights.reshape([length if a == axis else 1 for a in range(grads.ndim)])
    grads[ZERO_STEP - 1] = 0.0
    made = _as_float32(param), _as_float32(grads)
    for array in made:
        array.setflags(write=False)  # they are shared
    return made


def pack(x: Array) -> Array:
    """A tensor as it is stored: its elements or a sample of them, then their sum, then their rms."""
    flat = np.asarray(x, np.float64).reshape(-1)
    whole = flat.size <= WHOLE_UP_TO
    kept = flat if whole else flat[np.linspace(0, flat.size - 1, SAMPLES).astype(int)]
    return np.concatenate([kept, [flat.sum(), np.sqrt(np.mean(flat * flat))]])


def largest_of(packed: Array) -> float:
    """The size of the largest element of a packed tensor."""
    return float(packed[-1])


def deviation(x: Array, packed: Array, once: float = 0.0) -> float:
    """Distance of a tensor from a packed one, relative to its largest element; inf where it is not finite.

    `once` is the size of the largest element that it has had: where steps cancel, their rounding errors are left.

    The sum is compared relative to (number of elements x rms), because it can cancel.
    """
    mine = pack(x)
    if not np.all(np.isfinite(mine)):
        return float("inf")
    largest = max(float(np.max(np.abs(x))), largest_of(packed), once)
    if largest == 0.0:
        return float(np.max(np.abs(mine - packed)))
    scale = np.full(mine.shape, largest)
    scale[-2] = x.size * largest
    return float(np.max(np.abs(mine - packed) / scale))


def _packed_size(shape: tuple[int, ...]) -> int:
    size = int(np.prod(shape, dtype=int))
    return (size if size <= WHOLE_UP_TO else SAMPLES) + 2


def _as_float32(x: Array) -> Array:
    return np.asarray(x, np.float32).astype(np.float64)


@functools.cache
def _settings() -> dict[str, Any]:
    return dict(json.loads((HERE / "settings.json").read_text()))


_FORMULA = re.compile(r"\w+\((?P<variable>[a-z])\) = (?P<body>.+), (?P=variable) = [01], ")


def _decode(value: Any) -> Any:
    """A JSON value as a Python argument: "inf", formulas and lists become float, functions and tuples."""
    if isinstance(value, str):
        match = _FORMULA.match(value)
        if match:
            return eval(f"lambda {match['variable']}: {match['body']}", {"__builtins__": {}})
        return float("inf") if value == "inf" else value
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value
