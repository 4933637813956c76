"""Metrics of copy detection: micro average precision and others, over one list of scored (query, reference) pairs.

`judge` makes that list once, in the order of all metrics; the metrics count in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ascl.asymmetry import Direction, direction
from ascl.core.errors import DataError
from ascl.image_copy.evaluation.judged import Ids, JudgedPairs, judge

PRECISION = 0.9  # of "recall at precision 90"


@dataclass(frozen=True, eq=False)
class CopyMetrics:
    """The result of `micro_average_precision`; fractions in [0, 1]."""

    muap: float  # micro average precision
    recall_at_p90: float | None  # largest recall at a precision of at least 0.9; None if that is never reached
    threshold_at_p90: float | None  # the score at the first position with this recall; None as above
    recall_rank1: float  # share of the true pairs that come first among their query's predictions (a tie is lost)
    recall_rank10: float  # as recall_rank1, among the first ten
    ground_truth_pairs: int  # the denominator of every recall; includes pairs that were not predicted
    predictions: int  # rows that were counted
    precisions: np.ndarray  # (predictions,) the curve, by descending score, as the next two
    recalls: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class RankedPairs:
    """Counts among the |GT| best pairs, after a filter has rejected some of them."""

    taken: int  # by score; |GT|, or fewer if fewer were predicted
    true_positives: int  # among the pairs that the filter keeps
    false_positives: int
    rejected_true: int  # among the pairs that it rejects
    rejected_false: int
    threshold: float | None  # score of the last pair taken; None without pairs

    @property
    def precision(self) -> float | None:
        """Return TP / (TP + FP), or None if no pair was kept."""
        kept = self.true_positives + self.false_positives
        return self.true_positives / kept if kept else None


def micro_average_precision(query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids,
                            gt_reference: Ids) -> CopyMetrics:
    """Return the micro average precision (muAP) of scored pairs, and the other metrics of the same curve.

    muAP = sum_i (R_i - R_{i-1}) P_i over all predictions of all queries in one list, P_i = TP_i / i, R_i = TP_i / |GT|.
    Predictions for a query without a reference (a distractor) are false positives.
    Source: Perronnin, Liu, Renders, CVPR 2009; the 2021 Image Similarity Challenge (arXiv 2106.09672) for the ties.

    Args:
        query, reference: (N,) ids of the predicted pairs, integers or text.
        score: (N,) higher = more alike, on any scale.
        gt_query, gt_reference: (G,) ids of the true pairs, of the same type as the predictions'.

    Raises:
        DataError: as `judge`.

    Example:
        >>> found = micro_average_precision(["q1", "q1", "q2"], ["r1", "r9", "r2"], [0.9, 0.8, 0.7],
        ...                                 gt_query=["q1", "q2"], gt_reference=["r1", "r2"])
        >>> round(found.muap, 4)                            # right, wrong, right: (1 / 1 + 2 / 3) / 2
        0.8333
        >>> found.recall_at_p90, found.recall_rank1         # q2 falls below 90 % precision, but is first in its query
        (0.5, 1.0)
    """
    return metrics_of(judge(query, reference, score, gt_query, gt_reference))


def metrics_of(judged: JudgedPairs) -> CopyMetrics:
    """Return the metrics of judged predictions."""
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
    """Return (G,) int64, the rank of each true pair among its query's predictions; -1 if it was not predicted.

    0 is best. The rank counts the other predictions that score at least as high, so a tie counts as lost, also between
    two true pairs.
    """
    ranks = np.full(len(judged.gt_query), -1, dtype=np.int64)
    found = judged.gt_position >= 0
    level = np.cumsum(np.append(0, judged.score[1:] < judged.score[:-1]))  # 0 = highest; equal scores share a level
    width = len(level)
    keys = np.sort(judged.query * width + level)
    first_of_query = judged.gt_query[found] * width
    at_least = np.searchsorted(keys, first_of_query + level[judged.gt_position[found]], side="right")
    ranks[found] = at_least - np.searchsorted(keys, first_of_query) - 1
    return ranks


def top_pairs(judged: JudgedPairs, keep: np.ndarray | None = None) -> RankedPairs:
    """Return the true and false positives among the |GT| best pairs; rejected pairs are not replaced by others.

    Source: the TP / FP / precision columns of Wang, Sun, Yang, AAAI 2023 (ASL).

    Args:
        judged: the predictions.
        keep: (N,) bool in the order in which `judge` got the predictions; None keeps all.

    Example:
        >>> judged = judge([1, 1, 2], [7, 8, 9], [0.9, 0.8, 0.7], gt_query=[1, 2], gt_reference=[7, 9])
        >>> top_pairs(judged).precision                     # the best two pairs: one is right
        0.5
        >>> top_pairs(judged, keep=np.array([True, False, True])).precision         # a filter rejects the wrong one
        1.0
    """
    taken = slice(0, len(judged.gt_query))
    correct = judged.correct[taken]
    kept = np.ones(len(correct), dtype=bool) if keep is None else np.asarray(keep, dtype=bool)[judged.order[taken]]
    return RankedPairs(taken=len(correct), true_positives=int((correct & kept).sum()),
                       false_positives=int((~correct & kept).sum()), rejected_true=int((correct & ~kept).sum()),
                       rejected_false=int((~correct & ~kept).sum()),
                       threshold=float(judged.score[taken][-1]) if len(correct) else None)


def norm_ratio_keeps(query_norm: np.ndarray, reference_norm: np.ndarray, *, most: float = 1.0) -> np.ndarray:
    """Return (N,) bool, True unless |query| / |reference| > most, because a copy shows no more than its reference.

    A ratio of exactly `most` is kept, and so are two zero norms, which say nothing.
    Source: Wang, Sun, Yang, AAAI 2023 (ASL), the released test.

    Args:
        query_norm, reference_norm: (N,) norms of the two sides of candidate pairs, >= 0, from one model.
        most: largest ratio that is kept, > 0; 1 is the published test. Norms only order pairs that differ in content:
            the ratios of copies that show all of their original lie around 1, and a `most` of 1 rejects about half of
            them.

    Example:
        >>> norm_ratio_keeps(np.array([1.0, 2.0, 1.0]), np.array([2.0, 1.0, 1.0])).tolist()
        [True, False, True]
    """
    return direction(np.asarray(query_norm), np.asarray(reference_norm) * most) != Direction.B_COPIES_A


def trapezoid_average_precision(ranks: np.ndarray | Sequence[int], positives: int) -> float:
    """Return the area under the precision-recall curve of one search by trapezoids, as Copydays is scored.

    It sums ((k / r, or 1 if r = 0) + (k + 1) / (r + 1)) / 2 / positives over the hits; r is the rank of the k-th hit
    (from 0). Source: Jegou, Douze, Schmid, ECCV 2008 (the Holidays and Copydays evaluation).

    Args:
        ranks: zero-based ranks of the hits, each once; a positive that was not found has no rank.
        positives: number of all positives, at least the number of ranks and at least 1.

    Returns:
        In [0, 1].

    Raises:
        DataError: negative, fractional or repeated ranks, or fewer positives than hits.

    Example:
        >>> trapezoid_average_precision([0, 1], positives=2)
        1.0
        >>> trapezoid_average_precision([1], positives=1)               # second place: (0 / 1 + 1 / 2) / 2
        0.25
    """
    values = np.asarray(ranks)
    if values.size and (values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0):
        raise DataError(f"ranks must be a list of integers from 0 on, got {values.dtype} of shape {values.shape}")
    at = np.sort(values).astype(np.float64)
    if len(np.unique(at)) < len(at):
        raise DataError("a rank is given twice: two hits of one search cannot have the same rank")
    if positives < max(1, len(at)):
        raise DataError(f"{len(at)} hits of {positives} positives: give the number of all positives, at least 1")
    hit = np.arange(len(at))
    before = np.where(at == 0, 1.0, hit / np.maximum(at, 1))
    return float(((before + (hit + 1) / (at + 1)) / 2).sum() / positives)
