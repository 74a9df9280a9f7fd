"""The run in JAX: every case, every optimizer."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adafactor_parity.progress import Progress

from ..measure import cases, entries, machine
from ..measure.cases import COPY, Contender, Found, Job, Timed, measure_here, run_case
from ..measure.options import Options
from ..measure.results import Results
from ..measure.workloads import Shape
from .compiled import Compilations, allocated, counted, tree_bytes, without_cache
from .optimizers import BASELINE, ENTRIES

OPTIMIZERS = tuple(ENTRIES)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Tree = Any


def devices() -> tuple[str, ...]:
    """The platforms that JAX has here."""
    return tuple(name for name in PLATFORMS if _has(name))


def run(options: Options) -> Results:
    """Measure every case. Raises UsageError where the memory is too small for one."""
    device = jax.devices(options.device)[0]
    chosen = entries.chosen(ENTRIES, options, BASELINE)
    wanted = entries.cases(options, chosen, lambda dtype: jnp.dtype(dtype).itemsize, _free_bytes(device))
    # A default and no jax.device_put: a committed array among the arguments would be another program.
    with (
        Progress(len(wanted) * (len(chosen) + options.rounds)) as progress,
        jax.default_device(device),
        without_cache(),
    ):
        measured = tuple(run_case(InJax(), options, chosen, *case, progress) for case in wanted)
    accelerator = {} if options.device == "cpu" else {"accelerator": device.device_kind}
    return cases.results(
        "jax",
        options,
        ENTRIES[BASELINE],
        measured,
        threads=None,
        versions=machine.versions(("jax", "jaxlib"), peers=("optax",)),
        **accelerator,
    )


@dataclass(kw_only=True)
class _Jitted:
    """A step as users write it, with what it goes on from: parameters and state are donated, gradients are not."""

    jitted: Any
    params: Tree
    state: Tree
    gradients: Tree
    compilations: Compilations = field(default_factory=Compilations)

    def step(self) -> float:
        """One step; its seconds."""
        with counted(self.compilations):
            start = time.perf_counter()
            after = self.jitted(self.params, self.state, self.gradients)
            self.params, self.state = jax.block_until_ready(after)
            return time.perf_counter() - start

    def figures(self) -> dict[str, Any]:
        """What only JAX knows."""
        memory = allocated(self.jitted, self.params, self.state, self.gradients)
        return {
            "state_bytes": tree_bytes(self.state),
            "compile_seconds": self.compilations.seconds,
            "compilations": self.compilations.number,
            "temporary_bytes": memory.temporary_bytes,
            "aliased_bytes": memory.aliased_bytes,
        }


class InJax:
    """A `Framework` and its `Workbench`."""

    baseline = BASELINE
    also_shown: Mapping[str, str] = {}

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """torch's [outputs, inputs, height, width] as Flax has it, [height, width, inputs, outputs]."""
        return [shape[:1:-1] + shape[1::-1] if len(shape) == 4 else shape for shape in shapes]

    def draw(self, shapes: Sequence[Shape], dtype: str, seed: int) -> list[jax.Array]:
        rng = np.random.default_rng(seed)
        return [jnp.asarray(0.02 * rng.standard_normal(shape, np.float32), dtype) for shape in shapes]

    def bytes_of(self, values: list[jax.Array]) -> int:
        return tree_bytes(values)

    def build(self, name: str, momentum: bool, values: list[jax.Array], gradients: list[jax.Array]) -> Contender:
        """Two steps are done: the first one compiles, and the second one would compile again if a type changed."""
        tx = ENTRIES[name].build(momentum)

        def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = [jnp.array(value) for value in values]  # copies: donated ones are gone
        jitted = jax.jit(step, donate_argnums=(0, 1))
        one = _Jitted(jitted=jitted, params=params, state=tx.init(params), gradients=gradients)
        first, _ = one.step(), one.step()
        return Contender(step=one.step, first_step_seconds=first, figures=one.figures)

    def beside(self, contenders: Mapping[str, Contender], quick: bool) -> dict[str, Timed]:
        return {COPY: _copy(quick)}

    def measure(self, job: Job, progress: Progress) -> Found:
        return measure_here(self, job, progress)


def _copy(quick: bool) -> Callable[[], float]:
    """Reads one array and writes another one; its seconds. Negated, as XLA copies nothing that it can pass on."""
    jitted = jax.jit(lambda target, source: -source, donate_argnums=0, keep_unused=True)
    source = jnp.ones(entries.copy_numbers(quick), jnp.float32)
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
    return found["bytes_limit"] - found["bytes_in_use"] if found else machine.available_bytes()
