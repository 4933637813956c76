"""Region features of a folder of images -> HDF5. Example:

python tools/extract_regions.py --images photos/ --out data/photos/regions.h5 --backbone resnet50
"""

import argparse
import sys

from ascl.features.cli import backbone_arguments, extraction_parser, positive, run_extraction
from ascl.features.grid import GridBackend


def make_backend(options: argparse.Namespace) -> GridBackend:
    return GridBackend(grid=options.grid, **backbone_arguments(options))


def main() -> int:
    parser = extraction_parser("Region features of a folder of images, into one HDF5 file.", resize="squash")
    parser.add_argument("--backend", choices=("grid",), default="grid", help="grid: a backbone's map in equal cells")
    parser.add_argument("--grid", type=positive, default=6, help="cells on a side: 6 makes 36 regions")
    return run_extraction(parser.parse_args(), make_backend)


if __name__ == "__main__":
    sys.exit(main())
