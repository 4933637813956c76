"""One feature vector for each image of a folder -> HDF5. Example:

python tools/extract_globals.py --images photos/ --out data/photos/globals.h5
"""

import argparse
import sys

from ascl.features.cli import backbone_arguments, extraction_parser, run_extraction
from ascl.features.globals import GlobalBackend


def make_backend(options: argparse.Namespace) -> GlobalBackend:
    return GlobalBackend(**backbone_arguments(options))


def main() -> int:
    parser = extraction_parser("One feature vector for each image of a folder, into one HDF5 file.", resize="crop")
    return run_extraction(parser.parse_args(), make_backend)


if __name__ == "__main__":
    sys.exit(main())
