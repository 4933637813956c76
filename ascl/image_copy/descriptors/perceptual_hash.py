"""The perceptual hash pHash (64 bits), computed by imagehash, with the interface of a learned descriptor.

It is a baseline that says whether two whole pictures look the same. Crops and overlays defeat it, and it has no
direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ascl.core.errors import DataError
from ascl.images.rgb import TRANSPARENCY

BYTES = 8
HASH_DISTANCE = 6   # bits; on Flickr8k, recompressed and halved photos differ in at most 4, other photos in at least 8


def import_imagehash() -> Any:
    """Return the module imagehash; raise DataError if it is not installed."""
    try:
        import imagehash
    except ImportError as error:
        raise DataError("the hash needs imagehash: pip install 'ascl[copy]', or pip install imagehash") from error
    return imagehash


@dataclass(frozen=True)
class PreparedHash:
    """From an upright RGB image to (8,) uint8, the bits of `imagehash.phash` row by row; runs in the workers."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.packbits(import_imagehash().phash(image).hash.ravel())


class PerceptualHasher:
    """The `ImageDescriber` of the perceptual hash; `dim` is the number of bytes of a hash."""

    dim = BYTES
    orders_norms = False

    def __init__(self) -> None:
        version = import_imagehash().__version__
        self.model = f"phash-{8 * BYTES}bit (imagehash {version})"
        self.settings: dict[str, Any] = {"model": self.model, "kind": "phash", "bits": 8 * BYTES,
                                         "transparency": TRANSPARENCY}
        self.prepare = PreparedHash()

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return B hashes from `prepare` as (B, 8) uint8, and None because there are no norms."""
        return np.stack(pixels), None


def looks_the_same(one: Image.Image, other: Image.Image) -> bool:
    """Return whether two upright RGB images show the same, up to size, compression or slight brightness."""
    prepare = PreparedHash()
    return int(np.unpackbits(prepare(one) ^ prepare(other)).sum()) <= HASH_DISTANCE
