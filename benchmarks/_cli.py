"""The command line: measures, prints a table, and writes JSON and the page where asked to."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from adafactor_parity.errors import UsageError

from .measure import options as checked
from .measure.workloads import WORKLOADS
from .report import page, table

WRONG_USAGE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for wrong usage, 130 when interrupted."""
    parsed = _parser().parse_args(arguments)
    try:
        return _run(parsed)
    except UsageError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(parsed: argparse.Namespace) -> int:
    framework = importlib.import_module(f".{checked.FRAMEWORKS[checked.framework(parsed.framework)]}", __package__)
    options = checked.check(parsed, framework.OPTIMIZERS, framework.devices())
    results = framework.run(options)
    table.show(results)
    if options.json is not None:
        checked.write("--json", options.json, results.as_json())
    if options.write_docs:
        for file in page.write(results):
            print(f"Written: {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        allow_abbrev=False,
        description="Time optimizer steps of this project and of its peers, side by side in one run: interleaved "
        "rounds, ratios to AdamW, bytes of state and of temporaries. Exit status: 0, or 2 for wrong usage.",
    )
    add = parser.add_argument
    names: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "NAME"}
    add("framework", metavar="FRAMEWORK", help=f"{', '.join(checked.FRAMEWORKS)}")
    add("--workload", **names, help=f"only these: {', '.join(WORKLOADS)}")
    add("--dtype", **names, help=f"only these: {', '.join(checked.DTYPES)}")
    add("--momentum", action=argparse.BooleanOptionalAction, help="only with, or only without, a first moment")
    add("--optimizers", **names, help="only these, and AdamW, the baseline; a wrong name is answered with all of them")
    add("--rounds", default=checked.ROUNDS, metavar="N", help=f"steps of each optimizer ({checked.ROUNDS})")
    add("--quick", action="store_true", help="small sizes: shows that everything runs, not how fast")
    add("--threads", metavar="N", help="of torch on the CPU (as many as it takes by itself)")
    add("--device", default="cpu", metavar="NAME", help="cpu, or another one that the framework has (cpu)")
    add("--seed", default=0, metavar="N", help="of the parameters, the gradients and the order in each round (0)")
    add(
        "--patience",
        default=checked.PATIENCE,
        metavar="SECONDS",
        help=f"give up on an optimizer whose first two steps take longer ({checked.PATIENCE})",
    )
    add("--json", metavar="FILE", help="write every figure as JSON")
    add("--write-docs", action="store_true", help="write the framework's page in docs/ and its plot")
    return parser
