"""Metrics of copy detection: micro average precision and its kin, over one list of scored (query, reference) pairs.

All metrics read the same list in the same order: score descending and, on a tie, the wrong pair first, so that equal
scores earn nothing. `judge` makes that list once; everything else counts in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ascl.asymmetry import Direction, direction
from ascl.core.errors import DataError

PRECISION = 0.9  # of "recall at precision 90"

Ids = np.ndarray | Sequence[int] | Sequence[str]


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Predictions in the order in which they are counted: score descending, false before true.

    Attributes:
        query_ids: (Q,) every query that the predictions or the ground truth name; `query` and `gt_query` index it.
        order: (N,) int64 row of the input that each entry is.
        query: (N,) int64 code of its query.
        score: (N,) float64.
        correct: (N,) bool, whether the pair is in the ground truth.
        gt_query: (G,) int64 code of the query of each ground-truth pair.
        gt_position: (G,) int64 where the predictions hold that pair, -1 for a pair that was not predicted.
    """

    query_ids: np.ndarray
    order: np.ndarray
    query: np.ndarray
    score: np.ndarray
    correct: np.ndarray
    gt_query: np.ndarray
    gt_position: np.ndarray

    def only(self, rows: np.ndarray) -> JudgedPairs:
        """The same ground truth with only the predictions where `rows` (N,) is True; the others are then misses."""
        position = np.append(np.where(rows, np.cumsum(rows) - 1, -1), -1)  # the last entry serves gt_position -1
        return replace(
            self, order=self.order[rows], query=self.query[rows], score=self.score[rows], correct=self.correct[rows],
            gt_position=position[self.gt_position],
        )

    def of_queries(self, chosen: np.ndarray) -> JudgedPairs:
        """Predictions and ground truth of the queries where `chosen` (Q,) is True."""
        kept = self.only(chosen[self.query])
        of_chosen = chosen[self.gt_query]
        return replace(kept, gt_query=kept.gt_query[of_chosen], gt_position=kept.gt_position[of_chosen])


@dataclass(frozen=True, eq=False)
class CopyMetrics:
    """What `micro_average_precision` returns; fractions in [0, 1].

    Attributes:
        muap: micro average precision.
        recall_at_p90: largest recall at a precision of at least 0.9; None where none is reached.
        threshold_at_p90: the score at the first place that has this recall; None as above.
        recall_rank1: share of the ground-truth pairs that come first among their query's predictions (a tie is lost).
        recall_rank10: the same among the first ten.
        ground_truth_pairs: the denominator of every recall, pairs that nobody predicted included.
        predictions: rows that were counted.
        precisions, recalls, thresholds: (predictions,) the curve, by falling score.
    """

    muap: float
    recall_at_p90: float | None
    threshold_at_p90: float | None
    recall_rank1: float
    recall_rank10: float
    ground_truth_pairs: int
    predictions: int
    precisions: np.ndarray
    recalls: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class TopPairs:
    """The first |GT| pairs, once some of them were rejected.

    Attributes:
        taken: pairs taken by score; |GT|, fewer where fewer were predicted.
        true_positives, false_positives: of those that were kept.
        rejected_true, rejected_false: of those that the filter removed.
        threshold: score of the last pair taken; None where none was.
    """

    taken: int
    true_positives: int
    false_positives: int
    rejected_true: int
    rejected_false: int
    threshold: float | None

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP), None where nothing was kept."""
        kept = self.true_positives + self.false_positives
        return self.true_positives / kept if kept else None


def micro_average_precision(
    query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids, gt_reference: Ids
) -> CopyMetrics:
    """Micro average precision (muAP) of scored pairs, and what is read off the same curve.

    muAP = sum_i (R_i - R_{i-1}) P_i over all predictions of all queries in one list, P_i = TP_i / i, R_i = TP_i / |GT|.
    Predictions for a query without a reference (a distractor) are false positives.

    Args:
        query, reference: (N,) ids of the predicted pairs, integers or text.
        score: (N,) higher = more alike, on any scale.
        gt_query, gt_reference: (G,) ids of the true pairs, of the same type as the predictions'.

    Returns:
        CopyMetrics.

    Raises:
        DataError: as `judge`.

    Source: Perronnin, Liu, Renders, CVPR 2009; the 2021 Image Similarity Challenge (arXiv 2106.09672) for the ties.
    """
    return metrics_of(judge(query, reference, score, gt_query, gt_reference))


def judge(
    query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids, gt_reference: Ids
) -> JudgedPairs:
    """Mark the predictions that are true and put them in the order of the metrics.

    Raises:
        DataError: lengths differ, ids neither integers nor text or of two types, a pair twice in the predictions or in
            the ground truth (named), a score that is not a number (row named), no ground truth.
    """
    queries = [_as_ids(query, "query"), _as_ids(gt_query, "gt_query")]
    references = [_as_ids(reference, "reference"), _as_ids(gt_reference, "gt_reference")]
    scores = _as_scores(score)
    if not len(queries[0]) == len(references[0]) == len(scores):
        raise DataError(
            f"{len(queries[0])} query ids, {len(references[0])} reference ids and {len(scores)} scores: one each a pair"
        )
    if len(queries[1]) != len(references[1]):
        raise DataError(f"the ground truth has {len(queries[1])} query ids and {len(references[1])} reference ids")
    if not len(queries[1]):
        raise DataError("the ground truth has no pair: nothing can be found, so nothing can be measured")
    (query_code, gt_query_code), query_ids = _codes(queries, "query")
    (reference_code, gt_reference_code), reference_ids = _codes(references, "reference")
    pair = query_code * len(reference_ids) + reference_code
    gt_pair = gt_query_code * len(reference_ids) + gt_reference_code
    by_pair = np.argsort(pair, kind="stable")
    for name, ordered in (("predictions", pair[by_pair]), ("ground truth", np.sort(gt_pair))):
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            of_query, of_reference = divmod(int(ordered[twice[0]]), len(reference_ids))
            raise DataError(
                f"{name}: {len(twice)} row(s) repeat a pair, first query {query_ids[of_query]} with "
                f"reference {reference_ids[of_reference]}; keep one row a pair"
            )
    place = np.searchsorted(pair[by_pair], gt_pair)
    place_or_last = np.minimum(place, max(len(pair) - 1, 0))
    found = pair[by_pair][place_or_last] == gt_pair if len(pair) else np.zeros(len(gt_pair), dtype=bool)
    correct = np.zeros(len(pair), dtype=bool)
    correct[by_pair[place_or_last[found]]] = True
    order = np.lexsort((correct, -scores))
    position_of_row = np.empty(len(order), dtype=np.int64)
    position_of_row[order] = np.arange(len(order))
    gt_position = np.full(len(gt_pair), -1, dtype=np.int64)
    gt_position[found] = position_of_row[by_pair[place_or_last[found]]]
    return JudgedPairs(
        query_ids=query_ids, order=order, query=query_code[order], score=scores[order], correct=correct[order],
        gt_query=gt_query_code, gt_position=gt_position,
    )


def metrics_of(judged: JudgedPairs) -> CopyMetrics:
    """The metrics of predictions that `judge` has put in order."""
    true_so_far = np.cumsum(judged.correct)
    total = len(judged.gt_query)
    precisions = true_so_far / np.arange(1, len(judged.correct) + 1)
    recalls = true_so_far / total
    reached = np.flatnonzero(precisions >= PRECISION)
    best = reached[np.argmax(recalls[reached])] if len(reached) else None
    ranks = ranks_of_pairs(judged)
    return CopyMetrics(
        muap=float(precisions[judged.correct].sum() / total),  # recall rises by 1 / total at each true row, else by 0
        recall_at_p90=None if best is None else float(recalls[best]),
        threshold_at_p90=None if best is None else float(judged.score[best]),
        recall_rank1=float(np.mean(ranks == 0)),
        recall_rank10=float(np.mean((ranks >= 0) & (ranks < 10))),
        ground_truth_pairs=total,
        predictions=len(judged.correct),
        precisions=precisions,
        recalls=recalls,
        thresholds=judged.score,
    )


def ranks_of_pairs(judged: JudgedPairs) -> np.ndarray:
    """(G,) int64: for each true pair, predictions of its query that score at least as high, less one; -1 where none.

    0 is best. Two true pairs of one query with one score both get the worse rank.
    """
    ranks = np.full(len(judged.gt_query), -1, dtype=np.int64)
    found = judged.gt_position >= 0
    if not found.any():
        return ranks
    fell = np.concatenate([[0], judged.score[1:] < judged.score[:-1]])
    level = np.cumsum(fell)  # 0 for the highest score, the same for equal scores
    width = int(level[-1]) + 1
    keys = np.sort(judged.query * width + level)
    first_of_query = judged.gt_query[found] * width
    at_least = np.searchsorted(keys, first_of_query + level[judged.gt_position[found]], side="right")
    ranks[found] = at_least - np.searchsorted(keys, first_of_query) - 1
    return ranks


def top_pairs(judged: JudgedPairs, keep: np.ndarray | None = None) -> TopPairs:
    """True and false positives among the |GT| best pairs, rejects removed after these were taken and not refilled.

    Args:
        judged: the predictions.
        keep: (N,) bool in the order of the predictions as they were given to `judge`; None keeps all.

    Source: the TP / FP / precision columns of Wang, Sun, Yang, AAAI 2023 (ASL).
    """
    taken = slice(0, len(judged.gt_query))
    correct = judged.correct[taken]
    kept = np.ones(len(correct), dtype=bool) if keep is None else np.asarray(keep, dtype=bool)[judged.order[taken]]
    return TopPairs(
        taken=len(correct),
        true_positives=int((correct & kept).sum()),
        false_positives=int((~correct & kept).sum()),
        rejected_true=int((correct & ~kept).sum()),
        rejected_false=int((~correct & ~kept).sum()),
        threshold=float(judged.score[taken][-1]) if len(correct) else None,
    )


def norm_ratio_keeps(query_norm: np.ndarray, reference_norm: np.ndarray, *, most: float = 1.0) -> np.ndarray:
    """(N,) bool: not (|query| / |reference| > most); the query of a copy shows no more than its reference.

    A ratio of exactly `most` is kept, and so is a pair of two zeros, of which nothing is known.

    Args:
        query_norm, reference_norm: (N,) norms of a candidate pair's two sides, >= 0, of one model.
        most: largest ratio that is kept, > 0; 1 is the published test. A model orders by norm what differs in content;
            copies that show all of their original lie around 1, and a fixed 1 rejects about half of those.

    Source: Wang, Sun, Yang, AAAI 2023 (ASL), the released test.
    """
    return direction(np.asarray(query_norm), np.asarray(reference_norm) * most) != Direction.B_COPIES_A


def trapezoid_average_precision(ranks: np.ndarray | Sequence[int], positives: int) -> float:
    """Area under the precision-recall curve of one search by trapezoids, as Copydays is scored.

    For the k-th hit (from 0) at rank r: ((k / r, or 1 where r = 0) + (k + 1) / (r + 1)) / 2 / positives, summed.

    Args:
        ranks: zero-based ranks of the hits, each once; a positive that was not returned has none.
        positives: how many there are to be found, at least as many as ranks and at least 1.

    Returns:
        In [0, 1].

    Raises:
        DataError: negative, fractional or repeated ranks, or fewer positives than hits.

    Source: Jegou, Douze, Schmid, ECCV 2008 (the Holidays and Copydays evaluation).
    """
    values = np.asarray(ranks)
    if values.size and (values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0):
        raise DataError(f"ranks have to be a list of integers from 0 on, got {values.dtype} of shape {values.shape}")
    at = np.sort(values).astype(np.float64)
    if len(np.unique(at)) < len(at):
        raise DataError("a rank is given twice: two hits of one search cannot stand at the same place")
    if positives < max(1, len(at)):
        raise DataError(f"{len(at)} hits of {positives} positives: give the number of all positives, at least 1")
    hit = np.arange(len(at))
    before = np.where(at == 0, 1.0, hit / np.maximum(at, 1))
    return float(((before + (hit + 1) / (at + 1)) / 2).sum() / positives)


def _as_ids(ids: Ids, name: str) -> np.ndarray:
    """Ids as int64 or as an array of text."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise DataError(f"{name}: ids have to be a list, got shape {array.shape}")
    if not array.size:
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype.kind == "U":
        mixed = not isinstance(ids, np.ndarray) and any(not isinstance(one, str) for one in ids)
        if not mixed:
            return array
    elif array.dtype.kind == "O" and all(isinstance(one, str) for one in array):
        return array
    elif array.dtype.kind == "O" and all(isinstance(one, int | np.integer) for one in array):
        return array.astype(np.int64)
    raise DataError(f"{name}: ids have to be all integers or all text, got {array.dtype} ({array[0]!r} ...)")


def _as_scores(score: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(score)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise DataError(f"scores have to be a list of numbers, got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64)
    missing = np.flatnonzero(np.isnan(array))
    if len(missing):
        raise DataError(f"score {missing[0]} (from 0) is not a number, as are {len(missing) - 1} more; remove the rows")
    return array


def _codes(columns: list[np.ndarray], name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """One numbering for the ids of several columns -> (codes of each column, ids by code)."""
    integer = {column.dtype.kind == "i" for column in columns if column.size}
    if len(integer) > 1:
        raise DataError(f"{name} ids are integers in one of predictions and ground truth and text in the other")
    if integer == {True}:
        values, inverse = np.unique(np.concatenate(columns).astype(np.int64), return_inverse=True)
        return np.split(inverse.reshape(-1), [len(columns[0])]), values
    code_of: dict[str, int] = {}  # a dictionary, because sorting half a million texts takes ten times as long
    codes = [
        np.fromiter((code_of.setdefault(one, len(code_of)) for one in column.tolist()), np.int64, len(column))
        for column in columns
    ]
    return codes, np.array(list(code_of), dtype=object)
