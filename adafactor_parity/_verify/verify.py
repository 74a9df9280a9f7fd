"""The function `verify`: steps every recipe, trains in both frameworks, judges both, and writes the report."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .. import environment
from ..progress import Progress
from . import checks
from .devices import Devices, find
from .options import DEFAULT_OUT, Options, check
from .piecewise import run_piecewise
from .report.write import make_folder, write
from .stepping import zoo
from .stepping.step_all import Stepped, step_all
from .training.corpus import Corpus, load, unigram_entropy
from .training.train import Trained, train
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
    stepped, trained = _measure(options, devices, corpus)
    piecewise = run_piecewise()
    entropy = unigram_entropy(corpus.held_out)
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
        seconds=time.perf_counter() - began,
    )


def _measure(options: Options, devices: Devices, corpus: Corpus) -> tuple[list[Stepped], list[Trained]]:
    runs = {"float32": options.steps, "float64": options.float64_steps}
    runs = {dtype: steps for dtype, steps in runs.items() if dtype in options.dtypes and steps}
    tensors = zoo.tensors(options.quick)
    cases = [(setting, dtype) for setting in zoo.settings(options.recipes, options.quick) for dtype in options.dtypes]
    # Names of one algorithm are stepped once: the recipe decides what is computed, not its name.
    different = {(setting.recipe.effective(), dtype): setting for setting, dtype in cases}
    with Progress(len(different) * zoo.STEPS + sum(runs.values())) as progress:
        progress.describe("stepping every recipe")
        with ThreadPoolExecutor(_workers()) as pool:
            try:
                waiting = {
                    key: pool.submit(step_all, setting, key[1], tensors, devices, options.seed, progress.advance)
                    for key, setting in different.items()
                }
                done = {key: future.result() for key, future in waiting.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        stepped = [replace(done[setting.recipe.effective(), dtype], setting=setting) for setting, dtype in cases]
        trained = []
        for dtype, steps in runs.items():
            progress.describe(f"training in {dtype}")
            setting = zoo.trained(options.recipes)
            trained.append(train(setting, corpus, dtype, steps, devices, options.seed, progress.advance))
    return stepped, trained


def _workers() -> int:
    # Most of the time goes into XLA's compilations, one thread each; more than a few gain little and cost memory.
    return min(environment.cores(), 4)
