"""Relate candidates by geometry, score them again, and count what geometry calls true and false pairs.

As in a query of an index, the best candidates of each query are related, and `evidence` orders them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ascl.core.errors import DataError
from ascl.core.reading import shown
from ascl.image_copy.evaluation.candidates import SQUARED, Candidates
from ascl.image_copy.evaluation.files import GroundTruth
from ascl.image_copy.matching.describe import digest_of
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.geometry import COPIES, Kind, Relation
from ascl.image_copy.matching.groups import Progress, counting
from ascl.image_copy.matching.verify import NOT_CONFIRMED, NOT_READ, PIXELS, Picture, Verifier, evidence
from ascl.images.find import Skipped, by_any_id
from ascl.images.read import load_image
from ascl.index.calibration import rate_of

KINDS = (*get_args(Kind), NOT_CONFIRMED, NOT_READ)
POINTS = (6, 8, 10, 15, 20, 30, 50, 100)    # least points that agree, of the curve
CONFIDENCE = 0.95
CLASSES = ("true", "hard_negative", "other")


@dataclass(frozen=True, eq=False)
class Verified:
    """Candidates of which the best of each query were related by geometry.

    Attributes:
        candidates: in their order, with new scores.
        best: candidates of each query that were related.
        rows: (M,) those that were related, as their places in `candidates`.
        kinds: (M,) of their relations, "not confirmed" or "not read".
        relations: (M,) None where there is none.
        not_read: pictures that could not be read.
        cost: pictures and pairs that were not in the cache, and their processor time.
    """

    candidates: Candidates
    best: int
    rows: np.ndarray
    kinds: list[str]
    relations: list[Relation | None]
    not_read: list[Skipped]
    cost: dict[str, float | None]

    @property
    def confirmed(self) -> np.ndarray:
        """(N,) bool, whether geometry confirms each candidate to be a copy; what was not related is not confirmed."""
        found = np.zeros(len(self.candidates.score), dtype=bool)
        found[self.rows] = [kind in COPIES for kind in self.kinds]
        return found


def verify_candidates(candidates: Candidates, query_images: str | os.PathLike, reference_images: str | os.PathLike,
                      best: int, *, cache: str | os.PathLike | None = None, threads: int = 2,
                      progress: Progress = lambda doing, done, total: None) -> Verified:
    """Relate the best candidates of each query by geometry, and score them again.

    Args:
        candidates: pairs of ids, which are paths within the folders, with or without the suffix, or stems.
        query_images, reference_images: folders of the pictures.
        best: candidates of each query to relate, >= 1.
        cache: folder that keeps local features and relations for the next evaluation; None = a temporary one.
        threads: that read and compare pictures, >= 1.
        progress: is told what is being done.

    Raises:
        DataError: an id has no picture, the cache's folder cannot be made, or OpenCV is not installed.
    """
    rows = best_of_each(candidates.query, candidates.score, best)
    sides = [pictures_of(folder, set(ids[rows].tolist()), role) for folder, ids, role in (
        (query_images, candidates.query, "query"), (reference_images, candidates.reference, "reference"))]
    pairs = [(sides[0][query], sides[1][reference]) for query, reference in zip(
        candidates.query[rows].tolist(), candidates.reference[rows].tolist(), strict=True)]
    with tempfile.TemporaryDirectory(prefix="ascl-features-", ignore_cleanup_errors=True) as temporary:
        verifier = Verifier(FeatureCache(_made(Path(temporary if cache is None else cache))))
        assert verifier.cache is not None
        pictures = list({picture for side in sides for picture in side.values()})
        missing = len(verifier.cache.missing({one.sha256 for one in pictures if one.sha256}))
        began = time.process_time()
        verifier.keep(pictures, threads, counting(progress, "reading pictures", len(pictures)))
        read = time.process_time()
        found = verifier.related(pairs, threads, counting(progress, "comparing pairs", len(pairs)))
        compared = time.process_time()
        kinds, relations = [kind for kind, _ in found], [relation for _, relation in found]
        doubtful = {picture for pair, kind in zip(pairs, kinds, strict=True) if kind == NOT_READ for picture in pair}
        not_read = [Skipped(shown(one.path), _why(one)) for one in sorted(doubtful) if not verifier.is_readable(one)]
        cost = _cost(missing, read - began, verifier.compared, compared - read, len(rows), len(sides[0]))
    return Verified(_scored(candidates, rows, relations, best), best, rows, kinds, relations, not_read, cost)


def best_of_each(query: np.ndarray, score: np.ndarray, best: int) -> np.ndarray:
    """Return the rows of the `best` highest scores of each query, query by query; of equal scores the first rows."""
    codes: dict[str, int] = {}
    code = np.fromiter((codes.setdefault(one, len(codes)) for one in query.tolist()), np.int64, len(query))
    order = np.lexsort((-score, code))
    first = np.searchsorted(code[order], code[order])
    return order[np.arange(len(order)) - first < best]


def pictures_of(folder: str | os.PathLike, ids: Collection[str], role: str) -> dict[str, Picture]:
    """Return id -> the picture of that id in a folder.

    Raises:
        DataError: the folder has no pictures, or one of the ids has none.
    """
    paths = by_any_id(folder)
    unknown = sorted(one for one in ids if one not in paths)
    if unknown:
        more = f" and {len(unknown) - 1:,} more have" if len(unknown) > 1 else " has"
        raise DataError(f"{role} {unknown[0]!r}{more} no picture in {shown(os.fspath(folder))}: ids are paths within "
                        "that folder, or file names without the suffix that are there once; give the folder that was "
                        "described")
    return {one: _picture_at(paths[one]) for one in sorted(ids)}


def _picture_at(path: Path) -> Picture:
    try:
        return Picture(path, digest_of(path).tobytes())
    except OSError:                     # `Verifier` will not read it either
        return Picture(path)


def _why(picture: Picture) -> str:
    try:
        load_image(picture.path, whole_pixels=PIXELS)
    except DataError as error:
        return getattr(error, "reason", str(error))
    return "it changed during the evaluation"


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{shown(folder)}: this folder for local features cannot be made ({error.strerror})") from error
    return folder


def _cost(pictures: int, reading: float, pairs: int, comparing: float, related: int, queries: int
          ) -> dict[str, float | None]:
    """Return processor times in milliseconds; None where everything was in the cache."""
    picture, pair = 1000 * reading / pictures if pictures else None, 1000 * comparing / pairs if pairs else None
    both = None if picture is None or pair is None else picture + pair * related / queries
    return {"pictures": pictures, "pairs": pairs, "ms_per_picture": picture, "ms_per_pair": pair, "ms_per_query": both}


def _scored(candidates: Candidates, rows: np.ndarray, relations: Sequence[Relation | None], best: int) -> Candidates:
    """Return the candidates with the evidence as their scores."""
    about, warnings = dict(candidates.about), list(candidates.warnings)
    squared = about["score"] == SQUARED
    score = 1 + candidates.score / 2 if squared else candidates.score.astype(np.float64)
    if len(score) and np.abs(score).max() > 1 + 1e-3:
        warnings.append("some scores are not between -1 and 1, so that a confirmed copy may score less than a pair "
                        "that geometry did not relate")
    score[rows] = [evidence(one, relation) for one, relation in zip(score[rows].tolist(), relations, strict=True)]
    about |= {"score": ("1 - squared distance / 2, the inner product of unit vectors" if squared else about["score"])
                       + ", and the evidence of geometry",
              "verification": f"the {best} best candidates of each query were related by geometry: plus 1 to 2 for a "
                              "confirmed copy, plus the share that looks alike for a relation that leaves it open, "
                              "minus 2 where the query shows more; every metric is of the candidates in this new order"}
    return replace(candidates, score=score, about=about, warnings=warnings)


def verification_section(verified: Verified, truth: GroundTruth, hard: Iterable[tuple[str, str]] = ()
                         ) -> dict[str, Any]:
    """Return what the report says of geometry: what pairs were called, its yes or no as a decision, and its cost.

    Args:
        verified: of `verify_candidates`.
        truth: who copied whom.
        hard: pairs (query, reference) that are known to be no copies although they show the same.
    """
    candidates, hard = verified.candidates, set(hard)
    true = set(zip(truth.pair_query, truth.pair_reference, strict=True))
    counts: dict[str, Counter[str]] = {name: Counter() for name in CLASSES if name != "hard_negative" or hard}
    copies = list[tuple[str, bool, int]]()  # query, whether it is right, points that agree
    for row, kind, relation in zip(verified.rows.tolist(), verified.kinds, verified.relations, strict=True):
        pair = candidates.query[row], candidates.reference[row]
        counts["true" if pair in true else "hard_negative" if pair in hard else "other"][kind] += 1
        if relation is not None and relation.copy:
            copies.append((pair[0], pair in true, relation.inliers))
    right = sum(is_true for _, is_true, _ in copies)
    strangers = (set(truth.queries) | set(candidates.queries)) - set(truth.pair_query)
    fooled = {query for query, _, _ in copies} & strangers
    confirmed = {"true": right, "false": len(copies) - right, "precision": _rate(right, len(copies)),
                 "recall": _rate(right, len(true)), "recall_of_related": _rate(right, counts["true"].total()),
                 "queries_without_reference": _rate(len(fooled), len(strangers))}
    if hard:
        called = sum(counts["hard_negative"][kind] for kind in COPIES)
        confirmed["hard_negatives"] = _rate(called, counts["hard_negative"].total())
    curve = []
    for least in POINTS:
        kept = [is_true for _, is_true, points in copies if points >= least]
        curve.append({"points": least, "true": sum(kept), "false": len(kept) - sum(kept),
                      "precision": _rate(sum(kept), len(kept)), "recall": _rate(sum(kept), len(true))})
    return {"best": verified.best, "pairs": len(verified.rows), "confidence": CONFIDENCE,
            "kinds": {name: {kind: of[kind] for kind in KINDS if of[kind]} for name, of in counts.items()},
            "confirmed": confirmed, "points": curve, "cost": verified.cost,
            "not_read": [vars(one) for one in verified.not_read]}


def _rate(count: int, total: int) -> dict[str, Any] | None:
    return rate_of(count, total, CONFIDENCE).to_dict() if total else None
