"""`python -m benchmarks`."""

import sys

from ._cli import main

sys.exit(main())
