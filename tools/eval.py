"""Run `ascl eval`, under the file name that research code commonly uses."""

import sys

from ascl.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
