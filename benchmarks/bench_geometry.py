"""Relate the true pairs and the hard negatives of a copy benchmark by geometry; count right and wrong answers.

  ascl copy benchmark --images photos/ --out data/bench --seed 3
  python benchmarks/bench_geometry.py --benchmark data/bench
  ascl copy benchmark --kind hard --images photos/ --out data/hard --seed 3
  python benchmarks/bench_geometry.py --benchmark data/hard

Prints a table by kind of query, mild + medium + hard in each cell, and adds rows to benchmarks/results.csv: what true
pairs, reverse crops, templates and bursts are called, and the processor time of one picture and of one pair. "shows
more" says that the reference copies the query: right for reverse crops, and for nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, median

import results
import torch

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.core.provenance import code_version
from ascl.core.tables import markdown_table
from ascl.image_copy.benchmark.plan import BURST, LEVELS, REVERSE_CROP, TEMPLATE
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.geometry import relate
from ascl.image_copy.matching.local_features import LocalFeatures, local_features
from ascl.image_copy.matching.verify import Picture, Verifier
from ascl.images.read import load_image

COLUMNS = {True: "copy", None: "open", False: "shows more"}
NOT_FOUND = "not confirmed"
CANDIDATES, QUERIES = 50, 40
ROLES = {"copy": "true pairs", REVERSE_CROP: "reverse crops", TEMPLATE: "templates", BURST: "bursts"}


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
    edits = {row["query_id"]: (row["role"], row["kind"], row["strength"]) for row in rows_of(folder / "edits.csv")}
    pairs = [(row["query_id"], row["reference_id"]) for name in ("ground_truth", "hard_negatives")
             for row in rows_of(folder / f"{name}.csv") if row["reference_id"]]
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

    found: Counter[tuple[str, str, str, str]] = Counter()  # role, kind, strength, what it is called
    for query, reference in pairs:
        own, other = features("queries", query), features("references", reference)
        began = time.process_time()
        relation = relate(own, other)
        times["pair"].append(time.process_time() - began)
        found[(*edits[query], NOT_FOUND if relation is None else COLUMNS[relation.copy])] += 1
    names = [*COLUMNS.values(), NOT_FOUND]
    table = [[kind, *(" + ".join(str(found[role, kind, level, name]) for level in LEVELS) for name in names)]
             for role, kind in sorted({key[:2] for key in found})]
    print(markdown_table(["kind", *names], table))
    sizes = [str(made[name]) for name in ("references", "reverse_crops", "templates", "bursts") if name in made]
    label = f"copy benchmark, seed {made['seed']}, {' + '.join(sizes)} references"
    label = f"hard {label}" if "templates" in made else label
    measured = []
    for role, of in ROLES.items():
        counts = [sum(count for key, count in found.items() if (key[0], key[3]) == (role, name)) for name in names]
        if any(counts):
            measured.append((f"geometry, {label}: of {sum(counts)} {of}, called {' / '.join(names)}",
                             " / ".join(map(str, counts)), "pairs"))
    measured.append(("geometry: processor time of the features of a picture / of relating a true pair, with its mirror "
                     "image where that is tried", f"{1000 * mean(times['picture']):.0f} / "
                     f"{1000 * mean(times['pair']):.0f}", "ms"))
    with tempfile.TemporaryDirectory() as cache:
        took = queries_verified(folder, pairs, Path(cache))
    measured.append((f"geometry: processor time of a query whose {CANDIDATES} candidates are verified, their features "
                     f"kept: median / highest of {len(took)}",
                     f"{1000 * median(took):.0f} / {1000 * max(took):.0f}", "ms"))
    for what, value, unit in measured:
        print(f"{what}: {value} {unit}")
    return measured


def queries_verified(folder: Path, pairs: list[tuple[str, str]], cache: Path) -> list[float]:
    """Return the processor time of verifying each of the first queries, read from its file, with its own reference and
    the next ones of the benchmark."""
    names = sorted({reference for _, reference in pairs})
    pictures = {}
    for name in names:
        path = next((folder / "references").glob(f"{name}.*"))
        pictures[name] = Picture(path, bytes.fromhex(sha256_of(path)))
    Verifier(FeatureCache(cache)).keep(list(pictures.values()), 1)
    took = []
    for query, reference in pairs[:QUERIES]:
        verifier = Verifier(FeatureCache(cache))
        own, first = Picture(next((folder / "queries").glob(f"{query}.*"))), names.index(reference)
        began = time.process_time()
        for place in range(CANDIDATES):
            verifier(own, pictures[names[(first + place) % len(names)]])
        took.append(time.process_time() - began)
    return took


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
