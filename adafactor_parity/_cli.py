"""The command line, `adafactor`. Exit status: 0 all within budget, 1 not, 2 wrong usage."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from adafactor_spec import dtypes, recipes

from . import _options, _text
from ._errors import UsageError
from ._options import DEFAULT_OUT

WITHIN_BUDGET, BEYOND_BUDGET, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        status = _verify(parsed)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"adafactor {parsed.command}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nothing more may be written, at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adafactor", description="One Adafactor in JAX and in PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="show that JAX, torch and the definition agree on this machine",
        description="Step every recipe in JAX, in torch and in the NumPy definition; train the same small transformer "
        "in both frameworks; write a report. Exit status: 0 if everything is within its budget, 1 if not, 2 for "
        "wrong usage.",
    )
    add = verify.add_argument
    add("--quick", action="store_true", help="recipes' defaults only, fewer tensors and training steps: under a minute")
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
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}. Write it in digits.") from None


def _verify(parsed: argparse.Namespace) -> int:
    options = _options.check(
        recipe_names=parsed.recipe,
        dtype_names=parsed.dtype,
        steps=parsed.steps,
        quick=parsed.quick,
        device=parsed.device,
        text=parsed.text,
        out=parsed.out,
        seed=parsed.seed,
    )
    corpus = _text.load(options.text)
    try:
        # After the checks, so that a mistake is answered at once: the frameworks take seconds to load.
        from . import _tables
        from ._verify import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("adafactor"):
            raise
        needs = "it needs both frameworks and what it reports with"
        raise UsageError(f"{needs}, but {error.name} is not installed. pip install 'adafactor[all]'") from None
    found = run(options, corpus)
    if parsed.json:
        print(json.dumps(found.as_dict(), allow_nan=False))
    else:
        _tables.show(found)
    sys.stdout.flush()
    for line in found.failures():
        print(f"FAILED {line}", file=sys.stderr)
    return WITHIN_BUDGET if found.passed else BEYOND_BUDGET
