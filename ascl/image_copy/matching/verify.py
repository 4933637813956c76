"""Relate pictures by their files, with geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ascl.core.errors import DataError
from ascl.image_copy.matching.describe import digest_of
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.geometry import SURE, Relation, relate
from ascl.image_copy.matching.local_features import LocalFeatures, local_features, opencv
from ascl.images.read import load_image
from ascl.index.reader import IndexReader
from ascl.index.state import Record

KEPT = 200              # pictures whose features stay in memory, up to 3 MB each once they are compared
PIXELS = 1_000_000      # of a picture as it is read; the features need fewer
TOGETHER = 256          # pictures whose features are computed before they are kept
NOT_CONFIRMED, NOT_READ = "not confirmed", "not read"


class Picture(NamedTuple):
    """A picture's file, and the SHA-256 that it must have, if that is known."""

    path: Path
    sha256: bytes | None = None


def evidence(score: float, relation: Relation | None) -> float:
    """Return the score of descriptors, raised by 1 to 2 where geometry confirms a copy, the more the more points agree;
    by the share that looks alike where it leaves that open; lowered by 2 where the query shows more than the reference.

    Two pictures of which each shows something else of a scene keep their score: that is hardly ever a copy.
    """
    if relation is None or relation.kind == "partial":
        return score
    return score + {True: 1 + relation.inliers / (relation.inliers + SURE), None: relation.agreement, False: -2
                    }[relation.copy]


def picture_of(index: IndexReader, record: Record) -> Picture:
    """Return the picture of an indexed image, where it is now; a path that leads nowhere is not read."""
    return Picture(index.place_of(record).path, record.sha256)


class Verifier:
    """Relates pictures by their files.

    Args:
        cache: keeps the features of pictures whose SHA-256 is known, for other processes too; None = in memory only.

    Attributes:
        compared: pairs that `related` has compared, and not found in the cache.
        features: a picture -> its local features; None if its file cannot be read or has another content.

    Raises:
        DataError: OpenCV is not installed.
    """

    def __init__(self, cache: FeatureCache | None = None) -> None:
        opencv()
        self.cache = cache
        self.compared = 0
        self.features = lru_cache(KEPT)(self._read)

    def __call__(self, query: Picture, reference: Picture) -> tuple[str, Relation | None]:
        """Return the kind of a pair's relation, and the relation. The kind is "not confirmed" where nothing of one
        picture is found in the other, and "not read" where one of the files cannot be read or has another content."""
        own, other = self.features(query), self.features(reference)
        if own is None or other is None:
            return NOT_READ, None
        relation = relate(own, other)
        return (NOT_CONFIRMED, None) if relation is None else (relation.kind, relation)

    def related(self, pairs: Sequence[tuple[Picture, Picture]], threads: int,
                progress: Callable[[int], Any] = lambda count: None) -> list[tuple[str, Relation | None]]:
        """Return what a call returns, for many pairs (query, reference); what the cache knows is not compared again."""
        found = list[tuple[str, Relation | None]]()
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(pairs), TOGETHER):
                part = pairs[first : first + TOGETHER]
                keys = [(query.sha256 or b"", reference.sha256 or b"") for query, reference in part]
                known = {} if self.cache is None else self.cache.relations(key for key in keys if all(key))
                new = [place for place, key in enumerate(keys) if key not in known]
                fresh = dict(zip(new, pool.map(lambda pair: self(*pair), [part[place] for place in new]), strict=True))
                for place, key in enumerate(keys):
                    relation = known.get(key)
                    found.append(fresh[place] if place in fresh else
                                 (NOT_CONFIRMED if relation is None else relation.kind, relation))
                if self.cache is not None:
                    self.cache.put_relations({keys[place]: relation for place, (kind, relation) in fresh.items()
                                              if kind != NOT_READ and all(keys[place])})
                self.compared += len(new)
                progress(len(part))
        return found

    def is_readable(self, picture: Picture) -> bool:
        """Return whether a picture's file can be read and has the content that it must have."""
        return self.features(picture) is not None

    def keep(self, pictures: Sequence[Picture], threads: int, progress: Callable[[int], Any] = lambda count: None
             ) -> None:
        """Compute and keep the features of pictures that are not in the cache yet; a kill costs the last few."""
        missing = set() if self.cache is None else self.cache.missing({one.sha256 for one in pictures if one.sha256})
        todo = [one for one in pictures if one.sha256 in missing]
        progress(len(pictures) - len(todo))
        with ThreadPoolExecutor(threads) as pool:       # Pillow and OpenCV work beside one another
            for first in range(0, len(todo), TOGETHER):
                part = todo[first : first + TOGETHER]
                for _ in pool.map(self._read, part):
                    progress(1)

    def _read(self, picture: Picture) -> LocalFeatures | None:
        kept = None if self.cache is None or picture.sha256 is None else self.cache.get(picture.sha256)
        if kept is not None:
            return kept
        try:
            if picture.sha256 is not None and digest_of(picture.path).tobytes() != picture.sha256:
                return None
            found = local_features(load_image(picture.path, whole_pixels=PIXELS).image)
        except (DataError, OSError):    # said by the caller; a cache keeps no exceptions
            return None
        if self.cache is not None and picture.sha256 is not None:
            self.cache.put(picture.sha256, found)
        return found
