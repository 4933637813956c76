"""Photos that are the same but for size, compression or a little light, told by a perceptual hash."""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import numpy as np
from PIL import Image

HASH_DISTANCE = 6  # of 64 bits: recompressed photos are nearer, and no two of Flickr8k's 8,090 photos are
SIDE, KEPT = 32, 8  # pixels of the small picture, and frequencies kept of each direction: 64 bits


@functools.cache
def _cosines() -> np.ndarray:
    """(KEPT, SIDE): the lowest rows of the discrete cosine transform (DCT-II), unscaled."""
    frequency, place = np.arange(KEPT)[:, None], np.arange(SIDE)[None, :]
    return np.cos(math.pi * frequency * (2 * place + 1) / (2 * SIDE))


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(8,) uint8, 64 bits: which of the 8 x 8 lowest frequencies of a grey copy lie above their median (pHash)."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    cosines = _cosines()
    waves = cosines @ np.asarray(small, dtype=np.float64) @ cosines.T
    return np.packbits(waves.ravel() > np.median(waves))


class NearDuplicates:
    """Hashes one after the other, each told whether one within a few bits came before it.

    Two hashes that differ in at most `distance` bits agree in one of `distance + 1` groups of bits; only hashes that
    share a group are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        ends = [64 * i // (distance + 1) for i in range(distance + 2)]
        self._groups = [(start, (1 << (end - start)) - 1) for start, end in zip(ends, ends[1:], strict=False)]
        self._seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in self._groups]

    def add(self, hash_bytes: np.ndarray) -> bool:
        """Whether it is near one that was kept; if not, it is kept."""
        bits = int.from_bytes(hash_bytes.tobytes(), "big")
        keys = [(bits >> start) & mask for start, mask in self._groups]
        for seen, key in zip(self._seen, keys, strict=True):
            if any((bits ^ other).bit_count() <= self.distance for other in seen.get(key, ())):
                return True
        for seen, key in zip(self._seen, keys, strict=True):
            seen[key].append(bits)
        return False
