"""Query an index: find the best matches of images, whether each is a copy, and in which direction."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.asymmetry import Direction, direction
from ascl.core.errors import DataError
from ascl.core.reading import shown
from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import BLANK, ReadOptions, described_images
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.geometry import Relation
from ascl.image_copy.matching.model import recorded_model
from ascl.image_copy.matching.verify import Picture, Verifier, evidence, picture_of
from ascl.images.find import ImageFile, Skipped
from ascl.images.rgb import Blankness
from ascl.index import calibration as calibrations
from ascl.index.calibration import Calibration, Rate
from ascl.index.places import Place, Status
from ascl.index.state import Record
from ascl.index.store import CopyIndex

MARGIN = 0.02               # relative difference of the norms up to which the direction is unclear
DIRECTIONS = {Direction.A_COPIES_B: "query copies reference", Direction.B_COPIES_A: "reference copies query",
              Direction.UNCLEAR: "unclear"}


@dataclass(frozen=True)
class Match:
    """An image of the index that resembles a query."""

    id: str
    path: str  # where the file is now, or where it was, printable
    file: Status  # whether it is there; `changed`: another file is in its place
    score: float  # inner product of the descriptors, or share of the hashes' bits that agree; 1 = the same
    normalised: float | None  # the score after normalization by the background; None without normalization
    direction: str  # a value of `DIRECTIONS`; always `unclear` for a model whose norms were not trained to order
    norm_ratio: float | None  # norm of the query over norm of the reference; None if the model has no norms
    copy: bool | None  # whether the calibration accepts it as a copy; None without one, or for a nearly blank query
    false_positives: Rate | None  # how often an unrelated query reaches such a score; None without a calibration
    geometry: str = ""  # a kind of `Relation`, or why there is none; "" if it was not asked for
    relation: Relation | None = None  # which part of the query is which part of the image

    @property
    def evidence(self) -> float:
        """The score with what geometry says; see `verify.evidence`."""
        return evidence(self.score if self.normalised is None else self.normalised, self.relation)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        rate = None if self.false_positives is None else self.false_positives.to_dict()
        relation = None if self.relation is None else self.relation.to_dict()
        return {**vars(self), "false_positives": rate, "relation": relation}

    def related(self, geometry: str, relation: Relation | None) -> Match:
        """Return the match with what geometry says. Where it decides, it overrules the calibration and the norms."""
        if relation is None:
            return replace(self, geometry=geometry)
        way = (self.direction if relation.kind == "same" else DIRECTIONS[Direction.A_COPIES_B] if relation.copy else
               DIRECTIONS[Direction.B_COPIES_A] if relation.reversed else self.direction)
        return replace(self, geometry=geometry, relation=relation, direction=way,
                       copy=self.copy if relation.copy is None else relation.copy)


@dataclass(frozen=True)
class Answer:
    """One query's matches, best first."""

    id: str
    path: str  # printable
    matches: list[Match]
    blank: Blankness = ""  # blank: there is nothing to compare, and so no match; nearly blank: no yes or no

    def only(self, *, copies: bool = False, min_score: float | None = None) -> Answer:
        """Return the answer with those matches only that are called copies, and that have at least a score."""
        return replace(self, matches=[one for one in self.matches if (one.copy or not copies)
                                      and (min_score is None or one.score >= min_score)])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"query": self.path, "id": self.id, "blank": self.blank,
                "matches": [match.to_dict() for match in self.matches]}


def query_images(index: CopyIndex, describer: ImageDescriber, queries: Sequence[ImageFile], options: ReadOptions, *,
                 k: int, margin: float = MARGIN, exact: bool = False, verify: int = 0
                 ) -> tuple[list[Answer], list[Skipped]]:
    """Return the k best matches of each image (none of a blank one), and the images that could not be used.

    Args:
        index, describer: the index, and the model that it was made with.
        queries, options: the query images, and how to read them.
        k: matches per query, >= 1; fewer if the index holds fewer images.
        margin: of the norms, >= 0; see `ascl.asymmetry.direction`.
        exact: as for `CopyIndex.search`.
        verify: how many of the best matches of a query are related to it by geometry, which then decides their order;
            0 = the scores do.

    Raises:
        DataError: the index is empty, k < 1, `verify` or the margin is negative or not finite, OpenCV is not installed,
            or as `described_images`.
    """
    if not len(index):
        raise DataError(f"{index.folder} holds no images yet; add some first")
    if verify < 0:
        raise DataError(f"{verify} matches to verify: give at least 0")
    if not 0 <= margin < math.inf:
        raise DataError(f"margin {margin:g}: give a finite number of at least 0")
    answers, skipped = dict[str, Answer](), list[Skipped]()
    judge, ordered = Judge(index), recorded_model(index)["orders_norms"]
    verifier = Verifier(FeatureCache(index.folder)) if verify else None
    for images in described_images(describer, queries, options, skipped):
        positions, scores = index.search(images.vectors, max(k, verify), exact=exact)
        if not positions.size:
            raise DataError(f"{index.folder}: every image is damaged and left out ({index.damage[0]})")
        records = index.records(np.unique(positions))
        shifts = judge.shifts(images.vectors)
        for row, (image, path) in enumerate(zip(images.ids, images.paths, strict=True)):
            found = [records[position] for position in positions[row].tolist()]
            norms = np.array([one.norm for one in found], np.float32)
            ways = direction(images.norms[row : row + 1], norms, margin=margin) * ordered
            matches = [judge.match(one, index.place_of(one), float(score), float(shifts[row]), images.norms[row],
                                   int(way))
                       for one, score, way in zip(found, scores[row], ways, strict=True)]
            nearly = shown(path) in options.nearly_blank
            if nearly:
                matches = [replace(one, copy=None) for one in matches]
            elif verifier is not None:
                own = Picture(Path(path))
                related = [match.related(*verifier(own, picture_of(index, record)))
                           for match, record in zip(matches[:verify], found, strict=False)]
                matches = sorted([*related, *matches[verify:]], key=lambda match: -match.evidence)
            answers[path] = Answer(image, shown(path), matches[:k], "nearly blank" if nearly else "")
    blank = {one.path for one in skipped if one.reason == BLANK}
    answers |= {str(image.path): Answer(image.id, shown(image.path), [], "blank")
                for image in queries if shown(image.path) in blank}
    return [answers[str(image.path)] for image in queries if str(image.path) in answers], skipped


class Judge:
    """The verdicts of an index's calibration on scores; without a calibration there are none."""

    def __init__(self, index: CopyIndex) -> None:
        arrays = index.calibration_arrays()
        self.calibration = None if arrays is None else calibration_of(index)
        self.arrays = arrays or {}
        self.holds = self.calibration is not None and calibrations.still_holds(self.calibration, index.state.added)

    def shifts(self, vectors: np.ndarray) -> np.ndarray:
        """Return (N,), what the normalization subtracts from all scores of each of (N, d) queries."""
        norm = None if self.calibration is None else self.calibration.score_norm
        if norm is None:
            return np.zeros(len(vectors))
        from ascl.image_copy.evaluation.score_norm import background_score  # imports torch, which is slow

        return norm.weight * background_score(vectors, self.arrays["background"], start=norm.start, end=norm.end)

    def verdict(self, judged: float) -> tuple[bool | None, Rate | None]:
        """Return whether a score, less its shift, is that of a copy, and how often strangers reach it."""
        if self.calibration is None or not self.holds:
            return None, None
        return (judged >= self.calibration.threshold,
                calibrations.rate_at(judged, self.arrays["scores"], self.calibration.confidence))

    def match(self, record: Record, place: Place, score: float, shift: float, norm: np.float32, way: int) -> Match:
        ratio = float(norm / np.float32(record.norm)) if record.norm else math.nan
        normalised = self.calibration is not None and self.calibration.score_norm is not None
        return Match(record.id, shown(place.path), place.status, score, score - shift if normalised else None,
                     DIRECTIONS[Direction(way)], None if math.isnan(ratio) else ratio, *self.verdict(score - shift))


def calibration_of(index: CopyIndex) -> Calibration | None:
    """Return the calibration of an index, or None."""
    stored = index.state.calibration
    return None if stored is None else Calibration.from_dict(stored)


def write_answers(path: str | os.PathLike, answers: Sequence[Answer]) -> int:
    """Write every match, with its evidence, as a row of a predictions CSV, which the evaluation reads; return the
    number of rows.

    Raises DataError if two queries have the same id.
    """
    from ascl.image_copy.evaluation.files import write_predictions

    seen: dict[str, Answer] = {}
    for answer in answers:
        before = seen.setdefault(answer.id, answer)
        if before is not answer:
            raise DataError(f"two queries have the id {answer.id!r}: {before.path} and {answer.path}; rename one")
    rows = [(answer.id, match) for answer in answers for match in answer.matches]
    scores = np.array([match.evidence for _, match in rows])
    write_predictions(path, [image for image, _ in rows], [match.id for _, match in rows], scores)
    return len(rows)
