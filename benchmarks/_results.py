"""What a run found, and its JSON."""

import json
from dataclasses import asdict, dataclass, field

from ._rounds import Spread

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One optimizer in one case. With an `error`, shortened, there are no figures.

    `ratio` is that of the step's time to the baseline's, `bound_ratio` that of the step's time to the time in which
    the machine copies the bytes that three phases must move (ours only). `launches` and `host_reads` are those of one
    step on a GPU.
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


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run. `machine` and `versions` name what it was measured on and with."""

    framework: str
    device: str
    date: str
    command: str
    quick: bool
    rounds: int
    threads: int
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
        used = f"{machine['cores']} cores, {self.threads} thread{'s' if self.threads > 1 else ''}"
        where = f"{machine['processor']}, {used}, {machine['memory']} of memory"
        gpu = f", {machine['accelerator']}" if "accelerator" in machine else ""
        names = [f"{name} {number}" for name, number in versions.items() if number != "not installed"]
        return f"{where}{gpu}; {machine['system']}; {', '.join(names)}."
