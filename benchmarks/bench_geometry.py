"""Relate the true pairs and the reverse crops of a copy benchmark by geometry; count right and wrong answers.

  ascl copy benchmark --images photos/ --out data/bench --seed 3
  python benchmarks/bench_geometry.py --benchmark data/bench

Prints a table by edit, and adds rows to benchmarks/results.csv: what true pairs and reverse crops are called, and the
processor time of one picture and of one pair.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import results
import torch

from ascl.core.errors import DataError
from ascl.core.provenance import code_version
from ascl.core.tables import markdown_table
from ascl.image_copy.matching.geometry import relate
from ascl.image_copy.matching.local_features import LocalFeatures, local_features
from ascl.images.read import load_image

COLUMNS = {True: "copy", None: "open", False: "shows more"}
NOT_FOUND = "not confirmed"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, type=Path, metavar="FOLDER", help="of ascl copy benchmark")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="FILE", help="CSV to add to")
    options = parser.parse_args(arguments)
    try:
        results.read(options.results)
        measured = measure(options.benchmark)
        ran = results.command(__file__, arguments)
        results.append(options.results, [
            results.Row(what, value, unit, ran, results.hardware(torch.device("cpu")), code_version(),
                        results.versions(), results.today(), "one thread") for what, value, unit in measured])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


def measure(folder: Path) -> list[tuple[str, str, str]]:
    """Print the table; return what was measured, its values and their unit.

    Raises:
        DataError: the folder is no benchmark.
    """
    if not (folder / "edits.csv").exists():
        raise DataError(f"{folder} is no benchmark of ascl copy benchmark: it has no edits.csv")
    made = json.loads((folder / "benchmark.json").read_text())["settings"]
    edits = {row["query_id"]: row["kind"] for row in rows_of(folder / "edits.csv")}
    pairs = [(row["query_id"], row["reference_id"], kind) for kind in ("ground_truth", "hard_negatives")
             for row in rows_of(folder / f"{kind}.csv") if row["reference_id"]]
    kept: dict[Path, LocalFeatures] = {}
    times: defaultdict[str, list[float]] = defaultdict(list)

    def features(role: str, name: str) -> LocalFeatures:
        path = next((folder / role).glob(f"{name}.*"))
        if path not in kept:
            image = load_image(path).image
            began = time.process_time()
            kept[path] = local_features(image)
            times["picture"].append(time.process_time() - began)
        return kept[path]

    found: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for query, reference, kind in pairs:
        own, other = features("queries", query), features("references", reference)
        began = time.process_time()
        relation = relate(own, other)
        times["pair"].append(time.process_time() - began)
        found[kind, edits[query]][NOT_FOUND if relation is None else COLUMNS[relation.copy]] += 1
    names = [*COLUMNS.values(), NOT_FOUND]
    table = [[edit, *(str(counts[name]) for name in names)] for (_, edit), counts in sorted(found.items())]
    print(markdown_table(["edit", *names], table))
    true, reverse = (sum((counts for (of, _), counts in found.items() if of == kind), Counter())
                     for kind in ("ground_truth", "hard_negatives"))
    label = f"copy benchmark, seed {made['seed']}, {made['references']} + {made['reverse_crops']} references"
    measured = []
    for counts, of in ((true, "true pairs"), (reverse, "reverse crops")):
        measured.append((f"geometry, {label}: of {counts.total()} {of}, called {' / '.join(names)}",
                         " / ".join(str(counts[name]) for name in names), "pairs"))
    measured.append(("geometry: processor time of the features of a picture / of relating a true pair, with its mirror "
                     "image where that is tried", f"{1000 * mean(times['picture']):.0f} / "
                     f"{1000 * mean(times['pair']):.0f}", "ms"))
    for what, value, unit in measured:
        print(f"{what}: {value} {unit}")
    return measured


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
