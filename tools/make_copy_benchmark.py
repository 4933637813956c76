"""A benchmark of image copy detection from any folder of photos, in the layout of DISC2021. Examples:

python tools/make_copy_benchmark.py --images photos/ --out data/my_benchmark
python tools/make_copy_benchmark.py --images photos/ --out data/my_benchmark \\
    --references 400 --queries 570 --distractors 150 --reverse-crops 100 --background 200 --seed 1

Sizes that are not given are shares of the photos that can be used. Exit status: 0 made, 1 refused, 130 stopped.
"""

from __future__ import annotations

import argparse
import sys
import time

from ascl.core.errors import DataError
from ascl.image_copy.benchmark.make import make_benchmark
from ascl.image_copy.benchmark.plan import BenchmarkSettings

DEFAULTS = BenchmarkSettings()


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--images", required=True, help="folder of photos, searched at any depth")
    result.add_argument("--out", required=True, help="folder to make; must not exist")
    result.add_argument("--references", type=int, metavar="N", help="originals in the reference set")
    result.add_argument("--queries", type=int, metavar="N", help="edited copies of references; as many as references")
    result.add_argument("--distractors", type=int, metavar="N", help="queries that are copies of no reference")
    result.add_argument("--reverse-crops", type=int, metavar="N",
                        help="hard negatives: the reference is a crop, the query shows more")
    result.add_argument("--background", type=int, metavar="N", help="photos for score normalisation and calibration")
    result.add_argument("--seed", type=int, default=DEFAULTS.seed)
    result.add_argument("--jpeg-quality", type=int, default=DEFAULTS.jpeg_quality, help="of the queries written")
    result.add_argument("--max-side", type=int, default=DEFAULTS.max_side, help="pixels of a photo before it is edited")
    result.add_argument("--min-side", type=int, default=DEFAULTS.min_side, help="smaller photos are left out")
    result.add_argument("--workers", type=int, default=2, help="processes that decode and edit; 0 = none apart")
    return result


def main(arguments: list[str]) -> int:
    options = vars(parser().parse_args(arguments))
    images, out, workers = options.pop("images"), options.pop("out"), max(0, options.pop("workers"))
    started = time.perf_counter()
    try:
        done = make_benchmark(images, out, BenchmarkSettings(**options), workers=workers)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return 130
    print(f"{done.summary()}\n{time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
