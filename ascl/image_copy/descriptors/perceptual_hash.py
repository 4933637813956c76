"""The perceptual hash pHash (64 bits), computed by imagehash, behind the same interface as a learned descriptor.

A baseline: it says whether two pictures look the same as a whole. Crops and overlays defeat it; it has no direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ascl.core.errors import DataError

BYTES = 8
HASH_DISTANCE = 6   # bits; on Flickr8k recompressed and halved photos differ in at most 4, different ones in at least 8


def import_imagehash() -> Any:
    """Return the module; DataError: it is not installed."""
    try:
        import imagehash
    except ImportError as error:
        raise DataError("the hash needs imagehash: pip install 'ascl[copy]', or pip install imagehash") from error
    return imagehash


@dataclass(frozen=True)
class PreparedHash:
    """Upright RGB image -> (8,) uint8, the bits of `imagehash.phash` row by row; runs in the workers."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.packbits(import_imagehash().phash(image).hash.ravel())


class PerceptualHasher:
    """What `ascl.image_copy.descriptors.descriptor.Describer` is for networks; `dim`: bytes of a hash."""

    dim = BYTES
    orders_norms = False

    def __init__(self) -> None:
        version = import_imagehash().__version__
        self.model = f"phash-{8 * BYTES}bit (imagehash {version})"
        self.settings: dict[str, Any] = {"model": self.model, "kind": "phash", "bits": 8 * BYTES}
        self.prepare = PreparedHash()

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """B hashes from `prepare` -> (B, 8) uint8; there are no norms."""
        return np.stack(pixels), None


def looks_the_same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two upright RGB images show the same but for size, compression or a little light."""
    prepare = PreparedHash()
    return int(np.unpackbits(prepare(one) ^ prepare(other)).sum()) <= HASH_DISTANCE
