"""Runs the command line as `python -m adafactor_parity`."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
