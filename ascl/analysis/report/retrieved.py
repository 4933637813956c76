"""Find the best and worst queries of a model, and the hubs: candidates that are retrieved too often."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from ascl.analysis.query_ranks import Direction, QueryRanks
from ascl.core.errors import DataError
from ascl.retrieval.scoring.all_pairs import TopPairs

BLOCK = 512             # rows or columns of a given matrix sorted at a time


def top_of_matrix(scores: np.ndarray, k: int, *, block: int = BLOCK) -> TopPairs:
    """Return `retrieval.top_pairs` for a given matrix (N_images, N_texts), `block` rows or columns at a time.

    Raises:
        DataError: a score is not finite.
    """
    def best(matrix: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for start in range(0, len(matrix), block):
            part = torch.from_numpy(np.array(matrix[start : start + block], dtype=np.float32))
            if not part.isfinite().all():
                raise DataError("a score of the given matrix is not finite, so it cannot be ranked: check the program "
                                "that wrote it")
            parts.append(part.topk(k, dim=1))
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    image_scores, texts_of_image = best(scores)
    text_scores, images_of_text = best(scores.T)
    return TopPairs(texts_of_image, image_scores, images_of_text, text_scores)


class Found(NamedTuple):
    """One retrieved candidate."""

    candidate: int
    score: float
    right: bool


class Query(NamedTuple):
    """One query: its number, rank (0 is best), right candidates, and best retrieved candidates (empty = unknown).

    margin: score of its best right candidate minus that of the best wrong one; None if the list does not show it.
    """

    number: int
    rank: int
    right: list[int]
    found: list[Found]
    margin: float | None


def best_and_worst(saved: QueryRanks, top: TopPairs | None, direction: Direction,
                   count: int) -> tuple[list[Query], list[Query]]:
    """Return the best queries (a right candidate ranks first, by decreasing margin) and the worst, `count` of each.

    Only the first caption of each image in this order is taken, because captions of one image often all succeed or all
    fail. Without `top`, the best queries are taken in the order of the data, because their ranks are equal.
    """
    numbers, ranks = saved.of(direction)
    firsts = np.flatnonzero(ranks == 0)
    if top is not None:
        margins = _margins(saved, top, direction)[numbers[firsts]]
        firsts = firsts[np.argsort(-np.nan_to_num(margins, nan=-np.inf), kind="stable")]
    lasts = np.argsort(-ranks, kind="stable")

    def chosen(order: np.ndarray) -> list[Query]:
        images = numbers[order] if direction == "i2t" else saved.owner[numbers[order]]
        _, places = np.unique(images, return_index=True)            # the first query of each image
        return [_query(saved, top, direction, int(numbers[q]), int(ranks[q])) for q in order[np.sort(places)[:count]]]

    return chosen(firsts), chosen(lasts[ranks[lasts] > 0])


def spread(saved: QueryRanks, top: TopPairs, direction: Direction, count: int) -> list[Query]:
    """Return up to `count` queries, evenly spread over the order of the data, whatever their ranks."""
    numbers, ranks = saved.of(direction)
    shown = min(count, len(numbers))
    return [_query(saved, top, direction, int(numbers[q]), int(ranks[q]))
            for q in len(numbers) * (2 * np.arange(shown) + 1) // (2 * max(1, shown))]


def _lists(top: TopPairs, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return (candidates, scores) of a direction, (N, k) each."""
    pair = (top.texts_of_image, top.image_scores) if direction == "i2t" else (top.images_of_text, top.text_scores)
    return pair[0].numpy(), pair[1].numpy()


def _is_right(saved: QueryRanks, candidates: np.ndarray, direction: Direction) -> np.ndarray:
    """Return (N, k) bool: which candidates of each query are right."""
    if direction == "i2t":
        return saved.owner[candidates] == np.arange(len(candidates))[:, None]
    return candidates == saved.owner[:, None]


def _margins(saved: QueryRanks, top: TopPairs, direction: Direction) -> np.ndarray:
    """Return (N,) best right score minus best wrong score; NaN if a list has only right or only wrong ones."""
    candidates, scores = _lists(top, direction)
    right = _is_right(saved, candidates, direction)
    margins = np.where(right, scores, -np.inf).max(axis=1) - np.where(right, -np.inf, scores).max(axis=1)
    return np.where(np.isfinite(margins), margins, np.nan)


def _query(saved: QueryRanks, top: TopPairs | None, direction: Direction, number: int, rank: int) -> Query:
    right = saved.right(direction, number)
    if top is None:
        return Query(number, rank, right, [], None)
    candidates, scores = (part[number].tolist() for part in _lists(top, direction))
    found = [Found(candidate, score, candidate in right) for candidate, score in zip(candidates, scores, strict=True)]
    margin = float(_margins(saved, top, direction)[number])
    return Query(number, rank, right, found, None if np.isnan(margin) else margin)


class Hubs(NamedTuple):
    """Candidates that are often retrieved where they are wrong.

    first: (candidate, number of queries that retrieve it first although it is wrong), the most frequent ones. wrong:
    number of queries whose first candidate is wrong. queries: number of queries. k: length of the lists. never: number
    of candidates in no list. candidates: number of candidates. skewness: of the number of lists per candidate, 0 if all
    are equally frequent; Radovanovic et al., Hubs in Space, JMLR 2010.
    """

    first: list[tuple[int, int]]
    wrong: int
    queries: int
    k: int
    never: int
    candidates: int
    skewness: float

    @property
    def share_of_first(self) -> float:
        """Share of `wrong` that is due to the candidates in `first`, 0 to 1."""
        return sum(times for _, times in self.first) / self.wrong if self.wrong else 0.0


def hubs(saved: QueryRanks, top: TopPairs, direction: Direction, count: int) -> Hubs:
    """Return the `count` candidates that are most often retrieved first where they are wrong, with statistics."""
    lists, _ = _lists(top, direction)
    candidates = len(saved.owner) if direction == "i2t" else saved.images
    asked = saved.of(direction)[0]              # images without captions are not queries
    wrong = ~_is_right(saved, lists, direction)[asked, 0]
    lists = lists[asked]
    times = np.bincount(lists[wrong, 0], minlength=candidates)
    first = [(place, int(times[place])) for place in np.argsort(-times, kind="stable")[:count].tolist() if times[place]]
    occurrences = np.bincount(lists.ravel(), minlength=candidates).astype(np.float64)
    skewness = float(stats.skew(occurrences)) if np.ptp(occurrences) else 0.0
    return Hubs(first, wrong=int(wrong.sum()), queries=len(lists), k=lists.shape[1],
                never=int((occurrences == 0).sum()), candidates=candidates, skewness=skewness)


def first_is_right(saved: QueryRanks, top: TopPairs, direction: Direction) -> float:
    """Return the share of ranked queries whose first retrieved candidate is right: R@1 of the scores of `top`."""
    lists, _ = _lists(top, direction)
    return float(_is_right(saved, lists, direction)[saved.of(direction)[0], 0].mean())
