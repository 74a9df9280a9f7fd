"""What a run found, and its JSON."""

import json
from dataclasses import asdict, dataclass, field

from .rounds import Spread

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One optimizer in one case. With an `error`, shortened, there are no figures.

    `ratio` is that of the step's time to the baseline's, `bound_ratio` that of the step's time to the time in which
    the machine copies the bytes that three phases must move (ours only). What a framework cannot say is None:

    * torch: `peak_bytes`, how far its allocated memory rises in a step; on a GPU, a step's `launches` and `host_reads`;
      on several processes, its `collectives` and the `summed_bytes` of ours.
    * JAX: `compilations` in all steps together, and their `compile_seconds` in XLA; `temporary_bytes` of the compiled
      step, and `aliased_bytes` of the parameters and the state, which it writes in place.
    """

    optimizer: str
    label: str
    ours: bool
    error: str | None = None
    warnings: tuple[str, ...] = ()
    first_step_seconds: float | None = None
    milliseconds: Spread | None = None
    ratio: Spread | None = None
    bound_ratio: float | None = None
    state_bytes: int | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    host_reads: int | None = None
    collectives: int | None = None
    summed_bytes: int | None = None
    compile_seconds: float | None = None
    compilations: int | None = None
    temporary_bytes: int | None = None
    aliased_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """All optimizers on one workload, in one dtype, with or without momentum. `left_out`: label to reason."""

    workload: str
    dtype: str
    momentum: bool
    tensors: int
    parameters: int
    parameter_bytes: int
    copy_bytes_per_second: float
    measured: tuple[Measured, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """`transformer, bfloat16, with momentum`."""
        return f"{self.workload}, {self.dtype}, {'with' if self.momentum else 'without'} momentum"

    def share(self, size: int | None) -> float | None:
        """`size` relative to the parameters' bytes."""
        return None if size is None else size / self.parameter_bytes

    def donated(self, row: Measured) -> float | None:
        """How much of the parameters and the state is written in place: 1 where donating them is fully effective."""
        if row.aliased_bytes is None or row.state_bytes is None:
            return None
        return row.aliased_bytes / (self.parameter_bytes + row.state_bytes)


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run. `machine` and `versions` name what it was measured on and with.

    `threads` is None where the framework does not say how many it takes.
    """

    framework: str
    device: str
    date: str
    command: str
    quick: bool
    rounds: int
    threads: int | None
    seed: int
    baseline: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    cases: tuple[Case, ...]
    schema: int = SCHEMA

    def as_json(self) -> str:
        """Strict JSON, indented, with a line end behind it."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def on(self) -> str:
        """One sentence that names the machine."""
        machine, versions = self.machine, self.versions
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        used = f"{machine['cores']} cores{threads}"
        where = f"{machine['processor']}, {used}, {machine['memory']} of memory"
        where += f", {machine['processes']} processes" if "processes" in machine else ""
        gpu = f", {machine['accelerator']}" if "accelerator" in machine else ""
        names = [f"{name} {number}" for name, number in versions.items() if number != "not installed"]
        return f"{where}{gpu}; {machine['system']}; {', '.join(names)}."
