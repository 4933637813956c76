"""A run as one HTML page: settings, curves, recalls, probes, best and worst queries, confusions. Examples:

python tools/report.py runs/f30k                                  # writes runs/f30k/report.html
python tools/report.py runs/f30k --images photos/ --out page.html
python tools/report.py runs/f30k --scores s.npz                   # of tools/eval.py --save-scores: nothing is scored

What is missing (an evaluation, the photographs, the features) is said on the page, with the command that makes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ascl.core.errors import DataError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("run", metavar="RUN", help="folder of a run of tools/train.py")
    result.add_argument("--split", help="whose queries are shown (default: the test split of the settings)")
    result.add_argument("--images", metavar="FOLDER", help="photographs, at any depth (default: the run's data.images)")
    result.add_argument("--captions", help="captions file or folder, where the run's is no longer in place")
    result.add_argument("--features", nargs="+", metavar="FILE",
                        help="feature files, where the run's are no longer in place")
    result.add_argument("--scores", metavar="FILE.npz", help="scores of this run and split, kept by tools/eval.py")
    result.add_argument("--out", type=Path, metavar="FILE.html", help="default: RUN/report.html")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        from ascl.analysis.report.run import report  # torch and matplotlib are slow to import

        made = report(
            options.run, split=options.split, images=options.images, scores=options.scores, out=options.out,
            overrides={name: getattr(options, name) for name in ("captions", "features") if getattr(options, name)},
        )
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no unfinished file was left", file=sys.stderr)
        return 130
    for reason in made.missing.values():
        print(f"missing: {reason}")
    print(f"saved: {made.file} ({made.file.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
