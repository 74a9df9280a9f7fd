"""Checks the arguments of `verify` before anything runs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adafactor_spec import dtypes, recipes
from adafactor_spec.errors import nearest

from ..errors import wrong

DEFAULT_STEPS, QUICK_STEPS = 300, 60
FLOAT64_STEPS, QUICK_FLOAT64_STEPS = 100, 20
# A quick run leaves float16 out: it rounds where bfloat16 does, and every dtype costs a compilation for each recipe.
QUICK_DTYPES = ("float64", "float32", "bfloat16")
DEFAULT_OUT = Path("adafactor-report")
MOST_STEPS = 1_000_000  # days of training, with every step in the report
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checked arguments of `verify`.

    `steps` are those of the float32 training run; the float64 run has `float64_steps`.
    """

    recipes: tuple[str, ...] = recipes.ORIGINALS
    dtypes: tuple[str, ...] = dtypes.NAMES
    steps: int = DEFAULT_STEPS
    float64_steps: int = FLOAT64_STEPS
    quick: bool = False
    device: str = "cpu"
    text: Path | None = None
    out: Path = DEFAULT_OUT
    seed: int = 0

    def command(self) -> str:
        """The command line that does the same."""
        words = ["adafactor", "verify"]
        words += ["--quick"] if self.quick else []
        words += [] if self.steps == _default_steps(self.quick) else ["--steps", str(self.steps)]
        if self.recipes != recipes.ORIGINALS:
            words += [word for name in self.recipes for word in ("--recipe", name)]
        if self.dtypes != _default_dtypes(self.quick):
            words += [word for name in self.dtypes for word in ("--dtype", name)]
        words += [] if self.device == "cpu" else ["--device", self.device]
        words += [] if self.text is None else ["--text", str(self.text)]
        words += [] if self.out == DEFAULT_OUT else ["--out", str(self.out)]
        words += [] if self.seed == 0 else ["--seed", str(self.seed)]
        return shlex.join(words)


def check(
    *,
    recipe_names: Sequence[str] | None,
    dtype_names: Sequence[str] | None,
    steps: int | None,
    quick: bool,
    device: str,
    text: str | Path | None,
    out: str | Path,
    seed: int,
) -> Options:
    """The options, defaults filled in. Raises UsageError for a wrong one."""
    if steps is None:
        steps = _default_steps(quick)
    _count("--steps", steps, MOST_STEPS, "0 leaves the training runs out.")
    return Options(
        recipes=_chosen("--recipe", recipe_names, recipes.NAMES, recipes.ORIGINALS),
        dtypes=_chosen("--dtype", dtype_names, dtypes.NAMES, _default_dtypes(quick)),
        steps=steps,
        float64_steps=min(steps, QUICK_FLOAT64_STEPS if quick else FLOAT64_STEPS),
        quick=quick,
        device=device,
        text=None if text is None else _path("--text", text, "a file", "Leave it out for Python's own help."),
        out=_path("--out", out, "a folder to write to", "Write . for the current one."),
        seed=_count("--seed", seed, LARGEST_SEED, "Every seed replays; 0 is the default."),
    )


def _default_steps(quick: bool) -> int:
    return QUICK_STEPS if quick else DEFAULT_STEPS


def _default_dtypes(quick: bool) -> tuple[str, ...]:
    return QUICK_DTYPES if quick else dtypes.NAMES


def _chosen(
    argument: str, wanted: Sequence[str] | None, known: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    for name in wanted or ():
        if name not in known:
            remedy = nearest(name.lower().replace("-", "_"), known) or "Leave it out for all of them."
            raise wrong(argument, f"one of {', '.join(known)}", name, remedy)
    # Once each, and in the order of the list of names, however they were asked for.
    return tuple(name for name in known if name in (wanted or default))


def _count(argument: str, value: int, largest: int, remedy: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise wrong(argument, f"a whole number, at least 0 and at most {largest:,}", value, remedy)
    return value


def _path(argument: str, path: str | Path, must: str, remedy: str) -> Path:
    # Path("") is the current folder, and no name holds a null character.
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise wrong(argument, must, path, remedy)
    return Path(path)
