"""Measure speed and memory of converting features to HDF5, and compare with a plain copy of the same file.

  python benchmarks/bench_convert.py --format npy      5 GiB of SCAN's .npy; adds rows to benchmarks/results.csv
  python benchmarks/bench_convert.py --format tsv      5 GiB of bottom-up attention's TSV
  python benchmarks/bench_convert.py --quick           tiny sizes, to test the program; not a measurement

The file is generated in --scratch, which needs space for two such files and is cleaned up at the end. Before each round
the file is dropped from the page cache. Conversion and copy alternate, and both wait until their output is on disk. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import measuring
import numpy as np
import results
from measuring import MIB, number

from ascl.core.errors import DataError

REGIONS, DIM = 36, 2048
DISTINCT = 64                   # images drawn at random; later ones are copies, shifted by their number
SAMPLED_EVERY = 0.02            # seconds between samples of the converting process's memory
NAMES = {"npy": "SCAN's .npy", "tsv": "bottom-up attention's TSV"}
CONVERT = results.REPOSITORY / "tools" / "convert_features.py"


@dataclass(frozen=True)
class Round:
    """One conversion and one copy."""

    seconds: float
    copy_seconds: float
    peak: int                   # bytes: the process's peak memory, as counted by the system
    anonymous: int              # bytes: largest sample without file pages, which the system can reclaim


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--format", choices=list(NAMES), default="npy", help="of the source (default: %(default)s)")
    result.add_argument("--gib", type=float, default=5.0, help="size of the generated file (default: %(default)s)")
    result.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the HDF5")
    result.add_argument("--repeats", type=int, default=3, help="report the median of these (default: %(default)s)")
    result.add_argument("--scratch", metavar="FOLDER", help="folder for the files (default: a temporary folder)")
    result.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="instead of benchmarks/results.csv")
    return result


def images(count: int, regions: int, dim: int) -> Iterator[np.ndarray]:
    """Yield the regions (K, R) float32 of each image, all different."""
    drawn = np.random.default_rng(0).random((DISTINCT, regions, dim), dtype=np.float32)
    for number_ in range(count):
        yield drawn[number_ % DISTINCT] + np.float32(number_)


def generate(path: Path, kind: str, count: int, regions: int, dim: int) -> None:
    """Write a source file image by image and flush it to disk."""
    corners = np.sort(np.random.default_rng(1).random((regions, 2, 2), dtype=np.float32), axis=1)
    boxes = base64.b64encode(corners.tobytes())
    with open(path, "wb") as file:
        if kind == "npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, regions, dim)}
            np.lib.format.write_array_header_1_0(file, header)
        for number_, image in enumerate(images(count, regions, dim)):
            if kind == "npy":
                file.write(image.tobytes())
            else:
                features = base64.b64encode(image.tobytes())
                file.write(b"%d\t640\t480\t%d\t%b\t%b\r\n" % (number_, regions, boxes, features))
        file.flush()
        os.fsync(file.fileno())


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache; its pages have to be clean."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path) -> float:
    """Return the seconds of a plain copy."""
    drop_from_cache(source)
    started = time.perf_counter()
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def convert(source: Path, target: Path, dtype: str) -> tuple[float, int, int]:
    """Return the seconds of the conversion command, and its peak memory and peak anonymous memory in bytes.

    Raises:
        DataError: the command failed.
    """
    drop_from_cache(source)
    command = [sys.executable, str(CONVERT), str(source), "--out", str(target), "--dtype", dtype]
    started = time.perf_counter()
    log = target.with_name("log")  # not a pipe, which a long progress bar fills
    with open(log, "w", encoding="utf-8") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
    peak = anonymous = 0
    while process.poll() is None:
        memory = memory_of(process.pid)
        peak, anonymous = max(peak, memory.get("VmHWM", 0)), max(anonymous, memory.get("RssAnon", 0))
        time.sleep(SAMPLED_EVERY)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise DataError(f"the conversion failed: {log.read_text(encoding='utf-8')[-1000:]}")
    target.unlink()
    for kept in source.parent.glob(f".{source.name}.index.npz"):
        kept.unlink()           # each round indexes the TSV again
    return seconds, peak, anonymous


def memory_of(process: int) -> dict[str, int]:
    """Return `VmHWM` (peak so far) and `RssAnon` (current, without file pages) in bytes; {} after the process ended.

    `ru_maxrss` would not do: it starts at the calling process's memory at the fork.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in fields}


def measure(options: argparse.Namespace, folder: Path) -> tuple[Path, int, list[Round]]:
    """Return the source file, its number of images, and the rounds."""
    regions, dim = (4, 16) if options.quick else (REGIONS, DIM)
    bytes_ = regions * dim * 4 * (4 / 3 if options.format == "tsv" else 1)
    count = 2 * DISTINCT if options.quick else int(np.ceil(options.gib * 2**30 / bytes_))
    source = folder / ("generated_ims.npy" if options.format == "npy" else "generated.tsv")
    print(f"generating {source}: {count:,} images", file=sys.stderr)
    generate(source, options.format, count, regions, dim)
    rounds = []
    for number_ in range(1, options.repeats + 1):
        copied = copy(source, folder / "copy")
        seconds, peak, anonymous = convert(source, folder / "converted.h5", options.dtype)
        rounds.append(Round(seconds, copied, peak, anonymous))
        print(f"round {number_}: conversion {rounds[-1].seconds:.3g} s, copy {copied:.3g} s", file=sys.stderr)
    return source, count, rounds


def figures(options: argparse.Namespace, size: int, count: int, rounds: list[Round]) -> list[tuple[str, str, str]]:
    """Return name, value and unit of each row."""
    seconds, copied = (median(getattr(one, name) for one in rounds) for name in ("seconds", "copy_seconds"))
    what = f"{NAMES[options.format]} of {size / 2**30:.2f} GiB, {count:,} images, to HDF5 in {options.dtype}"
    return [
        (f"{what}: rate", number(count / seconds), "images/s"),
        (f"{what}: time", number(seconds), "s"),
        (f"{what}: time against a plain copy of the file", number(seconds / copied), "times the copy"),
        (f"{what}: peak memory", number(max(one.peak for one in rounds) / MIB), "MiB"),
        (f"{what}: peak memory without pages of files", number(max(one.anonymous for one in rounds) / MIB), "MiB"),
    ]


def note(rounds: list[Round]) -> str:
    seconds, copies = [one.seconds for one in rounds], [one.copy_seconds for one in rounds]
    return (f"whole command: start, pass for the index of a TSV, writing, fsync, reading a sample again; median of "
            f"{len(rounds)} ({min(seconds):.3g} to {max(seconds):.3g} s), copy with fsync in turn {min(copies):.3g} to "
            f"{max(copies):.3g} s; source dropped from the cache before each; peak memory is VmHWM, the other the "
            f"largest RssAnon, sampled every {SAMPLED_EVERY * 1000:.0f} ms")


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.repeats < 1 or options.gib <= 0:
            raise DataError("--repeats must be at least 1 and --gib above 0")
        measuring.check_results(options)
        if not sys.platform.startswith("linux"):
            raise DataError("memory without file pages can be measured on Linux only")
        ran = measuring.what_ran(__file__, arguments, "cpu")
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="bench_convert") as folder:
            source, count, rounds = measure(options, Path(folder))
            lines = figures(options, source.stat().st_size, count, rounds)
        print("| | |", "|---|--:|", *(f"| {name} ({unit}) | {value} |" for name, value, unit in lines), sep="\n")
        print(f"\n- {note(rounds)}")
        measuring.keep(options, ran, [(*line, note(rounds)) for line in lines])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
