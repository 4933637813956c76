"""Relate the picture files of a query and its matches by geometry."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ascl.core.errors import DataError
from ascl.image_copy.matching.geometry import Relation, relate
from ascl.image_copy.matching.local_features import LocalFeatures, local_features, opencv
from ascl.images.read import load_image

KEPT = 1000             # references whose features stay in memory, about 1.3 MB each
PIXELS = 1_000_000      # of a picture as it is read; the features need fewer
NOT_CONFIRMED, NOT_READ = "not confirmed", "not read"


class Verifier:
    """Relates pictures by their files, and keeps the features of the last ones.

    Args:
        best: how many matches of each query to relate, the best by their descriptors first; >= 1.

    Raises:
        DataError: best < 1, or OpenCV is not installed.
    """

    def __init__(self, best: int) -> None:
        if best < 1:
            raise DataError(f"{best} matches to verify: give at least 1")
        opencv()
        self.best = best
        self._query = lru_cache(1)(_features_of)
        self._reference = lru_cache(KEPT)(_features_of)

    def __call__(self, query: Path, reference: Path) -> tuple[str, Relation | None]:
        """Return the kind of a pair's relation, and the relation. The kind is "not confirmed" where nothing of one
        picture is found in the other, and "not read" where one of the files cannot be read."""
        own, other = self._query(query), self._reference(reference)
        if own is None or other is None:
            return NOT_READ, None
        relation = relate(own, other)
        return (NOT_CONFIRMED, None) if relation is None else (relation.kind, relation)


def _features_of(path: Path) -> LocalFeatures | None:
    try:
        return local_features(load_image(path, whole_pixels=PIXELS).image)
    except DataError:               # known and said by the caller; a cache keeps no exceptions
        return None
