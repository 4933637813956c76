"""From images on disk to rows of an index: decode and describe them, and report those that cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.images.loader import Decoder
from ascl.index.store import Images

CONFIRMED_TOGETHER = 1024   # images, or
CONFIRMED_SECONDS = 5.0     # seconds after which they are confirmed: the work that a kill can cost
SMALLEST_SIDE = 16          # pixels of the short side; smaller images show too little to be distinguished


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    path: str
    reason: str


@dataclass(frozen=True)
class ReadOptions:
    """How images are read and described."""

    batch_size: int = 32  # images per forward pass
    workers: int = 0  # decoding processes; 0 = decode in this process
    skip_unreadable: bool = False  # skip images that cannot be read or are too small, instead of stopping
    progress: Callable[[int], Any] = lambda count: None  # gets the number of images processed since the last call
    together: int = CONFIRMED_TOGETHER  # images that are searched, or added and confirmed, at a time
    seconds: float = CONFIRMED_SECONDS  # ... or fewer, as many as were described in this time


def described_images(describer: ImageDescriber, paths: Sequence[Path], options: ReadOptions,
                     skipped: list[Skipped]) -> Iterator[Images]:
    """Yield the rows of images in order, in parts of `options.together` or `options.seconds`.

    Images that cannot be used are added to `skipped`.

    Raises DataError if an image cannot be used and `options` do not skip it, or if a descriptor is not finite.
    """
    decoder = Decoder(paths, range(len(paths)), describer.prepare, options.workers)
    taken = 0
    while taken < len(paths):
        used, vectors, norms = list[Path](), list[np.ndarray](), list[np.ndarray]()
        began, left = time.monotonic(), min(options.together, len(paths) - taken)
        while left:
            count = min(options.batch_size, left)
            taken, left = taken + count, left - count
            usable = list(_usable(decoder, count, paths, options, skipped))
            if usable:
                unit, lengths = describer([pixels for _, pixels in usable])
                vectors.append(unit)
                norms.append(np.full(len(unit), np.nan, np.float32) if lengths is None else lengths)
                used += [path for path, _ in usable]
            if time.monotonic() - began > options.seconds:
                break
        if used:
            made = Images([path.stem for path in used], list(map(str, used)), np.stack(list(map(digest_of, used))),
                          np.array([path.stat().st_size for path in used]), np.concatenate(vectors),
                          np.concatenate(norms))
            made.check_usable()
            yield made


def _usable(decoder: Decoder, count: int, paths: Sequence[Path], options: ReadOptions,
            skipped: list[Skipped]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield (path, pixels) of those of the next `count` images that can be used."""
    for _ in range(count):
        decoded = decoder.take()
        path, reason = paths[decoded.index], decoded.reason
        options.progress(1)
        if decoded.pixels is not None:
            width, height = decoded.size
            if min(width, height) >= SMALLEST_SIDE:
                yield path, decoded.pixels
                continue
            reason = f"too small, {width} x {height} pixels; at least {SMALLEST_SIDE} are needed on each side"
        if not options.skip_unreadable:
            raise DataError(f"{path}: cannot be used ({reason}); repair or remove it, or skip unreadable images")
        skipped.append(Skipped(str(path), reason))


def digest_of(path: Path) -> np.ndarray:
    """Return (32,) uint8, the SHA-256 of a file."""
    return np.frombuffer(bytes.fromhex(sha256_of(path)), np.uint8)
