"""Find which of many photos are near-duplicates of an earlier one, by their perceptual hashes."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np


class NearDuplicates:
    """The hashes seen so far; finds those within `distance` bits of a new one.

    Two hashes that differ in at most `distance` bits agree in one of `distance + 1` groups of bits, so only hashes that
    share a group are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        ends = [64 * i // (distance + 1) for i in range(distance + 2)]
        self._groups = [(start, (1 << (end - start)) - 1) for start, end in pairwise(ends)]
        self._seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in self._groups]

    def add(self, hash_bytes: np.ndarray) -> bool:
        """Return whether a hash is near one that was kept; keep it if not."""
        bits = int.from_bytes(hash_bytes.tobytes(), "big")
        sharing = [seen[(bits >> start) & mask] for seen, (start, mask) in zip(self._seen, self._groups, strict=True)]
        if any((bits ^ other).bit_count() <= self.distance for group in sharing for other in group):
            return True
        for group in sharing:
            group.append(bits)
        return False
