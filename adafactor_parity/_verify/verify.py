"""The function `verify`: steps every recipe, trains in both frameworks, judges both, and writes the report."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adafactor_spec import Recipe

from .. import environment
from ..progress import Progress
from . import checks
from .devices import find
from .options import DEFAULT_OUT, Options, check
from .piecewise import run_piecewise
from .report.plots import draw_schedule, draw_stepping, draw_training
from .report.write import make_folder, write
from .stepping import zoo
from .stepping.step_all import step_all
from .tasks import Tasks
from .training.corpus import Corpus, load, unigram_entropy
from .training.train import train
from .verification import Verification


def verify(
    *,
    recipes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    steps: int | None = None,
    quick: bool = False,
    device: str = "cpu",
    text: str | Path | None = None,
    out: str | Path = DEFAULT_OUT,
    seed: int = 0,
) -> Verification:
    """Compare JAX, torch and the definition on this machine, and write `index.html`, `report.json` and plots to `out`.

    Args:
        recipes: names of those to step; None for every original. The transformer is trained with "paper", or with the
            first one named if "paper" is not among them.
        dtypes: names of "float64", "float32", "bfloat16", "float16"; None for all (for a quick run, all but the last).
            Training runs are in the first two.
        steps: of the float32 training run, 300 by default, 0 for no training at all; the float64 run takes at most 100.
        quick: defaults of the recipes only, fewer tensors, and 60 and 20 training steps: all ends within a minute.
        device: "cpu", "cuda", "tpu", ...: one that JAX or torch has. A framework without it computes on the CPU.
        text: UTF-8 file to learn from; None for Python's own help. Its last tenth is held out.
        out: folder for the report; made if missing.
        seed: of everything that is drawn.

    Returns:
        All figures; `passed` says whether every one is within its budget.

    Raises:
        ValueError: an argument is wrong. The message says which, what it must be, what it was, and the remedy.
    """
    options = check(
        recipe_names=recipes,
        dtype_names=dtypes,
        steps=steps,
        quick=quick,
        device=device,
        text=text,
        out=out,
        seed=seed,
    )
    found = measure(options, load(options.text))
    write(found, options.out)
    return found


def measure(options: Options, corpus: Corpus) -> Verification:
    """All figures, for arguments that are checked and a text that is read; the folder of the report is made."""
    began = time.perf_counter()
    devices = find(options.device, options.dtypes)
    make_folder(options.out)
    runs = {"float32": options.steps, "float64": options.float64_steps}
    runs = {dtype: steps for dtype, steps in runs.items() if dtype in options.dtypes and steps}
    cases = [(setting, dtype) for setting in zoo.settings(options.recipes, options.quick) for dtype in options.dtypes]
    # Names of one algorithm are stepped once: the recipe decides what is computed, not its name.
    different: dict[tuple[Recipe, str], zoo.Setting] = {}
    for setting, dtype in cases:
        different.setdefault((setting.recipe.effective(), dtype), setting)
    entropy = unigram_entropy(corpus.held_out)
    with Progress(len(different) * zoo.STEPS + sum(runs.values())) as progress, Tasks(progress) as tasks:
        progress.describe("stepping and training")

        def tensors(setting: zoo.Setting, dtype: str) -> tuple[str, ...]:
            return zoo.tensors(setting, dtype, options.dtypes, options.quick)

        seed, advance = options.seed, tasks.advance
        # The longest tasks come first, so that none of them is left over at the end and runs alone.
        setting = zoo.trained(options.recipes)
        trainings = [
            tasks.start(train, setting, corpus, dtype, steps, devices, seed, advance) for dtype, steps in runs.items()
        ]
        schedule = tasks.start(run_piecewise)
        stepping = {
            (recipe, dtype): tasks.start(step_all, setting, dtype, tensors(setting, dtype), devices, seed, advance)
            for (recipe, dtype), setting in different.items()
        }
        trained, piecewise = [tasks.result(task) for task in trainings], tasks.result(schedule)
        plots = draw_training(trained, entropy) | draw_schedule(piecewise)  # while the other tasks go on
        done = {key: tasks.result(task) for key, task in stepping.items()}
    stepped = [replace(done[setting.recipe.effective(), dtype], setting=setting) for setting, dtype in cases]
    of_training = [check for run in trained for check in checks.of_training(run, corpus, entropy)]
    return Verification(
        options=options,
        stepped=stepped,
        trained=trained,
        piecewise=piecewise,
        checks=[*of_training, checks.of_piecewise(piecewise)],
        corpus=corpus,
        entropy=entropy,
        versions=environment.versions(),
        machine=environment.machine(),
        devices=devices.describe(),
        plots=plots | draw_stepping(stepped),
        seconds=time.perf_counter() - began,
    )
