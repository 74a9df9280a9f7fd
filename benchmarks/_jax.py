"""The run in JAX: every case, every optimizer. Only steps are timed: parameters and fixed gradients, no model."""

import contextlib
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_parity._progress import Progress

from . import _machine, _shared
from ._jax_compiled import Compilations, allocated, counted, tree_bytes, without_cache
from ._jax_optimizers import BASELINE, ENTRIES, Entry
from ._options import Options
from ._patience import patience
from ._results import Case, Measured, Results
from ._rounds import bytes_to_move, interleaved, ratio, spread
from ._workloads import WORKLOADS, Shape

OPTIMIZERS = tuple(ENTRIES)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Tree = Any


@dataclass(kw_only=True)
class _Contender:
    """A step as users write it, with what it goes on from: parameters and state are donated, gradients are not."""

    jitted: Any
    params: Tree
    state: Tree
    gradients: Tree
    compilations: Compilations = field(default_factory=Compilations)
    warnings: tuple[str, ...] = ()
    first_step_seconds: float = 0.0

    def step(self) -> float:
        """One step; its seconds."""
        with counted(self.compilations):
            start = time.perf_counter()
            after = self.jitted(self.params, self.state, self.gradients)
            self.params, self.state = jax.block_until_ready(after)
            return time.perf_counter() - start


def devices() -> tuple[str, ...]:
    """The platforms that JAX has here."""
    return tuple(name for name in PLATFORMS if _has(name))


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    device = jax.devices(options.device)[0]
    chosen = _shared.chosen(ENTRIES, options, BASELINE)
    wanted = _shared.cases(options, chosen, lambda dtype: jnp.dtype(dtype).itemsize, _free_bytes(device))
    # A default and no jax.device_put: a committed array among the arguments would be another program.
    with (
        Progress(len(wanted) * (len(chosen) + options.rounds)) as progress,
        jax.default_device(device),
        without_cache(),
    ):
        cases = tuple(_case(options, chosen, *case, progress) for case in wanted)
    accelerator = {} if options.device == "cpu" else {"accelerator": device.device_kind}
    return _shared.results(
        "jax",
        options,
        ENTRIES[BASELINE],
        cases,
        threads=None,
        versions=_machine.versions(("jax", "jaxlib"), peers=("optax",)),
        **accelerator,
    )


def _case(
    options: Options, chosen: dict[str, Entry], workload: str, dtype: str, momentum: bool, progress: Progress
) -> Case:
    gc.collect()  # what the case before this one leaves in cycles is gigabytes
    shapes = [_in_jax(shape) for shape in WORKLOADS[workload](options.quick)]
    values, gradients = (_drawn(shapes, dtype, options.seed + i) for i in range(2))
    contenders: dict[str, _Contender] = {}
    errors: dict[str, str] = {}
    part = _shared.taking_part(chosen, momentum, len(shapes))
    for name, entry in part.items():
        progress.describe(f"{workload}, {entry.label}")
        try:
            with patience(options.patience):
                contenders[name] = _warm(entry, values, gradients, momentum)
        except Exception as error:  # whatever it is, the others are still measured
            errors[name] = _shared.in_short(f"{type(error).__name__}: {error}")
        progress.advance()
    progress.describe(f"{workload}, rounds")
    timed: dict[str, Callable[[], float]] = {name: contender.step for name, contender in contenders.items()}
    timed[_shared.COPY] = _copy(options.quick)
    with _shared.collector_off():
        seconds = interleaved(timed, options.rounds, options.seed, progress.advance)
    parameter_bytes = tree_bytes(values)
    bandwidth = 2 * 4 * _shared.copy_numbers(options.quick) / spread(seconds[_shared.COPY]).median
    measured = tuple(
        _measured(name, entry, contenders[name], seconds, parameter_bytes, bandwidth)
        if name in contenders
        else Measured(optimizer=name, label=entry.label, ours=entry.ours, error=errors[name])
        for name, entry in part.items()
    )
    return Case(
        workload=workload,
        dtype=dtype,
        momentum=momentum,
        tensors=len(shapes),
        parameters=sum(map(prod, shapes)),
        parameter_bytes=parameter_bytes,
        copy_bytes_per_second=bandwidth,
        measured=measured,
        left_out=_shared.left_out(chosen, momentum, len(shapes)),
    )


def _in_jax(shape: Shape) -> Shape:
    """torch's [outputs, inputs, height, width] as Flax has it, [height, width, inputs, outputs]."""
    return shape[:1:-1] + shape[1::-1] if len(shape) == 4 else shape


def _drawn(shapes: Sequence[Shape], dtype: str, seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(0.02 * rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def _warm(entry: Entry, values: list[jax.Array], gradients: list[jax.Array], momentum: bool) -> _Contender:
    """Built, and two steps done: the first one compiles, and the second one would compile again if a type changed."""
    tx = entry.build(momentum)

    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        params = [jnp.array(value) for value in values]  # copies: donated ones are gone
        jitted = jax.jit(step, donate_argnums=(0, 1))
        contender = _Contender(jitted=jitted, params=params, state=tx.init(params), gradients=gradients)
        contender.first_step_seconds = contender.step()
        contender.step()
    contender.warnings = tuple(dict.fromkeys(_shared.in_short(str(warning.message)) for warning in caught))
    return contender


def _measured(
    name: str,
    entry: Entry,
    contender: _Contender,
    seconds: dict[str, list[float]],
    parameter_bytes: int,
    bandwidth: float,
) -> Measured:
    milliseconds = spread([1000 * time for time in seconds[name]])
    state = tree_bytes(contender.state)
    bound = 1000 * bytes_to_move(parameter_bytes, state) / bandwidth
    memory = allocated(contender.jitted, contender.params, contender.state, contender.gradients)
    return Measured(
        optimizer=name,
        label=entry.label,
        ours=entry.ours,
        warnings=contender.warnings,
        first_step_seconds=contender.first_step_seconds,
        milliseconds=milliseconds,
        ratio=ratio(seconds[name], seconds[BASELINE]) if BASELINE in seconds else None,
        bound_ratio=milliseconds.median / bound if entry.ours else None,
        state_bytes=state,
        compile_seconds=contender.compilations.seconds,
        compilations=contender.compilations.number,
        temporary_bytes=memory.temporary_bytes,
        aliased_bytes=memory.aliased_bytes,
    )


def _copy(quick: bool) -> Callable[[], float]:
    """Reads one array and writes another one; its seconds. Negated, as XLA copies nothing that it can pass on."""
    jitted = jax.jit(lambda target, source: -source, donate_argnums=0, keep_unused=True)
    source = jnp.ones(_shared.copy_numbers(quick), jnp.float32)
    target = jax.block_until_ready(jitted(jnp.zeros_like(source), source))

    def copy() -> float:
        nonlocal target
        start = time.perf_counter()
        target = jax.block_until_ready(jitted(target, source))
        return time.perf_counter() - start

    return copy


def _has(platform: str) -> bool:
    with contextlib.suppress(RuntimeError):
        return bool(jax.devices(platform))
    return False


def _free_bytes(device: jax.Device) -> int:
    found = device.memory_stats()  # None on a CPU
    return found["bytes_limit"] - found["bytes_in_use"] if found else _machine.available_bytes()
