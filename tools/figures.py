"""Figures: PNG and the drawn numbers as CSV, from finished runs and from the tables of tools/ablate.py.

  python tools/figures.py samples runs/ablation-flickr30k          figure 3: positives and negatives by Rsum
  python tools/figures.py alignment AsCL=runs/a0,runs/a1 runs/b    figure 4: alignment and uniformity
  python tools/figures.py length runs/ablation-flickr30k/table2.csv --only AsCL "w/o P&N"    figure 5: T2I by length
  python tools/figures.py curves RUN ...                           training loss and validation Rsum
  python tools/figures.py local-weight RUN ...                     recall of a trained model scored at other u1
  python tools/figures.py trained-weight runs/ablation-flickr30k   recall of models trained at other u1
  python tools/figures.py temperature runs/ablation-flickr30k      recall of models trained at other temperatures
  python tools/figures.py leak RUN ...                             what an evaluation gains that sees the answer

RUN is the folder of a run, LABEL=RUN,RUN several seeds under one label, TABLE.csv every variant of a study.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ascl.core.errors import DataError

NAMES = {       # command -> name of the files
    "samples": "figure3_samples", "alignment": "figure4_alignment", "length": "figure5_length", "curves": "curves",
    "local-weight": "local_weight", "trained-weight": "trained_weight", "temperature": "temperature", "leak": "leak",
}
TABLES = ("samples", "temperature", "trained-weight")
MODELS = ("alignment", "local-weight", "leak")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name in NAMES:
        command = commands.add_parser(name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in TABLES:
            command.add_argument("sources", nargs="+", metavar="FOLDER|TABLE.csv", help="results of tools/ablate.py")
        else:
            command.add_argument("sources", nargs="+", metavar="RUN|LABEL=RUN,RUN|TABLE.csv")
            command.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="labels to draw, in this order")
        if name in MODELS or name == "length":
            where = "the images validated on" if name == "local-weight" else "the test split of the settings"
            command.add_argument("--split", help=f"default: {where}")
        if name in MODELS:
            command.add_argument("--captions", help="captions file or folder, where the run's is no longer in place")
            command.add_argument("--features", nargs="+", help="feature files, where the run's are no longer in place")
        if name == "length":
            command.add_argument("--bins", type=int, nargs="+", metavar="WORDS",
                                 help="longest query of every bin but the last (default: 6 8 10 12 15)")
        command.add_argument("--out", default="docs/figures", help="folder of the files (default: docs/figures)")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from ascl.analysis.figures.draw import save  # torch and matplotlib are slow to import: arguments are checked before

    try:
        saved = save(draw(options), options.out, NAMES[options.figure])
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no unfinished file was left", file=sys.stderr)
        return 130
    if options.figure == "leak":
        from ascl.analysis.leakage import WARNING

        print(WARNING)
    print("saved:", *saved)
    return 0


def draw(options: argparse.Namespace) -> Any:
    """The figure that the arguments name."""
    from ascl.analysis.figures import sources as figures

    if options.figure == "samples":
        return figures.samples(options.sources)
    if options.figure == "temperature":
        return figures.against_setting(options.sources, "loss.temperature")
    if options.figure == "trained-weight":
        return figures.against_setting(options.sources, "model.local_weight")
    groups = figures.run_groups(options.sources, options.only)
    if options.figure == "curves":
        return figures.curves(groups)
    if options.figure == "length":
        return figures.lengths(groups, options.split, last_lengths=options.bins or figures.LAST_LENGTHS)
    overrides = {name: getattr(options, name) for name in ("captions", "features") if getattr(options, name)}
    by_name = {"alignment": figures.alignment, "local-weight": figures.local_weight, "leak": figures.leak}
    return by_name[options.figure](groups, options.split, overrides=overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
