"""What a model retrieves well and badly: the best and the worst queries, and the candidates that come up too often."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ascl.errors import DataError
from ascl.retrieval.all_pairs import TopPairs

Direction = Literal["i2t", "t2i"]
BLOCK = 512             # rows or columns of a given matrix that are sorted at a time


@dataclass(frozen=True, eq=False)
class SavedRanks:
    """What an evaluation left in `ranks-SPLIT.npz`; 0 is the best rank.

    i2t: (Q_images,) rank of image `image_queries[q]`. t2i: (Q_texts,) rank of text `text_queries[q]`. owner: (N_texts,)
    image of each text. image_ids: (N_images,). captions: (N_texts,). Where the file names neither, their numbers.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    image_queries: np.ndarray
    text_queries: np.ndarray
    owner: np.ndarray
    image_ids: list[str]
    captions: list[str]

    def of(self, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """(queries, their ranks)."""
        return (self.image_queries, self.i2t) if direction == "i2t" else (self.text_queries, self.t2i)

    def right(self, direction: Direction, query: int) -> list[int]:
        """The query's own candidates."""
        return np.flatnonzero(self.owner == query).tolist() if direction == "i2t" else [int(self.owner[query])]


def load_ranks(path: str | os.PathLike) -> SavedRanks:
    """Read the ranks of an evaluation.

    Raises:
        FileNotFoundError: no such file.
        DataError: damaged, an array is missing, or the arrays do not fit each other.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ranks at {path}")
    again = "evaluate again with tools/eval.py"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): {again}") from error
    numbers = ("i2t", "t2i", "image_queries", "text_queries", "owner")
    for name in numbers:
        if name not in arrays:
            raise DataError(f"{path} has no array `{name}` (found: {', '.join(sorted(arrays)) or 'none'}): {again}")
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iu":
            raise DataError(f"{path}: `{name}` is {arrays[name].dtype} {arrays[name].shape}, no vector of integers: "
                            f"{again}")
    i2t, t2i, image_queries, text_queries, owner = (arrays[name].astype(np.int64) for name in numbers)
    images = len(arrays["image_ids"]) if "image_ids" in arrays else int(max(owner.max(), image_queries.max())) + 1
    ids = arrays["image_ids"].tolist() if "image_ids" in arrays else list(range(images))
    captions = arrays["captions"].tolist() if "captions" in arrays else list(range(len(owner)))
    fits = (
        len(i2t) == len(image_queries), len(t2i) == len(text_queries), len(captions) == len(owner),
        _within(owner, images), _within(image_queries, images), _within(text_queries, len(owner)),
    )
    if not all(fits):
        raise DataError(f"{path}: ranks, queries, owners and names do not fit each other: {again}")
    return SavedRanks(i2t, t2i, image_queries, text_queries, owner, [str(name) for name in ids],
                      [str(caption) for caption in captions])


def _within(values: np.ndarray, count: int) -> bool:
    return not len(values) or bool(values.min() >= 0 and values.max() < count)


def top_of_matrix(scores: np.ndarray, k: int) -> TopPairs:
    """As `retrieval.top_pairs`, of a (N_images, N_texts) matrix that is given; some rows or columns at a time.

    Raises:
        DataError: a score that is not finite.
    """
    def best(matrix: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for start in range(0, len(matrix), BLOCK):
            block = torch.from_numpy(np.array(matrix[start : start + BLOCK], dtype=np.float32))
            if not block.isfinite().all():
                raise DataError("a score is not finite: such scores have no order")
            parts.append(block.topk(k, dim=1))
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    image_scores, texts_of_image = best(scores)
    text_scores, images_of_text = best(scores.T)
    return TopPairs(texts_of_image, image_scores, images_of_text, text_scores)


@dataclass(frozen=True)
class Found:
    """One retrieved candidate."""

    candidate: int
    score: float
    right: bool


@dataclass(frozen=True)
class Query:
    """One query: its number, rank (0 is best), own candidates, and the best that were retrieved (none = not known).

    margin: how far its best right candidate lies above the best wrong one, None where the list does not tell.
    """

    number: int
    rank: int
    right: list[int]
    found: list[Found]
    margin: float | None


def best_and_worst(
    saved: SavedRanks, top: TopPairs | None, direction: Direction, count: int
) -> tuple[list[Query], list[Query]]:
    """`count` queries whose right candidate comes first, by falling margin; and the `count` of the worst rank.

    Of the captions of one image only the first in this order is taken: they are often all found, or none. Without `top`
    the best are the first in the order of the data, since ranks alone make no difference among them.
    """
    numbers, ranks = saved.of(direction)
    firsts = np.flatnonzero(ranks == 0)
    if top is not None:
        margins = _margins(saved, top, direction)[numbers[firsts]]
        firsts = firsts[np.argsort(-np.nan_to_num(margins, nan=-np.inf), kind="stable")]
    lasts = np.argsort(-ranks, kind="stable")
    lasts = lasts[ranks[lasts] > 0]

    def chosen(order: np.ndarray) -> list[Query]:
        images = numbers[order] if direction == "i2t" else saved.owner[numbers[order]]
        _, places = np.unique(images, return_index=True)            # of the first of each image
        return [_query(saved, top, direction, int(numbers[q]), int(ranks[q])) for q in order[np.sort(places)[:count]]]

    return chosen(firsts), chosen(lasts)


def _lists(top: TopPairs, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """(candidates, scores), (N, k) each."""
    pair = (top.texts_of_image, top.image_scores) if direction == "i2t" else (top.images_of_text, top.text_scores)
    return pair[0].numpy(), pair[1].numpy()


def _is_right(saved: SavedRanks, candidates: np.ndarray, direction: Direction) -> np.ndarray:
    """(N, k) bool: which of each query's candidates are its own."""
    if direction == "i2t":
        return saved.owner[candidates] == np.arange(len(candidates))[:, None]
    return candidates == saved.owner[:, None]


def _margins(saved: SavedRanks, top: TopPairs, direction: Direction) -> np.ndarray:
    """(N,) best right score minus best wrong one, NaN where a list holds only one kind."""
    candidates, scores = _lists(top, direction)
    right = _is_right(saved, candidates, direction)
    best_right = np.where(right, scores, -np.inf).max(axis=1)
    best_wrong = np.where(right, -np.inf, scores).max(axis=1)
    known = np.isfinite(best_right) & np.isfinite(best_wrong)
    return np.subtract(best_right, best_wrong, out=np.full(len(scores), np.nan), where=known)


def _query(saved: SavedRanks, top: TopPairs | None, direction: Direction, number: int, rank: int) -> Query:
    right = saved.right(direction, number)
    if top is None:
        return Query(number, rank, right, [], None)
    candidates, scores = _lists(top, direction)
    own = set(right)
    found = [Found(int(candidate), float(score), int(candidate) in own)
             for candidate, score in zip(candidates[number], scores[number], strict=True)]
    margin = float(_margins(saved, top, direction)[number])
    return Query(number, rank, right, found, None if np.isnan(margin) else margin)


@dataclass(frozen=True)
class Hubs:
    """Candidates that come up where they do not belong.

    Attributes:
        first: (candidate, number of queries not its own that retrieve it first), the most frequent ones.
        wrong: queries whose first is wrong. queries: all of them.
        k: length of the lists. never: candidates in nobody's list. candidates: all of them.
        skewness: of how often a candidate is in a list, 0 where all come up alike; Radovanovic et al., Hubs in Space,
            JMLR 2010.
    """

    first: list[tuple[int, int]]
    wrong: int
    queries: int
    k: int
    never: int
    candidates: int
    skewness: float


def hubs(saved: SavedRanks, top: TopPairs, direction: Direction, count: int) -> Hubs:
    """The `count` candidates that are most often retrieved first by queries to which they do not belong."""
    lists, _ = _lists(top, direction)
    candidates = len(saved.captions) if direction == "i2t" else len(saved.image_ids)
    asked = saved.of(direction)[0]              # an image without captions has no right answer and is no query
    wrong = ~_is_right(saved, lists, direction)[asked, 0]
    lists = lists[asked]
    times = np.bincount(lists[wrong, 0], minlength=candidates)
    order = np.argsort(-times, kind="stable")[:count]
    occurrences = np.bincount(lists.ravel(), minlength=candidates).astype(np.float64)
    deviation = occurrences - occurrences.mean()
    spread = float(np.sqrt((deviation**2).mean()))
    return Hubs(
        first=[(int(candidate), int(times[candidate])) for candidate in order if times[candidate]],
        wrong=int(wrong.sum()), queries=len(lists), k=lists.shape[1], never=int((occurrences == 0).sum()),
        candidates=candidates, skewness=float((deviation**3).mean()) / spread**3 if spread else 0.0,
    )


def first_is_right(saved: SavedRanks, top: TopPairs, direction: Direction) -> float:
    """Share of the ranked queries whose first retrieved candidate is their own: what R@1 of the same scores is."""
    lists, _ = _lists(top, direction)
    return float(_is_right(saved, lists, direction)[saved.of(direction)[0], 0].mean())
