"""Shards of an extraction -> one HDF5 file. Example, after extract_regions.py with --shard 1/2 and --shard 2/2:

python tools/merge_features.py data/coco/regions.h5
"""

import argparse
import sys
from pathlib import Path

from ascl.core.errors import DataError
from ascl.features.feature_file import merge_shards, shards_beside


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("shards", type=Path, nargs="*", help="by default those beside OUT: OUT.shard-I-of-N.h5")
    options = parser.parse_args(arguments)
    try:
        shapes = merge_shards(options.shards or shards_beside(options.out), options.out)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"{options.out}: " + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
