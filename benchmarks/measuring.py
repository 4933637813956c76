"""Shared code of the benchmark programs: options, processes that alternate, and number formats."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import results
import scoring_job
import torch
from scoring_job import Finished, Job, Repeat, Started

from ascl.core.errors import DataError
from ascl.core.provenance import code_version
from ascl.retrieval.scoring.tiles import free_memory

CAPTIONS = results.REPOSITORY.parent / "shared" / "data" / "captions" / "coco_testall_caps.txt.gz"
MIB = 2**20
FEWEST = 3                      # repeats that the time of a pairwise method should allow
SHARE_OF_MEMORY = 0.3           # that the inputs of all methods may take together; else one method after the other
LONGEST = 64                    # words per text, to estimate the inputs
Figure = tuple[str, str, str, str]      # what, value, unit, note
QUICK_WARNING = "QUICK: tiny sizes, a test of the program and not a measurement; "


@dataclass(frozen=True)
class Measurement:
    """The measurement of one method: its job, its repeats in order of the rounds, and its final results."""

    job: Job
    started: Started
    repeats: list[Repeat]
    finished: Finished

    @property
    def seconds(self) -> float:
        """Median time of one run, with the images that it used."""
        return median(repeat.seconds for repeat in self.repeats)

    @property
    def scaled(self) -> float:
        """Ratio of the job's images to those that ran."""
        return self.job.images / self.started.images

    @property
    def peak(self) -> float:
        """Median FLOP/s of square matrix products, measured between the repeats."""
        return median(repeat.peak for repeat in self.repeats)

    def spread(self) -> str:
        """Return the spread over repeats, for a note."""
        seconds, peaks = [r.seconds for r in self.repeats], [r.peak / 1e9 for r in self.repeats]
        text = f"{self.job.label}: median of {len(seconds)} ({min(seconds):.3g} to {max(seconds):.3g} s); matrix " \
               f"products in between {number(min(peaks))} to {number(max(peaks))} GFLOP/s"
        if self.scaled > 1:
            text += f"; SCALED from {self.started.images} of {self.job.images} images, more did not fit in time or " \
                    "memory"
        return text


def add_options(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """Add the options of every program."""
    parser.add_argument("--regions", type=int, help="per image (default: 36)")
    parser.add_argument("--repeats", type=int, default=5, help="report the median of these (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds,
                        help="for the repeats of one method; the pairwise method uses as many images as allow "
                             f"{FEWEST} repeats (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--captions", metavar="FILE", help=f"for the lengths of texts (default: {CAPTIONS.name} in "
                        "the folder `shared` next to the repository; if that is absent, generated lengths)")
    parser.add_argument("--split", help="of the captions (default: from the name of FILE, else test)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    parser.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")


def check_options(options: argparse.Namespace, *names: str) -> None:
    """Check the options before measuring.

    Args:
        names: options that are counts, in addition to those of `add_options`.

    Raises:
        DataError: a number is below 1, or captions or results cannot be read.
    """
    for name in (*names, "regions", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"--{name} {value}: must be at least 1")
    scoring_job.text_lengths(*captions(options), count=1)
    target = results_file(options)
    if target is not None:
        results.read(target)


def results_file(options: argparse.Namespace) -> str | Path | None:
    """Return the file for rows; by default a quick run writes none, because it must not be quoted."""
    return options.results or (None if options.quick else results.RESULTS)


def check_results(options: argparse.Namespace) -> None:
    """Check the results file before measuring.

    Raises:
        DataError: the results file cannot be read.
    """
    target = results_file(options)
    if target is not None:
        results.read(target)


def keep(options: argparse.Namespace, ran: tuple[str, str, str, str, str], figures: Sequence[Figure]) -> None:
    """Add a run's rows to the results file, if there is one, and print its path."""
    target = results_file(options)
    if target is None:
        return
    warning = QUICK_WARNING if options.quick else ""
    results.append(target, [results.Row(*figure[:3], *ran, warning + figure[3]) for figure in figures])
    print(f"\nadded to {target}")


def captions(options: argparse.Namespace) -> tuple[str | None, str]:
    """Return file and split of the captions that define text lengths; the file is None for generated lengths."""
    path = options.captions or (str(CAPTIONS) if CAPTIONS.exists() else None)
    name = Path(path or "").name.removesuffix(".gz")
    return path, options.split or (name.removesuffix("_caps.txt") if name.endswith("_caps.txt") else "test")


def shape_of(text: str) -> tuple[int, int]:
    """Return D and H of "D,H"."""
    try:
        embed_dim, heads = map(int, text.split(","))
    except ValueError:
        raise DataError(f"--shape {text}: expected D,H such as 1024,8") from None
    if heads < 1 or embed_dim < 1 or embed_dim % heads:
        raise DataError(f"--shape {text}: H must divide D")
    return embed_dim, heads


def device_of(options: argparse.Namespace) -> str:
    """Return "cpu" or "cuda", and print hardware, versions and commit."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch finds no GPU here; give --device cpu")
    print(f"{results.hardware(torch.device(device))}; {torch.get_num_threads()} threads; {results.versions()}; "
          f"commit {code_version()}", file=sys.stderr)
    return device


def low_precision(device: str) -> str | None:
    """Return the reason why bfloat16 is not worth measuring on this device, or None."""
    if device == "cuda":
        return None
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return "open: unknown whether this processor has bfloat16 products"
    words = set(cpuinfo.read_text(encoding="utf-8").split())
    return None if words & {"avx512_bf16", "amx_bf16", "bf16"} else "open: no bfloat16 products in this processor"


def gemm_size(device: str, quick: bool) -> int:
    """Return the size of the square matrices whose product measures the machine's peak; large enough to reach it."""
    return 64 if quick else 8192 if device == "cuda" else 2048


class _Process:
    """A process for one job, which has only imported the libraries."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        # The FLOP counter imports torch._dynamo, which takes a second per process. The import might initialize a GPU,
        # which a process that is forked later could then not use.
        context.set_forkserver_preload(
            ["ascl.retrieval.train", *([] if torch.cuda.is_available() else ["torch._dynamo"])]
        )
        self.pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()

    def call(self, function: Callable, *arguments: Any) -> Any:
        try:
            return self.pool.submit(function, *arguments).result()
        except (BrokenProcessPool, torch.cuda.OutOfMemoryError):
            raise DataError("not enough memory, or the process was killed: give fewer images or texts, or less "
                            "--seconds") from None


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Call the function in a new process, where nothing else has used memory, and return its result."""
    with _Process() as process:
        return process.call(function, *arguments)


def in_turn(jobs: list[Job], repeats: int, seconds: float) -> list[Measurement]:
    """Measure each method in its own process, one repeat of each in turn, so that a temporary slowdown affects all.

    If the inputs of all methods together would fill the memory, one method runs after the other.

    Args:
        repeats: of each method, at most.
        seconds: time limit for the repeats of one method; the first repeat always runs.
    """
    free = free_memory(torch.device("cpu"))
    inputs = sum(4 * job.embed_dim * (job.images * job.regions + job.texts * LONGEST) for job in jobs)
    if inputs > SHARE_OF_MEMORY * free:
        return [of_one for job in jobs for of_one in _rounds([job], repeats, seconds)]
    return _rounds(jobs, repeats, seconds)


def _rounds(jobs: list[Job], repeats: int, seconds: float) -> list[Measurement]:
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process()) for _ in jobs]
        started: list[Started] = []
        for job, process in zip(jobs, processes, strict=True):
            print(f"preparing: {job.what}, {job.label}", file=sys.stderr)
            started.append(process.call(scoring_job.start, job))
        done: list[list[Repeat]] = [[] for _ in jobs]
        for number_ in range(1, repeats + 1):
            for job, process, of_job in zip(jobs, processes, done, strict=True):
                spent = [repeat.seconds for repeat in of_job]
                if not spent or (len(spent) == number_ - 1 and sum(spent) + spent[-1] <= seconds):
                    of_job.append(process.call(scoring_job.repeat))
                    print(f"round {number_}: {job.what}, {job.label}: {of_job[-1].seconds:.3g} s", file=sys.stderr)
        finished = [process.call(scoring_job.finish) for process in processes]
    return [Measurement(*of_job) for of_job in zip(jobs, started, done, finished, strict=True)]


def ratio(fast: Measurement, slow: Measurement) -> tuple[float, str]:
    """Return how many times faster, by medians and for all images of the job, and the range over rounds as text."""
    by_round = [b.seconds * slow.scaled / (a.seconds * fast.scaled)
                for a, b in zip(fast.repeats, slow.repeats, strict=False)]
    factor = slow.seconds * slow.scaled / (fast.seconds * fast.scaled)
    return factor, f"{number(min(by_round))} to {number(max(by_round))} times, rounds: {len(by_round)}"


def number(value: float) -> str:
    """Return a number with three significant digits; an exponent replaces many zeros."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def what_ran(program: str, arguments: list[str], device: str) -> tuple[str, str, str, str, str]:
    """Return command, hardware, commit, versions and date, for every row of a run."""
    return (results.command(program, arguments), results.hardware(torch.device(device)), code_version(),
            results.versions(), results.today())
