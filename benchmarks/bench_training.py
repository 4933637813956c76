"""Measure time and peak memory of scoring in a training step: the fast exact method and the pairwise reference, and
the exact scores of candidates only.

  python benchmarks/bench_training.py                  prints a table and adds its rows to benchmarks/results.csv
  python benchmarks/bench_training.py --quick          tiny sizes, to test the program; not a measurement

A step is the forward and backward pass through the scores of one batch of images with four sets of texts: captions,
generated positives, and a noised copy of each. On candidates, each item is scored with 3 others in each direction, as
with `train.candidates` 3; the student, which chooses them, is not part of it. A step does not include encoding, loss
and optimizer. Each method runs in its own process, and they alternate. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import measuring
import results
from measuring import MIB, Measurement, number, ratio
from scoring_job import CANDIDATES, Job

from ascl.core.errors import DataError

SHAPES = ((256, 4), (1024, 8))
BATCH, REGIONS = 64, 36
COCO_PAIRS, EPOCHS = 113_287 * 5, 20            # training images with five captions each; without the last short batch
# Relative: methods that differ by more did not compute the same. Autocast rounds the two at different places.
SAME = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value for each method. better: how many times better exact is than pairwise.
    few_better: how many times better candidates are than exact."""

    name: str
    unit: str
    exact: float
    candidates: float
    pairwise: float
    better: float
    few_better: float
    note: str


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--shape", action="append", metavar="D,H",
                        help="embed_dim and heads; may be repeated (default: 256,4 and 1024,8)")
    result.add_argument("--batch", type=int, help=f"images per step, and texts per set (default: {BATCH})")
    result.add_argument("--dtype", action="append", choices=list(SAME),
                        help="bfloat16 is autocast; may be repeated (default: both, if the hardware has bfloat16)")
    measuring.add_options(result, seconds=120)
    return result


def compare(shape: tuple[int, int], precision: str, options: argparse.Namespace, device: str) -> list[Figure]:
    """Measure time and memory of a step with both methods.

    Raises:
        DataError: the two methods differ in their results.
    """
    batch = options.batch or (4 if options.quick else BATCH)
    regions = options.regions or (3 if options.quick else REGIONS)
    jobs = [Job("step", way, precision, *shape, batch, batch, regions, device, options.seconds / measuring.FEWEST,
                *measuring.captions(options), measuring.gemm_size(device, options.quick))
            for way in ("exact", "candidates", "pairwise")]
    exact, few, pairwise = measuring.in_turn(jobs, options.repeats, options.seconds)
    kind = "bfloat16 autocast" if precision == "bfloat16" else precision
    where = f"D {shape[0]}, H {shape[1]}, {kind}"
    assert pairwise.finished.differences is not None
    difference = max(pairwise.finished.differences)
    if not difference < SAME[precision]:
        raise DataError(f"step, {where}: exact and pairwise differ by {difference:.1e} and cannot be compared: run "
                        "tests/retrieval/scoring/test_prepared.py, which should fail too")
    (factor, by_round), (few_factor, few_by_round) = ratio(exact, pairwise), ratio(few, exact)
    note = f"step, {where}: 4 sets of {batch} images of {regions} regions x {batch} texts, forward and backward; " \
           f"{exact.started.lengths}; {exact.spread()}; {few.spread()}; {pairwise.spread()}; ratio {by_round}; " \
           f"{CANDIDATES} candidates, {few.finished.pairs:,} pairs, against exact {few_by_round}; largest relative " \
           f"difference of scores and gradients {difference:.0e}"
    return figures(where, batch, (exact, few, pairwise), (factor, few_factor), note)


def figures(where: str, batch: int, ways: tuple[Measurement, Measurement, Measurement], factors: tuple[float, float],
            note: str) -> list[Figure]:
    times = [way.seconds * way.scaled for way in ways]
    ours, few, theirs = memory = [max(of.finished.memory, 4096) for of in ways]     # at least a page, for tiny sizes
    pairs, steps = 4 * batch**2, EPOCHS * (COCO_PAIRS // batch)
    return [
        Figure(f"training step, scores of {pairs:,} pairs, time, {where}", "s", *times, *factors, note),
        Figure(f"training step, scores of {pairs:,} pairs, peak memory, {where}", "MiB",
               *(number_ / MIB for number_ in memory), theirs / ours, ours / few, note),
        Figure(f"{EPOCHS} epochs of COCO, scores alone, time PROJECTED, {where}", "h",
               *(seconds * steps / 3600 for seconds in times), *factors,
               f"projected, not measured: {steps:,} steps ({COCO_PAIRS:,} captions, batches of {batch}); without "
               f"encoding, loss and optimizer; from the time of {note}"),
    ]


def table(lines: list[Figure]) -> str:
    """Return a Markdown table."""
    text = [f"| | exact | {CANDIDATES} candidates | pairwise | exact against pairwise | candidates against exact |",
            "|---|--:|--:|--:|--:|--:|"]
    text += [f"| {f.name} ({f.unit}) | {number(f.exact)} | {number(f.candidates)} | {number(f.pairwise)} | "
             f"{number(f.better)} | {number(f.few_better)} |" for f in lines]
    return "\n".join(text)


def rows(lines: list[Figure], ran: tuple[str, str, str, str, str], quick: bool) -> list[results.Row]:
    """Return five rows per figure: the methods and two ratios."""
    warning = measuring.QUICK_WARNING if quick else ""
    return [
        results.Row(f"{figure.name}, {way}", number(value), unit, *ran, warning + figure.note)
        for figure in lines
        for way, value, unit in (
            ("exact", figure.exact, figure.unit),
            (f"{CANDIDATES} candidates", figure.candidates, figure.unit),
            ("pairwise", figure.pairwise, figure.unit),
            ("exact against pairwise", figure.better, "times better"),
            (f"{CANDIDATES} candidates against exact", figure.few_better, "times better"),
        )
    ]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    target = measuring.results_file(options)
    lines: list[Figure] = []
    try:
        shapes = tuple(map(measuring.shape_of, options.shape or [])) or (((16, 2),) if options.quick else SHAPES)
        measuring.check_options(options, "batch")
        device = measuring.device_of(options)
        ran = measuring.what_ran(__file__, arguments, device)
        lacking = measuring.low_precision(device)
        wanted = options.dtype or [precision for precision in SAME if precision == "float32" or lacking is None]
        for shape in shapes:
            for precision in wanted:
                lines += compare(shape, precision, options, device)
        notes = dict.fromkeys(figure.note for figure in lines if "PROJECTED" not in figure.name)
        print(table(lines), "", *(f"- {note}" for note in notes), sep="\n")
        if not options.dtype and lacking is not None:
            print(f"- bfloat16 autocast: {lacking}")
        if target is not None:
            results.append(target, rows(lines, ran, options.quick))
            print(f"\nadded to {target}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
