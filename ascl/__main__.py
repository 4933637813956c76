"""Run the command `ascl` as `python -m ascl`."""

import sys

from ascl.cli import main

sys.exit(main())
