"""The command line: `program` finds the command, every other module holds one or a few; `options` what they share.

Nothing is computed here. What takes long to import is imported inside functions, so that `--help` answers at once.
"""

from ascl.cli.program import main

__all__ = ["main"]
