"""Find the groups of copies within an index.

Each image is compared with those that its descriptor resembles most, and each of these pairs is judged by geometry,
or by its score. A group is made of judged pairs only: with the default linkage `star` every member is directly a copy
of the group's original, so that a chain of copies does not join strangers.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, get_args

import numpy as np

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.matching.add import add_images
from ascl.image_copy.matching.describe import ReadOptions
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.geometry import Relation
from ascl.image_copy.matching.linkage import Linkage, Place, components, linked_by
from ascl.image_copy.matching.model import open_or_create, recorded_ids
from ascl.image_copy.matching.query import Judge
from ascl.image_copy.matching.verify import NOT_CONFIRMED, NOT_READ, Picture, Verifier, picture_of
from ascl.images.find import images_of
from ascl.index import Metric
from ascl.index.calibration import Rate
from ascl.index.search import Rows, search
from ascl.index.state import Record
from ascl.index.store import CopyIndex

Progress = Callable[[str, int, int], Any]       # what is being done, how much of it is done, how much there is
SAME_FILE, SCORE = "same file", "score"
CANDIDATES = 10         # images to compare each image with
COMPLETED = 40          # images of a component up to which all its pairs are judged
TOGETHER = 2048         # pairs that are judged before they are kept
LARGEST = 1000          # copies of one image, by their scores alone, beyond which the model is at fault
SAMPLED = 2000          # random pairs whose scores tell a collapsed model
FEWEST = 20             # images among which that is looked at
COLLAPSED = 1e-5        # their spread, without the outer tenths, below which a model is said to be collapsed


class _Related(NamedTuple):
    """How two images, by their numbers, are related; the relation is None if geometry does not confirm any."""

    query: int
    reference: int
    relation: Relation | None


class Pair(NamedTuple):
    """Two images of which the first is a copy of the second, or, where `directed` is false, one of the other."""

    copy: str               # id
    original: str           # id
    reason: str             # "same file", a kind of `Relation`, or "score"
    directed: bool
    score: float            # of the descriptors
    false_positives: Rate | None    # how often strangers reach such a score; None without a calibration
    relation: Relation | None       # with the copy as the query; None where geometry was not asked

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**self._asdict(), "relation": None if self.relation is None else self.relation.to_dict(),
                "false_positives": None if self.false_positives is None else self.false_positives.to_dict()}


@dataclass(frozen=True)
class CopyGroup:
    """Images that are copies of one another.

    Attributes:
        records: of its images, the original first, then by their evidence.
        pairs: the judged pairs among them.
        tightness: share of all pairs among them that are judged copies; 1 = each of each other.
    """

    records: list[Record]
    pairs: list[Pair]
    tightness: float


@dataclass(frozen=True)
class CopyGroups:
    """What `find_groups` has found.

    Attributes:
        groups: the largest first.
        open: pairs that geometry relates and does not decide, or does not confirm although the calibration calls them
            copies. They join no group.
        images: that were compared.
        not_read: ids of images whose files are gone, changed or not readable; of the last, those that had to be read.
    """

    groups: list[CopyGroup]
    open: list[Pair]
    images: int
    not_read: list[str]


def find_groups(index: CopyIndex, *, linkage: Linkage = "star", candidates: int = CANDIDATES, geometry: bool = True,
                min_score: float | None = None, among: Collection[str] | None = None, threads: int = 2,
                progress: Progress = lambda doing, done, total: None) -> CopyGroups:
    """Return the groups of copies among the images of an index.

    Args:
        index: with images of one model. What geometry finds is kept in its folder, so a second call is quick.
        linkage: "star": every member is a copy of one original. "single": all that chains of copies join. "complete":
            all are copies of one another.
        candidates: images, the best by their descriptors, that each image is compared with; >= 1.
        geometry: judge pairs by geometry; else by `min_score`, or by the threshold of the calibration.
        min_score: pairs of lower scores are no candidates; None = all are.
        among: absolute paths of the files to look at; None = all images. Those whose files are not where they were, or
            have another content, are left out.
        threads: that read and compare pictures; >= 1.
        progress: is told what is being done.

    Raises:
        DataError: the index is empty or damaged; its model gives all images the same descriptor; nothing decides,
            neither geometry, nor a calibration that holds, nor a least score; by their scores thousands of images are
            copies of one another; OpenCV is not installed; or an argument is out of range.
    """
    if linkage not in get_args(Linkage):
        raise DataError(f"linkage {linkage!r}: choose one of {', '.join(get_args(Linkage))}")
    if candidates < 1 or threads < 1:
        raise DataError(f"{candidates} candidates and {threads} threads: give at least 1 of each")
    index.reload()
    index.require_intact()
    judge = Judge(index)
    if not geometry and min_score is None and not judge.holds:
        raise DataError(f"{index.folder} has no calibration that holds, so its scores decide nothing: calibrate it, "
                        "give a least score, or judge by geometry")
    verifier = Verifier(FeatureCache(index.folder)) if geometry else None
    held = dict(index.each_record())
    if len(held) < len(index):
        raise DataError(f"{index.folder}: records of its images are damaged; `repair` mends it")
    if not held:
        raise DataError(f"{index.folder} holds no images yet; add some first")
    if among is not None:
        held = {row: record for row, record in held.items() if record.path in among}
    absent = {row for row, record in held.items() if index.place_of(record).status != "there"}
    rows = np.array(sorted(held.keys() - absent), np.int64)
    if not len(rows):
        raise DataError(f"{index.folder}: none of its images is where it was; index them where they are now")
    damaged = index.verify()
    if damaged:
        raise DataError(f"{damaged[0]}; `repair` mends it")
    records, vectors = [held[row] for row in rows.tolist()], index.rows.vectors[rows]
    _, own = np.unique([record.sha256 for record in records], return_index=True)
    _require_variety(vectors[own], index)
    twins, pairs = _candidates(records, vectors, index.state.metric, candidates, min_score)
    judged = _Judgements(index, records, vectors, judge, verifier, min_score, threads, progress)
    judged.compare(pairs, "comparing pairs")
    parts = components(len(records), judged.copies)
    if not geometry and parts and len(parts[0]) > LARGEST:
        raise DataError(f"{index.folder}: {len(parts[0]):,} images are copies of one another by their scores: the "
                        "model cannot tell pictures apart, or the least score is too low")
    judged.compare((pair for part in parts if len(part) <= COMPLETED for pair in combinations(part, 2)),
                   "comparing within groups")
    followers = defaultdict(list)
    for first, twin in twins:
        followers[first].append(twin)
    linked = linked_by(linkage, len(records), judged.strengths())
    linked += [[first] for first in sorted(followers.keys() - {one for members in linked for one in members})]
    groups = [_group(members, followers, records, judged) for members in linked]
    groups.sort(key=lambda group: (-len(group.records), group.records[0].id))
    not_read = [held[row] for row in absent] + [records[place] for place in judged.not_read]
    return CopyGroups(groups, judged.open, len(records), sorted(record.id for record in not_read))


def find_copy_groups(photos: str | os.PathLike | Sequence[str | os.PathLike], *, index: str | os.PathLike,
                     model: str | DescriberChoice | None = None, device: str = "cpu", **options: Any) -> CopyGroups:
    """Return the groups of copies among photos.

    Args:
        photos: a folder, or several, or image files.
        index: folder of the index that is made of them, or continued; a second call describes only what is new.
        model: a name as `ascl models` lists them, a path, or a choice with more options; None = the index's own, for a
            new one the best at hand.
        device: for the model.
        options: as for `find_groups`.

    Raises:
        DataError: as `find_groups`, or there are no such photos, or no such model.

    Example:
        >>> groups = find_copy_groups("photos/", index="idx").groups            # doctest: +SKIP
        >>> [record.path for record in groups[0].records]                       # doctest: +SKIP
        ['/home/me/photos/beach.jpg', '/home/me/photos/beach-small.jpg']
    """
    sources = [photos] if isinstance(photos, str | os.PathLike) else photos
    choice = DescriberChoice.from_options({"model": model}) if isinstance(model, str) else model
    opened, describer, _ = open_or_create(index, choice, device)
    images = images_of(*sources, ids=recorded_ids(opened))
    add_images(opened, describer, images, ReadOptions(), overwrite=True)
    return find_groups(opened, among={os.path.abspath(path) for path in images.paths}, **options)


def _require_variety(vectors: np.ndarray, index: CopyIndex) -> None:
    """Refuse a model that gives all images nearly the same descriptor."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(vectors), (2, SAMPLED))
    scores = _scores(vectors[first], vectors[second], metric=index.state.metric)[first != second]
    if len(vectors) >= FEWEST and np.subtract(*np.quantile(scores, [0.9, 0.1])) < COLLAPSED:
        raise DataError(f"{index.folder}: {index.state.model['name']} gives all pairs of images the score "
                        f"{np.median(scores):.3f}, so it cannot tell pictures apart: index them with another model")


def _scores(first: np.ndarray, second: np.ndarray, *, metric: Metric) -> np.ndarray:
    if metric == "ip":
        return np.einsum("nd,nd->n", first, second, dtype=np.float64)
    return 1 - np.unpackbits(first ^ second, axis=1).mean(axis=1)


def _candidates(records: Sequence[Record], vectors: np.ndarray, metric: Metric, candidates: int,
                min_score: float | None) -> tuple[list[Place], list[Place]]:
    """Return the pairs of images of one file, and the other pairs that are worth a look, each once.

    Of the images of one file only the first is compared with others.
    """
    first: dict[bytes, int] = {}
    twins = [(first[record.sha256], place) for place, record in enumerate(records)
             if first.setdefault(record.sha256, place) != place]
    own = np.array(sorted(first.values()))
    rows = Rows(vectors[own], np.empty(0, np.int64), metric)
    near, scores = search(rows, rows.vectors, min(candidates + 1, len(own)))
    pairs = {(min(place, other), max(place, other))
             for place, others, values in zip(own.tolist(), own[near].tolist(), scores.tolist(), strict=True)
             for other, value in zip(others, values, strict=True)
             if other != place and (min_score is None or value >= min_score)}
    return twins, sorted(pairs)


class _Judgements:
    """What the pairs are that were compared so far: copies, or left open, or neither."""

    def __init__(self, index: CopyIndex, records: Sequence[Record], vectors: np.ndarray, judge: Judge,
                 verifier: Verifier | None, min_score: float | None, threads: int, progress: Progress) -> None:
        self.records, self.vectors, self.metric, self.judge = records, vectors, index.state.metric, judge
        self.verifier, self.min_score, self.threads, self.progress = verifier, min_score, threads, progress
        self.shifts = judge.shifts(vectors)
        self.pictures = [picture_of(index, record) for record in records] if verifier else []
        self.copies: dict[Place, Pair] = {}     # (copy, original)
        self.open: list[Pair] = []
        self.not_read = set[int]()
        self._compared = set[Place]()

    def compare(self, pairs: Iterable[Place], doing: str) -> None:
        """Judge those of some pairs, the lower position first, that were not compared before."""
        todo = [pair for pair in pairs if pair not in self._compared]
        self._compared.update(todo)
        if self.verifier is not None:
            needed = sorted({place for pair in todo for place in pair})
            self.verifier.keep([self.pictures[place] for place in needed], self.threads,
                               counting(self.progress, "reading pictures", len(needed)))
        count = counting(self.progress, doing, len(todo))
        for first in range(0, len(todo), TOGETHER):
            part = todo[first : first + TOGETHER]
            one, other = np.array(part).T
            scores = _scores(self.vectors[one], self.vectors[other], metric=self.metric)
            related = self._related(part) if self.verifier is not None else [None] * len(part)
            for pair, score, found in zip(part, scores.tolist(), related, strict=True):
                self._judge(pair, score, found)
            count(len(part))

    def _related(self, pairs: Sequence[Place]) -> list[_Related | None]:
        """Return how pairs are related, the copy as the query if one is a copy of the other; None if a file cannot be
        read."""
        assert self.verifier is not None
        answers = self.verifier.related([self._pictures_of(*pair) for pair in pairs], self.threads)
        found = [None if kind == NOT_READ else _Related(*pair, relation)
                 for pair, (kind, relation) in zip(pairs, answers, strict=True)]
        turned = [place for place, (_, relation) in enumerate(answers) if relation is not None and relation.reversed]
        back = self.verifier.related([self._pictures_of(*pairs[place][::-1]) for place in turned], self.threads)
        for place, (_, relation) in zip(turned, back, strict=True):
            if relation is not None and relation.copy:
                found[place] = _Related(*pairs[place][::-1], relation)
        return found

    def _pictures_of(self, query: int, reference: int) -> tuple[Picture, Picture]:
        return self.pictures[query], self.pictures[reference]

    def _judge(self, pair: Place, score: float, found: _Related | None) -> None:
        yes, rate = self.judge.verdict(score - float(self.shifts[list(pair)].mean()))
        if self.verifier is None:
            if score >= self.min_score if self.min_score is not None else yes:
                self.copies[pair] = self.pair(*pair, SCORE, False, score, rate, None)
        elif found is None:
            self.not_read |= {place for place in pair if not self.verifier.is_readable(self.pictures[place])}
        elif found.relation is None:
            if yes:
                self.open.append(self.pair(*pair, NOT_CONFIRMED, False, score, rate, None))
        else:
            kind, places = found.relation.kind, (found.query, found.reference)
            copy = found.relation.copy or (kind == "unsure" and bool(yes))
            made = self.pair(*places, kind, copy and kind not in ("same", "unsure"), score, rate, found.relation)
            if copy:
                self.copies[places] = made
            else:
                self.open.append(made)

    def strengths(self) -> dict[Place, float]:
        """Return (copy, original) -> the points that agree, or else the score; where the direction is not known, both
        ways."""
        found = dict[Place, float]()
        for (copy, original), pair in self.copies.items():
            strength = pair.score if pair.relation is None else float(pair.relation.inliers)
            found[copy, original] = strength
            if not pair.directed:
                found[original, copy] = strength
        return found

    def pair(self, copy: int, original: int, reason: str, directed: bool, score: float, rate: Rate | None,
              relation: Relation | None) -> Pair:
        return Pair(self.records[copy].id, self.records[original].id, reason, directed, score, rate, relation)


def counting(progress: Progress, doing: str, total: int) -> Callable[[int], None]:
    """Return a function that is told how much more was done, and tells `progress` how much that is in all."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(doing, done, total)

    return count


def _group(members: Sequence[int], followers: dict[int, list[int]], records: Sequence[Record], judged: _Judgements
           ) -> CopyGroup:
    """Return a group with the other images of the same files."""
    inside = set(members)
    among = [pair for one, other in combinations(sorted(inside), 2) for places in ((one, other), (other, one))
             if (pair := judged.copies.get(places)) is not None]
    possible = len(members) * (len(members) - 1) // 2
    twins = [(twin, first) for first in members for twin in followers.get(first, ())]
    pairs = [*among, *(judged.pair(twin, first, SAME_FILE, False, 1.0, None, None) for twin, first in twins)]
    return CopyGroup([records[place] for place in [*members, *(twin for twin, _ in twins)]], pairs,
                     len(among) / possible if possible else 1.0)
