"""Compare the threshold that an index takes from its own images with that of unrelated background images.

  python benchmarks/bench_calibration.py --photos photos/ --weights mobilenet_v2.pth
  python benchmarks/bench_calibration.py --photos photos/ --weights mobilenet_v2.pth --benchmark data/bench

Photographs are split at random into an index, a background and a rest, several times. The share of the rest whose best
match reaches a threshold is its true rate of false positives. With --benchmark the index holds a copy benchmark's
references and their edited copies. Prints a table and adds rows to benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import results
import torch

from ascl.core.errors import DataError
from ascl.core.provenance import code_version
from ascl.core.tables import markdown_table
from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
from ascl.image_copy.matching.calibrate import BY_ITSELF, calibrate_by_itself
from ascl.image_copy.matching.describe import ReadOptions, described_images
from ascl.image_copy.matching.feature_cache import FEATURES
from ascl.image_copy.matching.model import create_index
from ascl.images.find import find_images
from ascl.index.calibration import calibrated
from ascl.index.images import Images
from ascl.index.store import CopyIndex

RATES = (0.01, 0.05)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path, metavar="FOLDER", help="for index, background and rest")
    parser.add_argument("--most", type=int, default=4000, metavar="N", help="photographs that are used, the first")
    parser.add_argument("--weights", metavar="FILE", help="of MobileNetV2, with TensorFlow's padding; null = phash")
    parser.add_argument("--benchmark", type=Path, metavar="FOLDER", help="of ascl copy benchmark, from --photos")
    parser.add_argument("--index", type=int, default=400, metavar="N", help="photographs in an index")
    parser.add_argument("--background", type=int, default=500, metavar="N", help="photographs in the background")
    parser.add_argument("--splits", type=int, default=10, metavar="N", help="with seeds from 0")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keeps descriptors and features between runs")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="FILE", help="CSV to add to")
    options = parser.parse_args(arguments)
    try:
        results.read(options.results)
        with tempfile.TemporaryDirectory() as temporary:
            cache = options.cache or Path(temporary)
            cache.mkdir(exist_ok=True)
            measured = measure(options, cache, Path(temporary))
        ran = results.command(__file__, arguments)
        results.append(options.results, [
            results.Row(what, value, "percent of the rest", ran, results.hardware(torch.device("cpu")), code_version(),
                        results.versions(), results.today(), note) for what, value, note in measured])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


def measure(options: argparse.Namespace, cache: Path, temporary: Path) -> list[tuple[str, str, str]]:
    """Print the table; return what was measured, its values and a note.

    Raises:
        DataError: a folder has no images, or too few of them.
    """
    choice = DescriberChoice.from_options({"model": "phash"} if options.weights is None else {
        "model": "mobilenet_v2", "weights": options.weights, "same_padding": True, "normalize": "half",
        "input_size": 160})
    model = make_describer(choice)
    name = "perceptual hash" if options.weights is None else "MobileNetV2 with GeM at 160 pixels"

    def described(folder: Path, most: int | None = None) -> Images:
        files = find_images(folder).images[:most]
        kept = cache / f"{folder.name}-{len(files)}-{name}.npz"
        if not kept.exists():
            parts = list(described_images(model, files, ReadOptions(batch_size=16), []))
            np.savez(kept, *[np.concatenate([np.asarray(getattr(part, field)) for part in parts])
                             for field in ("ids", "paths", "digests", "sizes", "vectors", "norms")])
        with np.load(kept) as held:
            ids, paths, digests, sizes, vectors, norms = (held[f"arr_{number}"] for number in range(6))
        return Images(ids.tolist(), paths.tolist(), digests, sizes, vectors, norms)

    photos = described(options.photos, options.most)
    used = options.index + options.background
    if len(photos.ids) < used:
        raise DataError(f"{options.photos} has {len(photos.ids)} photographs, and {used} are needed")
    copies = described(options.benchmark) if options.benchmark else None
    taken = set[str]()
    if copies is not None:
        taken, copies = of_benchmark(options.benchmark, copies)
    free = np.array([place for place, one in enumerate(photos.ids) if one not in taken])
    found: dict[tuple[str, float], list[float]] = {}
    for seed in range(options.splits):
        order = np.random.default_rng(seed).permutation(free)
        inside = copies if copies is not None else subset(photos, order[: options.index])
        outside = order if copies is not None else order[options.index :]
        background, left = np.split(outside, [min(options.background, len(outside))])
        rest = photos.vectors[left]
        index = create_index(temporary / f"index-{seed}", choice, model)
        os.symlink((cache / FEATURES).absolute(), index.folder / FEATURES)      # one cache for all
        index.add(inside)
        true = index.search(rest, 1)[1][:, 0]
        scores = index.search(photos.vectors[background], 1)[1][:, 0]
        naive = own_scores(index)
        for rate in RATES:
            about = {"confidence": 0.95, "images": len(index), "added": len(index), "left_out": {}, "score_norm": None}
            thresholds = {
                f"{len(background)} background images": calibrated(scores, rate, **about).threshold,
                "all of its own images": calibrate_by_itself(index, rate=rate).threshold,
                f"{BY_ITSELF} of its own images": calibrate_by_itself(index, rate=rate, sample=BY_ITSELF,
                                                                     seed=seed).threshold,
                "all of its own, without geometry": calibrated(naive, rate, **about).threshold,
            }
            for how, threshold in thresholds.items():
                found.setdefault((how, rate), []).append(100 * float((true >= threshold).mean()))
    what = "photographs and edited copies" if copies is not None else "photographs"
    what = f"{what}, {len(index):,} images"
    rows = [[how, f"{100 * rate:g}", f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]
            for (how, rate), values in found.items()]
    print(markdown_table(["calibrated with", "wanted", "true rate", "of the splits"], rows))
    return [(f"false positives of an index of {what}, {name}, calibrated with {how}, wanted {wanted} %: true rate",
             value, f"mean of {options.splits} splits, {spread}; {len(rest):,} photographs in the rest")
            for how, wanted, value, spread in rows]


def own_scores(index: CopyIndex) -> np.ndarray:
    """Return the score of each image with the nearest other one, whatever that is."""
    found, scores = index.search(np.array(index.rows.vectors), 2)
    own = found[:, 0] == np.arange(len(found))
    return np.where(own, scores[:, 1], scores[:, 0])


def of_benchmark(folder: Path, images: Images) -> tuple[set[str], Images]:
    """Return the photographs that a benchmark uses, and its references and the queries that are made of them."""
    with (folder / "sources.csv").open(newline="") as file:
        used = {row["source_image"] for row in csv.DictReader(file)}
    with (folder / "edits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    outside = {row["query_id"] for row in rows if row["role"] == "distractor"}
    keep = [place for place, one in enumerate(images.ids) if Path(one).parts[0] == "references"
            or (Path(one).parts[0] == "queries" and Path(one).stem not in outside)]
    return used | {row["source_image"] for row in rows}, subset(images, np.array(keep))


def subset(images: Images, places: np.ndarray) -> Images:
    """Return some of the images."""
    return replace(images, ids=[images.ids[place] for place in places], paths=[images.paths[place] for place in places],
                   digests=images.digests[places], sizes=images.sizes[places], vectors=images.vectors[places],
                   norms=images.norms[places])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
