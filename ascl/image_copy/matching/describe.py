"""From images on disk to rows of an index: decode and describe them, and report those that cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.core.reading import shown
from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.images.find import ImageFile, Skipped
from ascl.images.loader import Decoder
from ascl.images.read import UnreadableImage
from ascl.index.store import Images

CONFIRMED_TOGETHER = 1024   # images, or
CONFIRMED_SECONDS = 5.0     # seconds after which they are confirmed: the work that a kill can cost
BLANK = "blank: nothing to compare"
SMALLEST_SIDE = 16          # pixels of the short side; smaller images show too little to be distinguished


@dataclass(frozen=True)
class ReadOptions:
    """How images are read and described."""

    batch_size: int = 32  # images per forward pass
    workers: int = 0  # decoding processes; 0 = decode in this process
    strict: bool = False  # stop at the first image that cannot be read, instead of skipping it
    progress: Callable[[int], Any] = lambda count: None  # gets the number of images processed since the last call
    together: int = CONFIRMED_TOGETHER  # images that are searched, or added and confirmed, at a time
    seconds: float = CONFIRMED_SECONDS  # ... or fewer, as many as were described in this time
    nearly_blank: list[str] = field(default_factory=list)  # gets the files that show too little for a yes or no
    animated: list[str] = field(default_factory=list)  # gets the files with several frames: only the first counts


def described_images(describer: ImageDescriber, images: Sequence[ImageFile], options: ReadOptions,
                     skipped: list[Skipped]) -> Iterator[Images]:
    """Yield the rows of images in order, in parts of `options.together` or `options.seconds`.

    Images that cannot be used are added to `skipped`.

    Raises DataError if an image cannot be read and the options are strict, or if a descriptor is not finite.
    """
    decoder = Decoder([image.path for image in images], range(len(images)), describer.prepare, options.workers)
    taken = 0
    while taken < len(images):
        used, vectors, norms = list[ImageFile](), list[np.ndarray](), list[np.ndarray]()
        began, left = time.monotonic(), min(options.together, len(images) - taken)
        while left:
            count = min(options.batch_size, left)
            taken, left = taken + count, left - count
            usable = list(_usable(decoder, count, images, options, skipped))
            if usable:
                unit, lengths = describer([pixels for _, pixels in usable])
                vectors.append(unit)
                norms.append(np.full(len(unit), np.nan, np.float32) if lengths is None else lengths)
                used += [image for image, _ in usable]
            if time.monotonic() - began > options.seconds:
                break
        if used:
            made = Images([image.id for image in used], [str(image.path) for image in used],
                          np.stack([digest_of(image.path) for image in used]),
                          np.array([image.path.stat().st_size for image in used]), np.concatenate(vectors),
                          np.concatenate(norms))
            made.check_usable()
            yield made


def _usable(decoder: Decoder, count: int, images: Sequence[ImageFile], options: ReadOptions,
            skipped: list[Skipped]) -> Iterator[tuple[ImageFile, np.ndarray]]:
    """Yield (image, pixels) of those of the next `count` images that can be used."""
    for _ in range(count):
        decoded = decoder.take()
        image, reason = images[decoded.index], decoded.reason
        options.progress(1)
        if decoded.animated:
            options.animated.append(shown(image.path))
        if decoded.pixels is not None:
            width, height = decoded.size
            if min(width, height) >= SMALLEST_SIDE and decoded.blank != "blank":
                if decoded.blank:
                    options.nearly_blank.append(shown(image.path))
                yield image, decoded.pixels
                continue
            small = f"too small, {width} x {height} pixels; at least {SMALLEST_SIDE} are needed on each side"
            reason = BLANK if decoded.blank == "blank" else small
        elif options.strict:
            raise DataError(f"{UnreadableImage(image.path, reason)}; repair or remove it, or skip such images")
        skipped.append(Skipped(shown(image.path), reason, fault=decoded.pixels is None))


def digest_of(path: Path) -> np.ndarray:
    """Return (32,) uint8, the SHA-256 of a file."""
    return np.frombuffer(bytes.fromhex(sha256_of(path)), np.uint8)
