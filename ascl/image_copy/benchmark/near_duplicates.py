"""Telling which of many photos are near-duplicates of one before them, by their perceptual hashes."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np


class NearDuplicates:
    """Hashes one after the other, each told whether one within a few bits came before it.

    Two hashes that differ in at most `distance` bits agree in one of `distance + 1` groups of bits; only hashes that
    share a group are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        ends = [64 * i // (distance + 1) for i in range(distance + 2)]
        self._groups = [(start, (1 << (end - start)) - 1) for start, end in pairwise(ends)]
        self._seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in self._groups]

    def add(self, hash_bytes: np.ndarray) -> bool:
        """Whether it is near one that was kept; if not, it is kept."""
        bits = int.from_bytes(hash_bytes.tobytes(), "big")
        sharing = [seen[(bits >> start) & mask] for seen, (start, mask) in zip(self._seen, self._groups, strict=True)]
        if any((bits ^ other).bit_count() <= self.distance for group in sharing for other in group):
            return True
        for group in sharing:
            group.append(bits)
        return False
