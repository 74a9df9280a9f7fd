"""The command `adafactor verify`: checks the arguments, runs the comparison, prints it and writes the report."""

import argparse
import json

from adafactor_spec import dtypes, recipes

from .._output import complain, printable, printing
from ..errors import UsageError
from .options import DEFAULT_OUT, check
from .training.corpus import load

WITHIN_BUDGET, BEYOND_BUDGET = 0, 1


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's parser to those of the others."""
    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="show that JAX, torch and the definition agree on this machine",
        description="Step every recipe in JAX, in torch and in the NumPy definition; train the same small transformer "
        "in both frameworks; write a report. Exit status: 0 if everything is within its budget, 1 if not, 2 if "
        "that could not be found out or reported.",
    )
    add = verify.add_argument
    add(
        "--quick",
        action="store_true",
        help="recipes' defaults only, no float16, fewer tensors and training steps: a minute",
    )
    add("--recipe", action="append", metavar="NAME", help=f"only this one; repeatable. {', '.join(recipes.NAMES)}")
    add("--dtype", action="append", metavar="NAME", help=f"only this one; repeatable. {', '.join(dtypes.NAMES)}")
    add("--steps", type=_whole, metavar="N", help="training steps (300; with --quick 60); 0 for no training")
    add("--text", metavar="FILE", help="UTF-8 text to learn from (Python's own help); its last tenth is held out")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda, tpu, ...: one that JAX or torch has (cpu)")
    add("--seed", type=_whole, default=0, metavar="N", help="of everything that is drawn (0)")
    add(
        "--out",
        default=str(DEFAULT_OUT),
        metavar="DIR",
        help=f"folder for the report ({DEFAULT_OUT})",
    )
    add("--json", action="store_true", help="print report.json to standard output, and nothing else there")
    verify.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Verify; returns the exit status. Raises UsageError for a wrong argument."""
    options = check(
        recipe_names=parsed.recipe,
        dtype_names=parsed.dtype,
        steps=parsed.steps,
        quick=parsed.quick,
        device=parsed.device,
        text=parsed.text,
        out=parsed.out,
        seed=parsed.seed,
    )
    corpus = load(options.text)
    # After the checks, so that a mistake is answered at once: the frameworks take seconds to load.
    from .report import tables
    from .report.write import PAGE, write
    from .verify import measure

    found = measure(options, corpus)
    not_written = None
    try:
        write(found, options.out)
    except UsageError as error:  # the figures have taken minutes: they are printed all the same
        not_written = error
    with printing():
        if parsed.json:
            print(json.dumps(found.as_dict(), allow_nan=False))
        else:
            tables.show(found)
            if not_written is None:
                print(f"Report: {printable(options.out / PAGE)}")
    for line in found.failures():
        complain(f"FAILED {line}")
    if not_written is not None:
        raise not_written
    return WITHIN_BUDGET if found.passed else BEYOND_BUDGET


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}. Write it in digits.") from None
