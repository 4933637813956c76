"""`python -m ascl` is the command `ascl`."""

import sys

from ascl.cli import main

sys.exit(main())
