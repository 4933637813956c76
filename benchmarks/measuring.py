"""What the programs that measure scores share: options, processes that take turns, numbers as they are printed."""

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
FEWEST = 3                      # repeats of a pairwise way that its time should allow
SHARE_OF_MEMORY = 0.3           # that the inputs of all ways may take together; else one way after the other
LONGEST = 64                    # words of a text in that estimate
Figure = tuple[str, str, str, str]      # what, value, unit, note
QUICK_WARNING = "QUICK: tiny sizes, a check of the program and no measurement; "


@dataclass(frozen=True)
class Measurement:
    """One way: what it is, its repeats in the order of the rounds, and what was known afterwards."""

    job: Job
    started: Started
    repeats: list[Repeat]
    finished: Finished

    @property
    def seconds(self) -> float:
        """Median time of one run with the images that it took."""
        return median(repeat.seconds for repeat in self.repeats)

    @property
    def scaled(self) -> float:
        """Images of the job for each image that ran."""
        return self.job.images / self.started.images

    @property
    def peak(self) -> float:
        """FLOP/s of square matrix products beside the repeats: median."""
        return median(repeat.peak for repeat in self.repeats)

    def spread(self) -> str:
        """For a note."""
        seconds, peaks = [r.seconds for r in self.repeats], [r.peak / 1e9 for r in self.repeats]
        text = f"{self.job.label}: median of {len(seconds)} ({min(seconds):.3g} to {max(seconds):.3g} s); matrix " \
               f"products beside it {number(min(peaks))} to {number(max(peaks))} GFLOP/s"
        if self.scaled > 1:
            text += f"; SCALED from {self.started.images} of {self.job.images} images, more did not fit in time or " \
                    "memory"
        return text


def add_options(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """What every program takes."""
    parser.add_argument("--regions", type=int, help="of an image (default: 36)")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds,
                        help="for the repeats of one way; the pairwise way takes as many images as let it have "
                             f"{FEWEST} of them (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--captions", metavar="FILE", help=f"for the lengths of texts (default: {CAPTIONS.name} of "
                        "the folder `shared` beside the repository; generated lengths where that is absent)")
    parser.add_argument("--split", help="of the captions (default: from the name of FILE, else test)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    parser.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")


def check_options(options: argparse.Namespace, *names: str) -> None:
    """Say now what is wrong, not after the measurement.

    Args:
        names: of options that are counts, beside those of `add_options`.

    Raises:
        DataError: a number below 1, captions or results that cannot be read.
    """
    for name in (*names, "regions", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"--{name} {value}: has to be at least 1")
    scoring_job.text_lengths(*captions(options), count=1)
    target = results_file(options)
    if target is not None:
        results.read(target)


def results_file(options: argparse.Namespace) -> str | Path | None:
    """Where rows go; a quick run is none that anybody should quote."""
    return options.results or (None if options.quick else results.RESULTS)


def check_results(options: argparse.Namespace) -> None:
    """Before anything is measured, and not after it.

    Raises:
        DataError: the file of results cannot be read.
    """
    target = results_file(options)
    if target is not None:
        results.read(target)


def keep(options: argparse.Namespace, ran: tuple[str, str, str, str, str], figures: Sequence[Figure]) -> None:
    """Add a run's figures to the file of results, where they are to be kept, and say so."""
    target = results_file(options)
    if target is None:
        return
    warning = QUICK_WARNING if options.quick else ""
    results.append(target, [results.Row(*figure[:3], *ran, warning + figure[3]) for figure in figures])
    print(f"\nadded to {target}")


def captions(options: argparse.Namespace) -> tuple[str | None, str]:
    """File and split of the captions that texts have their lengths from; no file where lengths are generated."""
    path = options.captions or (str(CAPTIONS) if CAPTIONS.exists() else None)
    name = Path(path or "").name.removesuffix(".gz")
    return path, options.split or (name.removesuffix("_caps.txt") if name.endswith("_caps.txt") else "test")


def shape_of(text: str) -> tuple[int, int]:
    """D and H of "D,H"."""
    try:
        embed_dim, heads = map(int, text.split(","))
    except ValueError:
        raise DataError(f"--shape {text}: expected D,H such as 1024,8") from None
    if heads < 1 or embed_dim < 1 or embed_dim % heads:
        raise DataError(f"--shape {text}: H has to divide D")
    return embed_dim, heads


def device_of(options: argparse.Namespace) -> str:
    """"cpu" or "cuda"; also says on what, and with what, the measurement will run."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: torch finds no GPU here; give --device cpu")
    print(f"{results.hardware(torch.device(device))}; {torch.get_num_threads()} threads; {results.versions()}; "
          f"commit {code_version()}", file=sys.stderr)
    return device


def low_precision(device: str) -> str | None:
    """Why bfloat16 is not worth measuring there; None = it is."""
    if device == "cuda":
        return None
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return "open: cannot tell whether this processor has bfloat16 products"
    words = set(cpuinfo.read_text(encoding="utf-8").split())
    return None if words & {"avx512_bf16", "amx_bf16", "bf16"} else "open: no bfloat16 products in this processor"


def gemm_size(device: str, quick: bool) -> int:
    """Rows of the square matrices whose product is the peak: large enough to reach it."""
    return 64 if quick else 8192 if device == "cuda" else 2048


class _Process:
    """A process that has imported the libraries and done nothing else; used for one job."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        # The counter of FLOP imports torch._dynamo, a second in each process. Nothing promises that this import leaves
        # a GPU alone, which a process that is forked later could then not use.
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
            raise DataError("not enough memory, or the process was killed: fewer images or texts, or less --seconds") \
                from None


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """What the function returns, called where nothing else has used memory."""
    with _Process() as process:
        return process.call(function, *arguments)


def in_turn(jobs: list[Job], repeats: int, seconds: float) -> list[Measurement]:
    """Each way in a process of its own, one repeat of each at a time, so that a slow minute of the machine is shared.

    Where the inputs of all together would fill the memory, one way after the other.

    Args:
        repeats: of each way, at most.
        seconds: for the repeats of one way: none is started that would end later; the first one always runs.
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
    """How many times faster, by medians and for all images of the job, and the range over rounds for a note."""
    by_round = [b.seconds * slow.scaled / (a.seconds * fast.scaled)
                for a, b in zip(fast.repeats, slow.repeats, strict=False)]
    factor = slow.seconds * slow.scaled / (fast.seconds * fast.scaled)
    return factor, f"{number(min(by_round))} to {number(max(by_round))} times, rounds: {len(by_round)}"


def number(value: float) -> str:
    """Three digits that count; an exponent only where there would be many zeros."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def what_ran(program: str, arguments: list[str], device: str) -> tuple[str, str, str, str, str]:
    """Command, hardware, commit, versions and date of every row of a run."""
    return (results.command(program, arguments), results.hardware(torch.device(device)), code_version(),
            results.versions(), results.today())
