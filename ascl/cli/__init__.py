"""The command line: `program` finds the command, `options` holds what commands share, each other module a few commands.

Nothing is computed here. Slow imports are inside functions, so that `--help` answers at once.
"""

from ascl.cli.program import main

__all__ = ["main"]
