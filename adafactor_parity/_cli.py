"""The command line `adafactor`: finds the command, runs it, and decides the exit status of every way in which it ends.

Exit status 1 is a command's own verdict, such as "beyond its budget". Nothing else ends with it: whatever goes wrong
ends with one line on standard error and status 2.
"""

import argparse
import importlib
import os
import traceback
from collections.abc import Sequence
from typing import Any

from ._output import ReaderGone, complain, printing
from .errors import UsageError

COMMANDS = ("verify", "recipes", "lint")
FAILED, INTERRUPTED, READER_GONE = 2, 130, 141  # the last two are what a shell says after SIGINT and after SIGPIPE
TRACEBACK = "ADAFACTOR_TRACEBACK"  # an environment variable; set to anything, an unexpected error shows its traceback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    program = "adafactor"
    try:
        with printing():  # --help
            parsed = _parser().parse_args(arguments)
        program = f"adafactor {parsed.command}"
        status: int = parsed.run(parsed)
        return status
    except UsageError as error:
        complain(f"{program}: {error}")
    except ModuleNotFoundError as error:  # each command imports what it needs beyond NumPy when it runs
        if (error.name or "").startswith("adafactor"):
            _unexpected(program, error)
        else:
            complain(f"{program}: it needs {error.name}, which is not installed. pip install 'adafactor[all]'")
    except KeyboardInterrupt:
        complain(f"{program}: interrupted")
        return INTERRUPTED
    except ReaderGone:
        return READER_GONE
    except Exception as error:
        _unexpected(program, error)
    return FAILED


def _unexpected(program: str, error: Exception) -> None:
    if os.environ.get(TRACEBACK):
        complain("".join(traceback.format_exception(error)).rstrip())
    first, *_ = [*str(error).strip().splitlines(), ""]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    complain(f"{program}: it stopped at an error that it did not expect, {what}. {TRACEBACK}=1 shows where.")


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own ignores that the file cannot be written


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="adafactor", description="One Adafactor in JAX and in PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"._{name}.command", __package__).add_parser(commands)
    return parser
