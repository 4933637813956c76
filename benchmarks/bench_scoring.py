"""Measure the scoring of all pairs in an evaluation: time, memory, work and error of each method.

  python benchmarks/bench_scoring.py                   prints a table and adds its rows to benchmarks/results.csv
  python benchmarks/bench_scoring.py --growth          time and memory of ranks as the set grows, with a plot
  python benchmarks/bench_scoring.py --growth --plot-only      draws the plot again, from the rows
  python benchmarks/bench_scoring.py --profile         time of the algebra by kind of operation
  python benchmarks/bench_scoring.py --quick           tiny sizes, to test the program; not a measurement

Each method runs in its own process, and they alternate. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import growth
import measuring
import results
import scoring_job
import torch
from measuring import MIB, Measurement, number, ratio
from scoring_job import SCAN, TYPES, Job
from torch import Tensor

from ascl.core.errors import DataError

FULL_SETS = ((1000, 5000), (5000, 25000))       # images, texts: the test sets of Flickr30K and COCO 5K
REFERENCE = ("reference", "float32")            # other methods are compared with this one
# Relative to the largest score: two methods that differ by more did not compute the same scores
SAME = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}
WAYS = ("algebra", "triton", "reference", *SCAN)


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run. images, texts: of the table. growth: numbers of images, with as many texts."""

    shape: tuple[int, int]                      # D, H
    regions: int
    images: int
    texts: int
    growth: tuple[int, ...]


class Cell(NamedTuple):
    """One value of one method. column: its heading in the table. figure: its name in a row."""

    column: str
    figure: str
    unit: str
    value: float | None                         # None = not available for this method

    def shown(self) -> str:
        if self.value is None:
            return "–"
        return number(self.value) + (" PROJECTED" if "PROJECTED" in self.figure else "")


@dataclass(frozen=True)
class Line:
    """One method in the table. cells: None for a method that this machine cannot run, with the reason in `note`.

    head: prefix of the names of its rows.
    """

    name: str
    head: str
    cells: list[Cell] | None
    note: str


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = result.add_mutually_exclusive_group()
    what.add_argument("--growth", action="store_true", help="rank N images x N texts, for several N")
    what.add_argument("--profile", action="store_true", help="shares of the algebra's time by kind of operation")
    result.add_argument("--plot-only", action="store_true", help="with --growth: draw the rows of its last run")
    result.add_argument("--shape", metavar="D,H", help="embed_dim and heads (default: 1024,8; with --growth 256,4)")
    result.add_argument("--images", type=int, help="(default: 128, on a GPU 1000)")
    result.add_argument("--texts", type=int, help="(default: 1280, on a GPU 5000)")
    result.add_argument("--sizes", metavar="N,N,...",
                        help=f"for --growth (default: {','.join(map(str, growth.SIZES))})")
    result.add_argument("--way", action="append", choices=WAYS, help="method; may be repeated (default: all; algebra "
                        "for --growth and --profile)")
    result.add_argument("--dtype", action="append", choices=list(TYPES), help="of the matrix products; may be repeated "
                        "(default: all that the hardware supports; float32 for --growth)")
    result.add_argument("--figure", metavar="FILE", help="plot of --growth (default: docs/figures/scoring_growth.png; "
                        "none in a quick run)")
    measuring.add_options(result, seconds=120)
    return result


def sizes(options: argparse.Namespace, device: str) -> Sizes:
    """Return the sizes of the command line, with the defaults of a quick or a full run.

    Raises:
        DataError: the shape or the sizes are invalid.
    """
    if options.quick:
        default = Sizes((16, 2), 3, 4, 9, (3, 4, 6))
    else:
        images, texts = (1000, 5000) if device == "cuda" else (128, 1280)
        default = Sizes((256, 4) if options.growth else (1024, 8), 36, images, texts, growth.SIZES)
    numbers = default.growth
    if options.sizes is not None:
        numbers = tuple(int(size) for size in options.sizes.split(",") if size.isdecimal())
        if len(numbers) != options.sizes.count(",") + 1 or min(numbers) < 2 or len(set(numbers)) < 2:
            raise DataError(f"--sizes {options.sizes}: expected two or more whole numbers above 1, such as 500,1000")
    return Sizes(
        measuring.shape_of(options.shape) if options.shape else default.shape, options.regions or default.regions,
        options.images or default.images, options.texts or default.texts, numbers,
    )


def jobs_of(options: argparse.Namespace, size: Sizes, device: str) -> tuple[list[Job], list[Line]]:
    """Return the methods that this machine can run, and lines for those that it cannot."""
    everything = [("algebra", "float32"), ("algebra", "bfloat16"), ("triton", "float32"), ("triton", "tf32"),
                  ("triton", "bfloat16"), REFERENCE, ("reference", "bfloat16"), *((way, "float32") for way in SCAN)]
    jobs, absent = [], []
    for way, precision in everything:
        job = job_of("scores", way, precision, options, size, device)
        if way not in (options.way or WAYS) or precision not in (options.dtype or TYPES):
            continue
        if (way, precision) == ("reference", "bfloat16") and device == "cpu" and not options.dtype:
            continue                                    # autocast pays off on a GPU only: measured on request
        reason = missing(job)
        if reason is None:
            jobs.append(job)
        else:
            absent.append(Line(job.label, "", None, reason))
    return jobs, absent


def missing(job: Job) -> str | None:
    """Return the reason why this machine cannot run a method, or None."""
    if job.way == "triton" and job.device == "cpu":
        return "open: no GPU"                           # the time of Triton's interpreter would be meaningless
    if job.precision == "bfloat16" and (reason := measuring.low_precision(job.device)) is not None:
        return reason
    if job.precision == "tf32" and job.device == "cpu":
        return "open: tf32 needs a GPU"
    if job.way == "triton" and (reason := measuring.in_own_process(scoring_job.refusal, job)) is not None:
        return f"open: {reason}"
    return None


def job_of(what: str, way: str, precision: str, options: argparse.Namespace, size: Sizes, device: str) -> Job:
    return Job(what, way, precision, *size.shape, size.images, size.texts, size.regions, device,
               options.seconds / measuring.FEWEST, *measuring.captions(options),
               measuring.gemm_size(device, options.quick))


def compare(options: argparse.Namespace, size: Sizes, device: str) -> list[Line]:
    """Measure every method, in turn.

    Raises:
        DataError: two methods that compute the same scores differ, or there is nothing to measure.
    """
    jobs, absent = jobs_of(options, size, device)
    if not jobs:
        raise DataError(f"nothing to measure here: {'; '.join(f'{line.name}: {line.note}' for line in absent)}")
    measured = measuring.in_turn(jobs, options.repeats, options.seconds)
    check_same(measured)
    ours = [job for job in jobs if job.way not in SCAN]
    print("comparing a sample with float64", file=sys.stderr)
    errors = measuring.in_own_process(scoring_job.errors, ours) if ours else None
    by_job = dict(zip(ours, errors.largest, strict=True)) if errors else {}
    reference = next((m for m in measured if (m.job.way, m.job.precision) == REFERENCE), None)
    sample = f"error: largest of {scoring_job.ERROR_IMAGES} images x {scoring_job.ERROR_TEXTS} texts against " \
             f"float64, whose scores go from {errors.lowest:.3f} to {errors.highest:.3f}" if errors else ""
    done = [line_of(measurement, reference, by_job.get(measurement.job), sample) for measurement in measured]
    lines = {line.name: line for line in (*done, *absent)}
    order = [job_of("scores", way, precision, options, size, device).label for way in WAYS for precision in TYPES]
    return [lines[name] for name in order if name in lines]


def check_same(measured: list[Measurement]) -> None:
    """Raise DataError unless equivalent methods computed the same scores, on the pairs that all of them ran."""
    alike = [m for m in measured if m.job.way not in SCAN]
    if not alike:
        return
    # compare with the plain reference if it was measured
    expected = next((m for m in alike if m.job.pairwise), alike[0])
    for found in alike:
        images = min(found.started.images, expected.started.images)
        apart = scoring_job.difference(*(_first(images, m) for m in (found, expected)))
        allowed = max(SAME[m.job.precision] for m in (found, expected))
        if not apart < allowed:
            raise DataError(f"{found.job.label} and {expected.job.label} differ by {apart:.1e} of the largest score "
                            "and cannot be compared: run tests/retrieval/scoring/test_all_pairs.py, which should fail "
                            "too")


def _first(images: int, of: Measurement) -> Tensor:
    assert of.finished.scores is not None
    return torch.from_numpy(of.finished.scores[:images])


def head(job: Job) -> str:
    """Return the prefix of the names of a job's rows."""
    return f"scores of {job.images:,} x {job.texts:,}, D {job.embed_dim}, H {job.heads}"


def line_of(of: Measurement, reference: Measurement | None, error: float | None, sample: str) -> Line:
    job, flops = of.job, of.finished.flops
    assert flops is not None
    speed = of.started.images * job.texts / of.seconds
    work = flops.pair + flops.prepared
    shares = [work * of.started.images * job.texts / r.seconds / r.peak for r in of.repeats]
    memory = max(of.finished.memory, 4096) / MIB            # at least a page, because tiny sizes may need no new memory
    factor, by_round = (None, "") if reference is None else ratio(of, reference)
    note = f"{job.label}: {job.images} images of {job.regions} regions x {job.texts} texts; {of.started.lengths}; " \
           f"{of.spread()}; share of the matrix products' peak {100 * min(shares):.3g} to {100 * max(shares):.3g} %"
    if by_round and of is not reference:
        note += f"; against the pairwise reference {by_round}"
    if error is not None:
        note += f"; {sample}"
    if job.way == "triton":
        note += "; FLOP of a pair by formula, without padding: the kernel's own products cannot be counted"
    full = []
    for images, texts in FULL_SETS:
        ran = (images, texts) == (job.images, job.texts) and of.scaled == 1
        full.append(Cell(f"{images:,} x {texts:,} (s)", f"{images:,} x {texts:,}, time{'' if ran else ' PROJECTED'}",
                         "s", images * texts / speed))
    return Line(job.label, head(job), [
        Cell("pairs/s", "speed", "pairs/s", speed),
        Cell("us per pair", "time of a pair", "us", 1e6 / speed),
        Cell("times faster than reference", "against the pairwise reference in float32", "times faster", factor),
        *full,
        Cell("peak memory (MiB)", "peak memory above the inputs", "MiB", memory),
        Cell("MFLOP of a pair", "matrix products of a pair", "MFLOP", flops.pair / 1e6),
        Cell("with preparation", "matrix products of a pair with preparation of items", "MFLOP", work / 1e6),
        Cell("machine (GFLOP/s)", "square matrix products beside it", "GFLOP/s", of.peak / 1e9),
        Cell("share of it (%)", "share of the square matrix products' speed", "%", 100 * median(shares)),
        Cell("error", "largest error against float64", "absolute", error),
    ], note)


def table(lines: list[Line]) -> str:
    """Return a Markdown table; a method that cannot run here has the reason instead of numbers."""
    columns = next(line.cells for line in lines if line.cells is not None)
    text = [f"| way | {' | '.join(cell.column for cell in columns)} |", "|---|" + "--:|" * len(columns)]
    for line in lines:
        cells = [line.note, *[""] * (len(columns) - 1)] if line.cells is None else [c.shown() for c in line.cells]
        text.append(f"| {line.name} | {' | '.join(cells)} |")
    return "\n".join(text)


def rows(lines: list[Line], ran: tuple[str, str, str, str, str], quick: bool) -> list[results.Row]:
    """Return one row per number in the table."""
    warning = measuring.QUICK_WARNING if quick else ""
    projected = "projected, not measured, from the speed of "
    return [
        results.Row(f"{line.head}, {line.name}: {cell.figure}", number(cell.value), cell.unit, *ran,
                    warning + (projected if "PROJECTED" in cell.figure else "") + line.note)
        for line in lines for cell in line.cells or [] if cell.value is not None
    ]


def growth_jobs(options: argparse.Namespace, size: Sizes, device: str) -> list[Job]:
    """Return the jobs that rank N images and as many texts, with one method.

    Raises:
        DataError: several methods, SCAN, or a method that cannot run here.
    """
    ways, precisions = options.way or ["algebra"], options.dtype or ["float32"]
    if len(ways) * len(precisions) > 1 or ways[0] in SCAN:
        raise DataError("--growth measures one --way in one --dtype, and no SCAN: choose one of the others")
    job = job_of("ranks", ways[0], precisions[0], options, size, device)
    if (reason := missing(job)) is not None:
        raise DataError(f"--growth, {job.label}: {reason}")
    return [replace(job, images=n, texts=n) for n in size.growth]


def profiles(options: argparse.Namespace, size: Sizes, device: str) -> list[tuple[Job, dict[str, float]]]:
    """Return the time of one run of each method, by kind of operation.

    Raises:
        DataError: none of the requested methods can run here.
    """
    chosen = argparse.Namespace(**{**vars(options), "way": options.way or ["algebra"]})
    jobs, absent = jobs_of(chosen, size, device)
    if not jobs:
        raise DataError(f"nothing to measure here: {'; '.join(f'{line.name}: {line.note}' for line in absent)}")
    return [(job, measuring.in_own_process(scoring_job.profile, job)) for job in jobs]


def profile_table(found: list[tuple[Job, dict[str, float]]]) -> str:
    """Return a Markdown table in percent."""
    lines = ["| " + " | ".join(["share of the time (%)", *(job.label for job, _ in found)]) + " |",
             "|---|" + "--:|" * len(found)]
    lines += [f"| {kind} | " + " | ".join(f"{100 * shares[kind]:.1f}" for _, shares in found) + " |"
              for kind in found[0][1]]
    return "\n".join(lines)


def profile_rows(
    found: list[tuple[Job, dict[str, float]]], ran: tuple[str, str, str, str, str], quick: bool
) -> list[results.Row]:
    """Return one row per share."""
    warning = measuring.QUICK_WARNING if quick else ""
    return [
        results.Row(f"{head(job)}, {job.label}: share of the time in {kind}", f"{100 * share:.1f}", "%", *ran,
                    f"{warning}{job.regions} regions; torch.profiler, self time by kind of operation, one run; other: "
                    "the rest of the wall clock, Python and the profiler itself included")
        for job, shares in found for kind, share in shares.items()
    ]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    target = measuring.results_file(options)
    figure = options.figure or (None if options.quick else growth.FIGURE)
    try:
        measuring.check_options(options, "images", "texts")
        if options.plot_only:
            if not options.growth:
                raise DataError("--plot-only belongs to --growth: give both")
            if figure is None:
                raise DataError("--plot-only in a quick run needs --figure FILE")
            growth.draw(growth.points(results.read(target or results.RESULTS)), Path(figure))
            print(f"drew {figure}")
            return 0
        device = measuring.device_of(options)
        size = sizes(options, device)
        ran = measuring.what_ran(__file__, arguments, device)
        if options.growth:
            made = growth.measure(growth_jobs(options, size, device), options.repeats, options.seconds, ran,
                                  measuring.QUICK_WARNING if options.quick else "")
            print(growth.table(made))
        elif options.profile:
            found = profiles(options, size, device)
            made = profile_rows(found, ran, options.quick)
            print(profile_table(found))
        else:
            lines = compare(options, size, device)
            made = rows(lines, ran, options.quick)
            print(table(lines), "", *(f"- {line.note}" for line in lines if line.cells is not None), sep="\n")
        if target is not None:
            results.append(target, made)
            print(f"\nadded to {target}")
        if options.growth and figure is not None:
            growth.draw(growth.points(made), Path(figure))
            print(f"drew {figure}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
