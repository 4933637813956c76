"""Measure search among many image descriptors, exact, compressed and by brute force in torch, and the index's rates.

  python benchmarks/bench_copy_search.py                   50,000 queries, 1,000,000 references of 64 and 256 numbers
  python benchmarks/bench_copy_search.py --references 100000 --queries 5000 --dim 64
  python benchmarks/bench_copy_search.py --singles 1000    only adding one by one, to 100,000 references of 512 numbers
  python benchmarks/bench_copy_search.py --quick           tiny sizes, to test the program; not a measurement

The index is built like that of tools/find_copies.py, from generated unit vectors. References lie around centers. Half
of the queries are references with noise (copies), half lie around the same centers (not copies). Each method then
searches in its own process: FAISS over all rows, the compressed index with exact rescoring, and torch as the reference,
with products in blocks and `topk`. Adding one by one takes turns with the least that the disk asks for: a row that
SQLite commits and a vector that is flushed. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import numpy as np
import torch
from bench_convert import memory_of
from measuring import MIB, number

from ascl.core.errors import DataError
from ascl.image_copy.matching.describe import CONFIRMED_TOGETHER
from ascl.index.search import import_faiss, recall_of
from ascl.index.store import CopyIndex, Images

K = 10
CENTERS_SHARE = 100         # references per center
SPREAD, NOISE = 0.8, 0.4    # of a row around its center and of a copy around its reference, relative to their length
SINGLE = 100                # images that are added, and removed, one by one
TORCH_REFERENCES = 2**16    # in a block of torch's products
TORCH_QUERIES = 2**10
SAMPLED_EVERY = 0.02        # seconds between samples of the memory
SAME = 0.999                # share of best references on which exact search and torch must agree
WAYS = ("exact", "compressed", "torch")
IN_MEMORY = Path("/dev/shm")    # where flushing costs nothing, on Linux


@dataclass(frozen=True)
class Searched:
    """One search method: its seconds, its peak memory above the start, and the rows it found."""

    seconds: float
    memory: int
    found: np.ndarray


@dataclass(frozen=True)
class Built:
    """The building of an index: rates in images per second, seconds of single changes and of compression, and bytes."""

    added: float
    added_singly: list[float]
    removed_singly: list[float]
    removed_at_once: float
    compressing: float
    folder: int
    compressed: int
    about: dict


@dataclass(frozen=True)
class Singly:
    """Seconds of each single addition, and of what they take turns with: a committed row and a flushed vector."""

    added: list[float]
    reference: list[float]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--references", type=int, help="(default: 1,000,000; with --singles 100,000)")
    result.add_argument("--queries", type=int, default=50_000, help="(default: %(default)s)")
    result.add_argument("--dim", type=int, action="append", help="of a descriptor; repeatable (default: 64 and "
                        "256; with --singles 512)")
    result.add_argument("--singles", type=int, metavar="N", help="only add N images one by one")
    result.add_argument("--way", action="append", choices=WAYS, help="repeatable (default: all)")
    result.add_argument("--scratch", metavar="FOLDER", help="folder for the index (default: a temporary folder)")
    result.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")
    return result


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def centers(references: int, dim: int) -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((max(4, references // CENTERS_SHARE), dim), np.float32))


def around(of: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Return unit rows around given unit rows; the noise has `spread` times their length."""
    return unit(of + spread / np.sqrt(of.shape[1]) * rng.standard_normal(of.shape, np.float32)).astype(np.float32)


def references_of(count: int, dim: int) -> Iterator[np.ndarray]:
    """Yield the references in parts, each as large as the program commits at once."""
    middles, rng = centers(count, dim), np.random.default_rng(1)
    for first in range(0, count, CONFIRMED_TOGETHER):
        rows = min(CONFIRMED_TOGETHER, count - first)
        yield around(middles[rng.integers(0, len(middles), rows)], SPREAD, rng)


def queries_of(index: CopyIndex, references: int, count: int) -> np.ndarray:
    """Return queries: half are copies of references, half are not."""
    rng = np.random.default_rng(2)
    middles = centers(references, index.state.dimension)
    copied = index.rows.vectors[np.sort(rng.choice(references, count // 2, replace=count // 2 > references))]
    others = middles[rng.integers(0, len(middles), count - count // 2)]
    return np.concatenate([around(copied, NOISE, rng), around(others, SPREAD, rng)])


def rows_of(vectors: np.ndarray, first: int, prefix: str = "image") -> Images:
    names = [f"{prefix}_{first + row:09d}" for row in range(len(vectors))]
    digests = np.random.default_rng(first).integers(0, 256, (len(vectors), 32), dtype=np.uint8)
    norms = np.ones(len(vectors), np.float32)
    return Images(names, [f"photos/{name}.jpg" for name in names], digests, np.ones(len(vectors), int), vectors, norms)


def timed(function: Callable, argument: Any) -> float:
    started = time.perf_counter()
    function(argument)
    return time.perf_counter() - started


def build(folder: Path, references: int, dim: int, exact_up_to: int) -> Built:
    """Build the index; images that are added one by one are removed again."""
    model = {"name": "generated", "settings": {}, "choice": {}, "has_norms": False}
    index = CopyIndex.create(folder, model, metric="ip", dimension=dim, exact_up_to=exact_up_to)
    adding, done = 0.0, 0
    for vectors in references_of(references, dim):
        rows = rows_of(vectors, done)
        started = time.perf_counter()
        index.add(rows)
        adding += time.perf_counter() - started
        done += len(vectors)
    extra = next(references_of(3 * SINGLE, dim))
    added_singly = [timed(index.add, rows_of(extra[row : row + 1], row, "single")) for row in range(SINGLE)]
    removed_singly = [timed(index.remove, [f"single_{row:09d}"]) for row in range(SINGLE)]
    many = rows_of(extra[: 2 * SINGLE], 0, "many")
    index.add(many)
    started = time.perf_counter()
    index.remove(many.ids)
    removed_at_once = len(many.ids) / (time.perf_counter() - started)
    started = time.perf_counter()
    if not index.compress_if_due():
        raise DataError(f"{references:,} references are too few to compress: give at least 1,000")
    compressing = time.perf_counter() - started
    about = index.state.compressed or {}
    sizes = {path.name: path.stat().st_size for path in index.files()}
    return Built(references / adding, added_singly, removed_singly, removed_at_once, compressing,
                 sum(sizes.values()), sizes[about["file"]], about)


def add_singly(folder: Path, references: int, dim: int, count: int) -> Singly:
    """Add images one by one to an index of `references`; each addition is on the disk before the next."""
    model = {"name": "generated", "settings": {}, "choice": {}, "has_norms": False}
    index = CopyIndex.create(folder / "index", model, metric="ip", dimension=dim, exact_up_to=references + count)
    done = 0
    for vectors in references_of(references, dim):
        index.add(rows_of(vectors, done))
        done += len(vectors)
    vectors = around(centers(count, dim)[:1].repeat(count, 0), SPREAD, np.random.default_rng(3))
    database = sqlite3.connect(folder / "reference.sqlite", isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "CREATE TABLE rows (text)"):
        database.execute(statement)
    added, reference = [], []
    with open(folder / "reference.bin", "wb") as file:
        for row in range(count):
            image = rows_of(vectors[row : row + 1], row, "single")
            added.append(timed(index.add, image))
            started = time.perf_counter()
            file.write(vectors[row].tobytes())
            file.flush()
            os.fsync(file.fileno())
            database.execute("INSERT INTO rows VALUES (?)", [image.paths[0] * 5])   # a record has about 200 bytes
            reference.append(time.perf_counter() - started)
    return Singly(added, reference)


def singles_figures(what: str, disk: Singly, memory: Singly | None) -> list[tuple[str, str, str, str]]:
    """Return name, value, unit and note of each row."""
    count = len(disk.added)
    spread = f"each on disk before the next; {count:,} calls in a row, {1000 * median(disk.added):.3g} ms each " \
             f"(median; the first 100 {100 / sum(disk.added[:100]):.0f}/s, the last 100 " \
             f"{100 / sum(disk.added[-100:]):.0f}/s)"
    turns = "takes turns with the additions: one row of 200 bytes committed by SQLite (WAL, synchronous FULL) and " \
            f"one vector flushed to a file; {1000 * median(disk.reference):.3g} ms (median)"
    lines = [
        (f"{what}: rate", number(count / sum(disk.added)), "images/s", spread),
        (f"{what}: a bare commit and flush", number(count / sum(disk.reference)), "commits/s", turns),
        (f"{what}: time relative to a bare commit and flush", number(sum(disk.added) / sum(disk.reference)), "times",
         turns),
    ]
    if memory is not None:
        lines.append((f"{what}: rate where flushing costs nothing", number(count / sum(memory.added)), "images/s",
                      f"the same in {IN_MEMORY}: what the program itself takes, checksums included"))
    return lines


def measure_singles(options: argparse.Namespace, dim: int, folder: Path) -> list[tuple[str, str, str, str]]:
    references, count = (200, 20) if options.quick else (options.references or 100_000, options.singles)
    disk = measuring.in_own_process(add_singly, folder, references, dim, count)
    memory = None
    if IN_MEMORY.is_dir():
        with tempfile.TemporaryDirectory(dir=IN_MEMORY, prefix="bench_copy_search") as there:
            memory = measuring.in_own_process(add_singly, Path(there), references, dim, count)
    return singles_figures(f"adding {count:,} images one by one to {references:,} of {dim} numbers", disk, memory)


def searched(folder: Path, way: str, references: int, queries: int) -> Searched:
    """Search in this process, which must not have done anything else."""
    index = CopyIndex(folder)
    asked = queries_of(index, references, queries)
    index.search(asked[:2], K)      # starts threads and loads libraries
    start = memory_of_own()
    peak, ended = [start], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLED_EVERY):
            peak.append(memory_of_own())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        started = time.perf_counter()
        if way == "torch":
            vectors = torch.from_numpy(index.rows.vectors[:references].copy())
            started = time.perf_counter()   # start again: the rows are in memory now
            found = brute_force(torch.from_numpy(asked), vectors).numpy()
        else:
            found = index.search(asked, K, exact=way == "exact")[0]
        seconds = time.perf_counter() - started
    finally:
        ended.set()
        thread.join()
    return Searched(seconds, max(peak) - start, found)


def memory_of_own() -> int:
    """Return this process's memory in bytes, without file pages, which the system can reclaim."""
    return memory_of(os.getpid()).get("RssAnon", 0)


def brute_force(queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Return the rows (Q, K) with the largest inner products, from blocks of the full matrix."""
    found = []
    for block in queries.split(TORCH_QUERIES):
        best, rows = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for first in range(0, len(references), TORCH_REFERENCES):
            part = references[first : first + TORCH_REFERENCES]
            top = (block @ part.T).topk(min(K, len(part)), dim=1)
            best, rows = torch.cat([best, top.values], dim=1), torch.cat([rows, top.indices + first], dim=1)
            best, order = best.topk(min(K, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        found.append(rows)
    return torch.cat(found)


def figures(
    what: str, queries: int, built: Built, ways: dict[str, Searched]
) -> list[tuple[str, str, str, str]]:
    """Return name, value, unit and note of each row."""
    about = built.about
    of_compressed = f"{about['factory']}, {about['probes']} lists probed, candidates scored again exactly"
    notes = {"exact": f"FAISS {about['faiss']} over memory-mapped rows, best {K} scored again in float64",
             "compressed": of_compressed,
             "torch": f"products of {TORCH_QUERIES} x {TORCH_REFERENCES}, topk; rows in memory before the clock starts"}
    made = "generated vectors around centers; half of the queries copies with noise"
    lines = []
    for way, one in ways.items():
        note = f"{notes[way]}; {made}; one run in its own process; memory: largest RssAnon above its start, sampled " \
               f"every {SAMPLED_EVERY * 1000:.0f} ms"
        lines += [
            (f"{what}, {way}: time", number(one.seconds), "s", note),
            (f"{what}, {way}: rate", number(queries / one.seconds), "queries/s", note),
            (f"{what}, {way}: own memory", number(one.memory / MIB), "MiB", note),
        ]
        if way != "torch" and "torch" in ways:
            lines.append((f"{what}, {way}: times faster than torch", number(ways["torch"].seconds / one.seconds),
                          "times", note))
    if "compressed" in ways and ("exact" in ways or "torch" in ways):
        wanted = (ways.get("exact") or ways["torch"]).found
        half = queries // 2
        for name, part in (("copies", slice(0, half)), ("no copies", slice(half, queries))):
            at_one, at_ten = recall_of(ways["compressed"].found[part], wanted[part])
            lines += [(f"{what}, compressed: recall@{at} against exact, {name}", f"{value:.4f}", "share",
                       f"{of_compressed}; {made}") for at, value in ((1, at_one), (10, at_ten))]
    parts = f"parts of {CONFIRMED_TOGETHER:,}, each on disk before the next; vectors were computed before"
    compressed = f"{of_compressed}; recall on its own images @1 {about['recall_at_1']:.3f}, " \
                 f"@10 {about['recall_at_10']:.3f}"
    return lines + [
        (f"{what}, index: adding in parts", number(built.added), "images/s", parts),
        (f"{what}, index: adding one by one", number(1 / median(built.added_singly)), "images/s",
         single(built.added_singly)),
        (f"{what}, index: removing one by one", number(1 / median(built.removed_singly)), "images/s",
         single(built.removed_singly)),
        (f"{what}, index: removing {2 * SINGLE} at once", number(built.removed_at_once), "images/s", "by id"),
        (f"{what}, index: compressing", number(built.compressing), "s", compressed),
        (f"{what}, index: files", number(built.folder / MIB), "MiB", "vectors, ids, norms, digests, compressed index"),
        (f"{what}, index: compressed part", number(built.compressed / MIB), "MiB", compressed),
    ]


def single(seconds: list[float]) -> str:
    return f"each on disk before the next, which takes most of the time; median of {len(seconds)} " \
           f"({1000 * min(seconds):.3g} to {1000 * max(seconds):.3g} ms)"


def measure(options: argparse.Namespace, dim: int, folder: Path) -> list[tuple[str, str, str, str]]:
    """Return all rows of one dimension.

    Raises:
        DataError: exact search and torch found different references.
    """
    references, queries = (2000, 60) if options.quick else (options.references or 1_000_000, options.queries)
    print(f"{dim} numbers: building the index", file=sys.stderr)
    built = measuring.in_own_process(build, folder, references, dim, 0)
    ways = {}
    for way in WAYS:
        if way in (options.way or WAYS):
            ways[way] = measuring.in_own_process(searched, folder, way, references, queries)
            print(f"{dim} numbers: {way} {ways[way].seconds:.3g} s", file=sys.stderr)
    if "exact" in ways and "torch" in ways:
        shared = recall_of(ways["exact"].found, ways["torch"].found)[0]
        if shared < SAME:
            raise DataError(f"exact search and torch agree on {shared:.2%} of the best references only, so they cannot "
                            "be compared: run tests/index/test_store.py, which should fail too")
    what = f"search of {queries:,} queries in {references:,} references of {dim} numbers, best {K}"
    return figures(what, queries, built, ways)


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        for name in ("references", "queries", "dim", "singles"):
            value = getattr(options, name)
            if value is not None and min(value if isinstance(value, list) else [value]) < 2:
                raise DataError(f"--{name} {value}: must be at least 2")
        if not options.singles and import_faiss() is None:
            raise DataError("the comparison needs FAISS: pip install faiss-cpu")
        measuring.check_results(options)
        ran = measuring.what_ran(__file__, arguments, "cpu")
        lines = []
        for dim in options.dim or ([16] if options.quick else [512] if options.singles else [64, 256]):
            with tempfile.TemporaryDirectory(dir=options.scratch, prefix="bench_copy_search") as folder:
                lines += measure_singles(options, dim, Path(folder)) if options.singles else \
                    measure(options, dim, Path(folder) / "index")
        print("| | |", "|---|--:|", *(f"| {name} ({unit}) | {value} |" for name, value, unit, _ in lines), sep="\n")
        print("", *(f"- {note}" for note in dict.fromkeys(line[3] for line in lines)), sep="\n")
        measuring.keep(options, ran, lines)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
