"""Find planted copies in a folder of photographs: our groups, and imagededup's duplicates if it is installed.

  python benchmarks/bench_groups.py --images photos/ --photos 8000 --copies 2000 --model mobilenet_v2

Each of the first photographs gets one to four copies: saved again, smaller, cropped, mirrored, in a frame, brightened
and tilted, with a text, or pasted onto another photograph. True pairs are those of one photograph and its copies. Every
method runs in a process of its own. imagededup gets the thresholds at which it is best on these pairs, which nobody
knows beforehand, besides its default ones; its CNN has the same network as ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import results
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from ascl.core.errors import DataError
from ascl.core.provenance import code_version
from ascl.core.tables import markdown_table
from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
from ascl.image_copy.matching.groups import find_copy_groups
from ascl.images.find import images_of
from ascl.images.read import load_image

Pairs = set[frozenset[str]]
DISTANCES = range(0, 21)                            # of imagededup's hashes; 10 is its default
SIMILARITIES = np.round(np.arange(0.85, 1.0, 0.01), 2)      # of its CNN; 0.9 is its default


class Found(NamedTuple):
    """What a method found: pairs by the name of its threshold, seconds, and the peak of its memory in MiB."""

    pairs: dict[str, Pairs]
    seconds: float
    memory: float


def framed(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, (image.width // 8, image.height // 12), (245, 245, 245))


def tilted(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.3).rotate(8, Image.Resampling.BICUBIC, expand=True)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((image.width // 8, image.height // 10, image.width * 7 // 8, image.height * 3 // 4))


def titled(image: Image.Image) -> Image.Image:
    image = image.copy()
    place = (image.width // 10, image.height * 3 // 4)
    ImageDraw.Draw(image).text(place, "Look at this!", (255, 255, 0), ImageFont.load_default(image.height // 8))
    return image


def pasted(image: Image.Image, other: Image.Image) -> Image.Image:
    result = other.resize(image.size)
    result.paste(image.resize((image.width * 3 // 5, image.height * 3 // 5)), (image.width // 6, image.height // 4))
    return result


COPIES: dict[str, tuple[Callable[[Image.Image, Image.Image], Image.Image], dict[str, Any]]] = {
    "again.jpg": (lambda image, other: image, {"quality": 50}),
    "small.png": (lambda image, other: image.resize((image.width // 2, image.height // 2)), {}),
    "crop.jpg": (lambda image, other: cropped(image), {"quality": 90}),
    "mirror.webp": (lambda image, other: ImageOps.mirror(image), {"quality": 80}),
    "frame.jpg": (lambda image, other: framed(image), {"quality": 90}),
    "tilt.jpg": (lambda image, other: tilted(image), {"quality": 85}),
    "text.jpg": (lambda image, other: titled(image), {"quality": 90}),
    "paste.jpg": (lambda image, other: pasted(image, other), {"quality": 90}),
}


def plant(images: Path, photos: int, copies: int, seed: int, out: Path) -> list[list[str]]:
    """Write photographs and copies of some of them; return the names of each of these with its copies."""
    paths = images_of(images).paths
    rng = np.random.default_rng(seed)
    if len(paths) < photos + 1:
        raise DataError(f"{images} has {len(paths)} photographs: give at least {photos + 1}")
    order = rng.permutation(len(paths))
    grounds, made, families = order[photos:], 0, list[list[str]]()
    for number, at in enumerate(order[:photos].tolist()):
        image = load_image(paths[at]).image
        name = f"{number:05d}.jpg"
        image.save(out / name, quality=95)
        if made == copies:
            continue
        family = [name]
        for kind in rng.permutation(list(COPIES))[: min(int(rng.integers(1, 5)), copies - made)].tolist():
            change, how = COPIES[kind]
            other = load_image(paths[grounds[int(rng.integers(len(grounds)))]]).image
            change(image, other).save(out / f"{number:05d}_{kind}", **how)
            family.append(f"{number:05d}_{kind}")
            made += 1
        families.append(family)
    return families


def pairs_of(groups: Iterable[Iterable[str]]) -> Pairs:
    return {frozenset(pair) for group in groups for pair in combinations(sorted(group), 2)}


def ours(folder: Path, model: dict[str, Any]) -> dict[str, Pairs]:
    with tempfile.TemporaryDirectory() as index:
        found = find_copy_groups(folder, index=Path(index) / "index", threads=torch.get_num_threads(),
                                 model=DescriberChoice.from_options(model))
    return {"": pairs_of([record.id for record in group.records] for group in found.groups)}


def scored(found: dict[str, list[tuple[str, float]]], thresholds: Iterable[float], default: float, *,
           above: bool) -> dict[str, Pairs]:
    result = {}
    for threshold in thresholds:
        name = f"default, {threshold:g}" if threshold == default else f"{threshold:g}"
        result[name] = {frozenset((one, other)) for one, others in found.items() for other, score in others
                        if (score >= threshold if above else score <= threshold)}
    return result


def dedup_hash(folder: Path, model: dict[str, Any]) -> dict[str, Pairs]:
    from imagededup.methods import PHash

    threads = torch.get_num_threads()
    found = PHash(verbose=False).find_duplicates(image_dir=folder, max_distance_threshold=max(DISTANCES), scores=True,
                                                 num_enc_workers=threads, num_dist_workers=threads)
    return scored(found, DISTANCES, 10, above=False)


class Network(torch.nn.Module):
    """Our descriptor behind imagededup's interface."""

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        choice = DescriberChoice.from_options(model)
        assert choice is not None
        self.describe = make_describer(choice)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.describe(list(pixels.numpy()))[0])


def dedup_network(folder: Path, model: dict[str, Any]) -> dict[str, Pairs]:
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel

    network = Network(model)
    config = CustomModel("ours", network, lambda image: torch.tensor(network.describe.prepare(image)))
    found = CNN(verbose=False, model_config=config).find_duplicates(
        image_dir=folder, min_similarity_threshold=float(SIMILARITIES.min()), scores=True, num_sim_workers=0)
    return scored(found, SIMILARITIES, 0.9, above=True)


METHODS = {"ascl copy groups": ours, "imagededup PHash": dedup_hash, "imagededup CNN": dedup_network}


def run(method: str, folder: Path, model: dict[str, Any], threads: int, answers: Any) -> None:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    pairs = METHODS[method](folder, model)
    answers.put(Found(pairs, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measured(method: str, *arguments: Any) -> Found:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=run, args=(method, *arguments, answers))
    process.start()
    while True:
        try:
            found = answers.get(timeout=5)
            break
        except Exception:
            if not process.is_alive():
                raise DataError(f"{method} ended without an answer (status {process.exitcode})") from None
    process.join()
    return found


def f1(found: Pairs, true: Pairs) -> tuple[float, float, float]:
    right = len(found & true)
    precision, recall = right / max(1, len(found)), right / len(true)
    return 200 * right / (len(found) + len(true)), 100 * precision, 100 * recall


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="photographs, none a copy")
    parser.add_argument("--photos", type=int, default=8000, metavar="N", help="photographs to take")
    parser.add_argument("--copies", type=int, default=2000, metavar="N", help="copies to plant")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--model", required=True, help="of ascl copy groups and of imagededup's CNN")
    parser.add_argument("--weights", help="--model: path of a backbone's weights")
    parser.add_argument("--normalize", help="--model: as for ascl copy index")
    parser.add_argument("--same_padding", action="store_true", help="--model: as for ascl copy index")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="FILE", help="CSV to add to")
    options = parser.parse_args(arguments)
    model = {name: getattr(options, name) for name in ("model", "weights", "normalize", "same_padding")}
    try:
        results.read(options.results)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            families = plant(options.images, options.photos, options.copies, options.seed, folder)
            true = pairs_of(families)
            print(f"{len(list(folder.iterdir())):,} pictures, {len(true):,} true pairs", flush=True)
            rows, measurements = list[list[str]](), list[tuple[str, str, str]]()
            for method in METHODS if find_spec("imagededup") else list(METHODS)[:1]:
                found = measured(method, folder, model, options.threads)
                named = {threshold: f1(pairs, true) for threshold, pairs in found.pairs.items()}
                best = max(named, key=lambda threshold: named[threshold][0])
                for threshold in dict.fromkeys([*(one for one in named if one.startswith("default")), best]):
                    label = method + (f" ({threshold}{', the best' * (threshold == best)})" if threshold else "")
                    rows.append([label, *(f"{value:.1f}" for value in named[threshold]), f"{found.seconds:.0f}",
                                 f"{found.memory:.0f}"])
                    print(json.dumps(rows[-1]), flush=True)
                    measurements.append((label, " / ".join(rows[-1][1:]), "%, %, %, s, MiB"))
                if method == "ascl copy groups":
                    kinds = {kind: [pair for pair in pairs_of([family[0], one] for family in families
                                                              for one in family[1:] if one.endswith(f"_{kind}"))]
                             for kind in COPIES}
                    by_kind = " / ".join(f"{kind.partition('.')[0]} "
                                         f"{100 * sum(pair in found.pairs[''] for pair in pairs) / len(pairs):.0f}"
                                         for kind, pairs in kinds.items() if pairs)
                    print(by_kind, flush=True)
                    measurements.append(("ascl copy groups, copies in the group of their original, by kind", by_kind,
                                         "%"))
        print(markdown_table(["method", "F1", "precision", "recall", "seconds", "MiB"], rows))
        what = f"{options.photos} photographs with {options.copies} planted copies, seed {options.seed}"
        ran = results.command(__file__, arguments)
        torch.set_num_threads(options.threads)
        results.append(options.results, [
            results.Row(f"copies in a folder, {what}, {label}" + (": F1 / precision / recall of pairs, time, peak of "
                        "the process's memory" if unit != "%" else ""), value, unit, ran,
                        results.hardware(torch.device("cpu")), code_version(), results.versions(), results.today(),
                        "each in its own process") for label, value, unit in measurements])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
