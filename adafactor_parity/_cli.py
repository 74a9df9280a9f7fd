"""The command line, `adafactor`: finds the command, and answers wrong usage with exit status 2."""

import argparse
import os
import sys
from collections.abc import Sequence

from . import _lint_command, _recipes_command, _verify_command
from ._errors import UsageError

COMMANDS = (_verify_command, _recipes_command, _lint_command)
WRONG_USAGE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"adafactor {parsed.command}: {error}", file=sys.stderr)
        return WRONG_USAGE
    except ModuleNotFoundError as error:  # each command imports what it needs beyond NumPy when it runs
        if (error.name or "").startswith("adafactor"):
            raise
        needs = f"it needs {error.name}, which is not installed. pip install 'adafactor[all]'"
        print(f"adafactor {parsed.command}: {needs}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nothing more may be written, at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adafactor", description="One Adafactor in JAX and in PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
