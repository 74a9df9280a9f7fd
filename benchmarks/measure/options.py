"""The arguments, checked."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adafactor_parity.errors import wrong
from adafactor_spec.errors import nearest

from .workloads import SHARDED, WORKLOADS, usual

FRAMEWORKS = {"torch": "torch.run", "jax": "jax.run", SHARDED: "torch.sharded"}  # and the modules of their runs
DTYPES = ("float32", "bfloat16")
ROUNDS, PATIENCE = 15, 300
# XLA makes its pool of threads when JAX starts, one for each core that the process may use.
NO_THREADS = {"jax": "XLA takes the cores that the process may use: taskset -c 0,1 python -m benchmarks jax"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checked arguments of a run. `optimizers` None: all; `threads` None: as many as the framework takes."""

    workloads: tuple[str, ...] = usual("torch")
    dtypes: tuple[str, ...] = DTYPES
    momentum: tuple[bool, ...] = (False, True)
    framework: str = "torch"
    optimizers: tuple[str, ...] | None = None
    rounds: int = ROUNDS
    quick: bool = False
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0
    patience: int = PATIENCE
    json: Path | None = None
    write_docs: bool = False

    def command(self) -> str:
        """The command line that measures the same."""
        words = ["python", "-m", "benchmarks", self.framework]
        words += [] if self.workloads == usual(self.framework) else ["--workload", *self.workloads]
        words += [] if self.dtypes == DTYPES else ["--dtype", *self.dtypes]
        words += [] if len(self.momentum) > 1 else ["--momentum" if self.momentum[0] else "--no-momentum"]
        words += [] if self.optimizers is None else ["--optimizers", *self.optimizers]
        words += [] if self.rounds == ROUNDS else ["--rounds", str(self.rounds)]
        words += ["--quick"] if self.quick else []
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        words += [] if self.device == "cpu" else ["--device", self.device]
        words += [] if self.seed == 0 else ["--seed", str(self.seed)]
        words += [] if self.patience == PATIENCE else ["--patience", str(self.patience)]
        return shlex.join(words)


def framework(name: str) -> str:
    """The name of a framework. Raises UsageError for one that has no benchmarks."""
    if name not in FRAMEWORKS:
        remedy = nearest(name, tuple(FRAMEWORKS)) or "Write: python -m benchmarks torch"
        raise wrong("FRAMEWORK", f"one of {', '.join(FRAMEWORKS)}", name, remedy)
    return name


def check(parsed: argparse.Namespace, optimizers: Sequence[str], devices: Sequence[str]) -> Options:
    """The options; `optimizers` and `devices` are those that the framework has. Raises UsageError for a wrong one."""
    if parsed.device not in devices:
        raise wrong("--device", f"one of {', '.join(devices)}", parsed.device, "The framework sees no other here.")
    return Options(
        workloads=_chosen("--workload", parsed.workload or usual(parsed.framework), tuple(WORKLOADS)),
        dtypes=_chosen("--dtype", parsed.dtype, DTYPES),
        momentum=(False, True) if parsed.momentum is None else (parsed.momentum,),
        framework=parsed.framework,
        optimizers=None if parsed.optimizers is None else _chosen("--optimizers", parsed.optimizers, tuple(optimizers)),
        rounds=_count("--rounds", parsed.rounds, 1, "More rounds give a steadier median."),
        quick=parsed.quick,
        threads=_threads(parsed.framework, parsed.threads),
        device=parsed.device,
        seed=_count("--seed", parsed.seed, 0, "Every seed replays; 0 is the default."),
        patience=_count("--patience", parsed.patience, 1, f"{PATIENCE} is the default."),
        json=None if parsed.json is None else _writable("--json", Path(parsed.json)),
        write_docs=parsed.write_docs,
    )


def write(argument: str, path: Path, text: str) -> None:
    """Write a text file. Raises UsageError where that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(argument, path, error) from None


def _writable(argument: str, path: Path) -> Path:
    # Now, and not after minutes of measuring.
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise _unwritable(argument, path, error) from None
    return path


def _unwritable(argument: str, path: Path, error: OSError) -> Exception:
    remedy = f"{error.strerror or 'It cannot be written'}: name one in a folder that exists."
    return wrong(argument, "a file to write to", str(path), remedy)


def _chosen(argument: str, wanted: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted or ():
        if name not in known:
            remedy = nearest(name.lower().replace("_", "-"), known) or "Leave it out for all of them."
            raise wrong(argument, f"one of {', '.join(known)}", name, remedy)
    # In the known order and once each, however they were asked for.
    return tuple(name for name in known if name in (wanted or known))


def _threads(framework: str, given: object) -> int | None:
    if given is None:
        return None
    if framework in NO_THREADS:
        raise wrong("--threads", f"left out for {framework}", given, NO_THREADS[framework])
    return _count("--threads", given, 1, "Leave it out for the default.")


def _count(argument: str, given: object, least: int, remedy: str) -> int:
    try:
        value = int(str(given))
    except ValueError:
        value = least - 1
    if value < least:
        raise wrong(argument, f"a whole number, at least {least}", given, remedy)
    return value
