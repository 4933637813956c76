"""Time and peak memory of exact all-pairs scores against the pairwise computation, in one run.

  python benchmarks/bench_retrieval.py                 prints one table and adds its figures to benchmarks/results.csv
  python benchmarks/bench_retrieval.py --quick         tiny sizes: shows that the program works, measures nothing

A training step is the forward and backward pass through the scores of one batch of images with four sets of texts:
captions, generated positives, and the noised copy of each. The evaluation scores every image with every text. Each
measurement runs in a process of its own. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import results
import torch
from scoring_job import Job, Measurement, measure, text_lengths

from ascl.errors import DataError
from ascl.run import commit

CAPTIONS = results.REPOSITORY.parent / "shared" / "data" / "captions" / "coco_testall_caps.txt.gz"
FULL_SETS = ((1000, 5000), (5000, 25000))       # images, texts: Flickr30K's and COCO 5K's test
MIB = 2**20
SAME = 1e-3                                     # relative: beyond it the two ways did not compute the same


@dataclass(frozen=True)
class Sizes:
    """What one run measures."""

    shapes: tuple[tuple[int, int], ...]         # (D, H)
    batch: int
    regions: int
    images: int                                 # of the evaluation
    texts: int


# One block of images, so that each text is prepared as often per image as where there is no room to keep it prepared.
FULL = Sizes(shapes=((256, 4), (1024, 8)), batch=64, regions=36, images=64, texts=640)
QUICK = Sizes(shapes=((16, 2),), batch=4, regions=3, images=3, texts=7)


@dataclass(frozen=True)
class Figure:
    """One line of the table: the same thing the two ways. `better` is how many times exact beats pairwise."""

    name: str
    unit: str
    exact: float
    pairwise: float
    better: float
    note: str


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--shape", action="append", metavar="D,H",
                        help="embed_dim and heads; may be repeated (default: 256,4 and 1024,8)")
    result.add_argument("--batch", type=int, help=f"images of a training step (default: {FULL.batch})")
    result.add_argument("--regions", type=int, help=f"of an image (default: {FULL.regions})")
    result.add_argument("--images", type=int, help=f"of the evaluation (default: {FULL.images})")
    result.add_argument("--texts", type=int, help=f"of the evaluation (default: {FULL.texts})")
    result.add_argument("--repeats", type=int, default=5, help="the median counts (default: %(default)s)")
    result.add_argument("--seconds", type=float, default=120,
                        help="for the repeats of one measurement; the pairwise way takes as many images as fit "
                             "into it (default: %(default)s)")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--captions", metavar="FILE", help=f"for the lengths of texts (default: {CAPTIONS.name} of "
                        "the folder `shared` beside the repository; generated lengths where that is absent)")
    result.add_argument("--split", help="of the captions (default: from the name of FILE, else test)")
    result.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")
    return result


def sizes(options: argparse.Namespace) -> Sizes:
    """Of the command line, over those of a quick or of a full run.

    Raises:
        DataError: a number below 1, or a shape that is none.
    """
    default = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in ("batch", "regions", "images", "texts")}
    for name, number in {**given, "repeats": options.repeats}.items():
        if number is not None and number < 1:
            raise DataError(f"--{name} {number}: has to be at least 1")
    chosen = {name: getattr(default, name) if number is None else number for name, number in given.items()}
    return Sizes(shapes=default.shapes if options.shape is None else tuple(map(_shape, options.shape)), **chosen)


def captions(options: argparse.Namespace) -> tuple[str | None, str]:
    """File and split of the captions that texts have their lengths from; no file where lengths are generated."""
    path = options.captions or (str(CAPTIONS) if CAPTIONS.exists() else None)
    name = Path(path or "").name.removesuffix(".gz")
    return path, options.split or (name.removesuffix("_caps.txt") if name.endswith("_caps.txt") else "test")


def _shape(text: str) -> tuple[int, int]:
    try:
        embed_dim, heads = map(int, text.split(","))
    except ValueError:
        raise DataError(f"--shape {text}: expected D,H such as 1024,8") from None
    if heads < 1 or embed_dim < 1 or embed_dim % heads:
        raise DataError(f"--shape {text}: H has to divide D")
    return embed_dim, heads


def in_own_process(job: Job) -> Measurement:
    """Measure where nothing else has used memory: a fork of a process that has imported the libraries and no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ascl.run"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, job).result()
        except (BrokenProcessPool, torch.cuda.OutOfMemoryError):
            raise DataError(f"not enough memory, or the process was killed, while measuring {job}: "
                            "lower --seconds, --batch, --images or --texts") from None


def compare(what: str, shape: tuple[int, int], options: argparse.Namespace, size: Sizes, device: str) -> list[Figure]:
    """Time and memory of `step` or `evaluation`, both ways.

    Raises:
        DataError: the two ways differ in what they compute.
    """
    images, texts = (size.batch, size.batch) if what == "step" else (size.images, size.texts)
    exact, pairwise = (
        in_own_process(Job(what, way, *shape, images, texts, size.regions, device, options.repeats, options.seconds,
                           *captions(options)))
        for way in ("exact", "pairwise")
    )
    differences = [d for d in (pairwise.score_difference, pairwise.gradient_difference) if d is not None]
    if not max(differences) < SAME:
        raise DataError(f"{what}, D {shape[0]}, H {shape[1]}: exact and pairwise differ by {max(differences):.1e}: "
                        "no comparison; tests/retrieval/test_scoring.py should fail too")
    note = f"{what}, D {shape[0]}, H {shape[1]}: {_setting(what, images, texts, size.regions)}; {exact.lengths}; " \
           f"{_repeats('exact', exact)}; {_repeats('pairwise', pairwise)}; " \
           f"largest relative difference of {'scores and gradients' if len(differences) > 1 else 'scores'} " \
           f"{max(differences):.0e}"
    factor = images / pairwise.images
    if factor > 1:
        note += f"; PAIRWISE SCALED from {pairwise.images} of {images} images, more did not fit in time or memory"
    build = _step_figures if what == "step" else _evaluation_figures
    return build(f"D {shape[0]}, H {shape[1]}", exact, pairwise, factor, images * texts, note)


def _setting(what: str, images: int, texts: int, regions: int) -> str:
    pairs = f"{images} images of {regions} regions x {texts} texts"
    return f"4 sets of {pairs}, forward and backward" if what == "step" else pairs


def _repeats(way: str, measurement: Measurement) -> str:
    seconds = measurement.seconds
    return f"{way}: median of {len(seconds)} ({min(seconds):.3g} to {max(seconds):.3g} s)"


def _memory(name: str, exact: Measurement, pairwise: Measurement, note: str) -> Figure:
    ours, theirs = (max(of.memory, 4096) for of in (exact, pairwise))       # a page, where tiny sizes need nothing new
    return Figure(name, "MiB", ours / MIB, theirs / MIB, theirs / ours, note)


def _step_figures(
    shape: str, exact: Measurement, pairwise: Measurement, factor: float, pairs: int, note: str
) -> list[Figure]:
    fast, slow = median(exact.seconds), median(pairwise.seconds) * factor
    return [
        Figure(f"training step, scores of {4 * pairs:,} pairs, time, {shape}", "s", fast, slow, slow / fast, note),
        _memory(f"training step, scores of {4 * pairs:,} pairs, peak memory, {shape}", exact, pairwise, note),
    ]


def _evaluation_figures(
    shape: str, exact: Measurement, pairwise: Measurement, factor: float, pairs: int, note: str
) -> list[Figure]:
    fast, slow = pairs / median(exact.seconds), pairs / (median(pairwise.seconds) * factor)
    projected = [
        Figure(f"evaluation of {images:,} x {texts:,}, time PROJECTED, {shape}", "s", images * texts / fast,
               images * texts / slow, fast / slow, f"projected, not measured, from the pairs per second of {note}")
        for images, texts in FULL_SETS
    ]
    return [
        Figure(f"evaluation of {pairs:,} pairs, speed, {shape}", "pairs/s", fast, slow, fast / slow, note),
        _memory(f"evaluation of {pairs:,} pairs, peak memory, {shape}", exact, pairwise, note),
        *projected,
    ]


def table(figures: list[Figure]) -> str:
    """Markdown."""
    lines = ["| | exact | pairwise | times better |", "|---|--:|--:|--:|"]
    lines += [f"| {f.name} ({f.unit}) | {_number(f.exact)} | {_number(f.pairwise)} | {_number(f.better)} |"
              for f in figures]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits that count, never with an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def rows(figures: list[Figure], arguments: list[str], device: str, quick: bool) -> list[results.Row]:
    """Three rows for each figure: both ways and their ratio."""
    warning = "QUICK: tiny sizes, a check of the program and no measurement; " if quick else ""
    what_ran = (results.command(__file__, arguments), results.hardware(torch.device(device)), commit(),
                results.versions(), results.today())
    return [
        results.Row(f"{figure.name}, {way}", _number(value), unit, *what_ran, warning + figure.note)
        for figure in figures
        for way, value, unit in (
            ("exact", figure.exact, figure.unit),
            ("pairwise", figure.pairwise, figure.unit),
            ("exact against pairwise", figure.better, "times better"),
        )
    ]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    target = options.results or (None if options.quick else results.RESULTS)
    figures: list[Figure] = []
    try:
        size = sizes(options)
        text_lengths(*captions(options), count=1)       # what is wrong is said now, not after the measurement
        if target is not None:
            results.read(target)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise DataError("--device cuda: torch finds no GPU here; give --device cpu")
        print(f"{results.hardware(torch.device(device))}; {torch.get_num_threads()} threads; {results.versions()}; "
              f"commit {commit()}", file=sys.stderr)
        for shape in size.shapes:
            for what in ("step", "evaluation"):
                print(f"measuring: {what}, D {shape[0]}, H {shape[1]}", file=sys.stderr)
                figures += compare(what, shape, options, size, device)
        notes = dict.fromkeys(figure.note for figure in figures if "PROJECTED" not in figure.name)
        print(table(figures), "", *(f"- {note}" for note in notes), sep="\n")
        if target is not None:
            results.append(target, rows(figures, arguments, device, options.quick))
            print(f"\nadded to {target}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
