"""Compute what matchers with and without binding can reach on generated scenes; print a table, add rows to results.csv.

  python benchmarks/scene_ceilings.py --captions data/scenes_lab/dataset_scenes.json

Nothing is trained: the matchers know the scenes (ascl/scenes/ceilings.py). The recalls are exact, so they depend only
on the data set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import results
import torch

from ascl.core.errors import DataError
from ascl.core.provenance import code_version
from ascl.core.tables import markdown_table
from ascl.data.captions import load_captions
from ascl.scenes.ceilings import ceilings
from ascl.scenes.render import load_scene_records, scene_settings, truth_matrix
from ascl.scenes.world import SPLITS

HEAD = ["labels", "matcher", "I2T R@1", "R@5", "R@10", "T2I R@1", "R@5", "R@10", "Rsum"]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--captions", type=Path, default=Path("data/scenes_lab/dataset_scenes.json"), metavar="FILE",
                        help="dataset_scenes.json of ascl prepare (default: %(default)s)")
    result.add_argument("--split", default="test", choices=SPLITS, help="(default: %(default)s)")
    result.add_argument("--results", metavar="FILE", default=results.RESULTS,
                        help="CSV to add to (default: benchmarks/results.csv)")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        results.read(options.results)
        made = scene_settings(options.captions)
        scenes = load_scene_records(options.captions, options.split)
        captions = load_captions(options.captions, options.split)
        truth = truth_matrix(captions.captions, scenes)
        where = f"scenes of seed {made['seed']}, {options.split} of {len(scenes):,} x {len(captions.captions):,}, " \
                f"family {made['family']}, share {made['family_share']:g}"
        rows, cells = [], []
        for labels, matcher, recalls in ceilings(scenes, captions.owner, truth):
            values = [*recalls.i2t, *recalls.t2i]
            values = [f"{value:.1f}" for value in (*values, sum(values))]
            cells.append([labels, matcher, *values])
            rows.append(results.Row(
                f"{where}: {matcher}, {labels}: I2T R@1 / R@5 / R@10, T2I R@1 / R@5 / R@10, Rsum", " / ".join(values),
                "percent", results.command(__file__, arguments), results.hardware(torch.device("cpu")), code_version(),
                results.versions(), results.today(), "exact, by ascl/scenes/ceilings.py; nothing is trained"))
        print(f"{where}\n\n{markdown_table(HEAD, cells, text_columns=2)}\n")
        results.append(options.results, rows)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
