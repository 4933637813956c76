"""Run `ascl models`, under the file name that research code commonly uses."""

import sys

from ascl.cli import main

if __name__ == "__main__":
    sys.exit(main(["models", *sys.argv[1:]]))
