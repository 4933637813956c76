"""Metrics of copy detection: micro average precision and its kin, over one list of scored (query, reference) pairs.

`judge` makes that list once, in the order of all metrics; everything else counts in it.
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
    """What `micro_average_precision` returns; fractions in [0, 1]."""

    muap: float  # micro average precision
    recall_at_p90: float | None  # largest recall at a precision of at least 0.9; None where none is reached
    threshold_at_p90: float | None  # the score at the first place that has this recall; None as above
    recall_rank1: float  # share of the true pairs that come first among their query's predictions (a tie is lost)
    recall_rank10: float  # as recall_rank1, among the first ten
    ground_truth_pairs: int  # the denominator of every recall, pairs that nobody predicted included
    predictions: int  # rows that were counted
    precisions: np.ndarray  # (predictions,) the curve, by falling score, as are recalls and thresholds
    recalls: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class RankedPairs:
    """The first |GT| pairs, once some of them were rejected."""

    taken: int  # by score; |GT|, fewer where fewer were predicted
    true_positives: int  # of those that were kept
    false_positives: int
    rejected_true: int  # of those that the filter removed
    rejected_false: int
    threshold: float | None  # score of the last pair taken; None where none was

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP), None where nothing was kept."""
        kept = self.true_positives + self.false_positives
        return self.true_positives / kept if kept else None


def micro_average_precision(query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids,
                            gt_reference: Ids) -> CopyMetrics:
    """Return the micro average precision (muAP) of scored pairs, and what is read off the same curve.

    muAP = sum_i (R_i - R_{i-1}) P_i over all predictions of all queries in one list, P_i = TP_i / i, R_i = TP_i / |GT|.
    Predictions for a query without a reference (a distractor) are false positives.

    Args:
        query, reference: (N,) ids of the predicted pairs, integers or text.
        score: (N,) higher = more alike, on any scale.
        gt_query, gt_reference: (G,) ids of the true pairs, of the same type as the predictions'.

    Raises:
        DataError: as `judge`.

    Source: Perronnin, Liu, Renders, CVPR 2009; the 2021 Image Similarity Challenge (arXiv 2106.09672) for the ties.
    """
    return metrics_of(judge(query, reference, score, gt_query, gt_reference))


def metrics_of(judged: JudgedPairs) -> CopyMetrics:
    """Return the metrics of predictions that `judge` has put in order."""
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
    """Return (G,) int64: how many predictions of a true pair's query score at least as high, less one; -1 if none.

    0 is best. Two true pairs of one query with one score both get the worse rank.
    """
    ranks = np.full(len(judged.gt_query), -1, dtype=np.int64)
    found = judged.gt_position >= 0
    level = np.cumsum(np.append(0, judged.score[1:] < judged.score[:-1]))  # 0 for the highest, the same for equal ones
    width = len(level)
    keys = np.sort(judged.query * width + level)
    first_of_query = judged.gt_query[found] * width
    at_least = np.searchsorted(keys, first_of_query + level[judged.gt_position[found]], side="right")
    ranks[found] = at_least - np.searchsorted(keys, first_of_query) - 1
    return ranks


def top_pairs(judged: JudgedPairs, keep: np.ndarray | None = None) -> RankedPairs:
    """Count true and false positives among the |GT| best pairs; rejects are removed afterwards and not refilled.

    Args:
        judged: the predictions.
        keep: (N,) bool in the order of the predictions as they were given to `judge`; None keeps all.

    Source: the TP / FP / precision columns of Wang, Sun, Yang, AAAI 2023 (ASL).
    """
    taken = slice(0, len(judged.gt_query))
    correct = judged.correct[taken]
    kept = np.ones(len(correct), dtype=bool) if keep is None else np.asarray(keep, dtype=bool)[judged.order[taken]]
    return RankedPairs(taken=len(correct), true_positives=int((correct & kept).sum()),
                       false_positives=int((~correct & kept).sum()), rejected_true=int((correct & ~kept).sum()),
                       rejected_false=int((~correct & ~kept).sum()),
                       threshold=float(judged.score[taken][-1]) if len(correct) else None)


def norm_ratio_keeps(query_norm: np.ndarray, reference_norm: np.ndarray, *, most: float = 1.0) -> np.ndarray:
    """Return (N,) bool: not (|query| / |reference| > most); a copy shows no more than its reference.

    A ratio of exactly `most` is kept, and so is a pair of two zeros, of which nothing is known.

    Args:
        query_norm, reference_norm: (N,) norms of a candidate pair's two sides, >= 0, of one model.
        most: largest ratio that is kept, > 0; 1 is the published test. A model orders by norm what differs in content;
            copies that show all of their original lie around 1, and a fixed 1 rejects about half of those.

    Source: Wang, Sun, Yang, AAAI 2023 (ASL), the released test.
    """
    return direction(np.asarray(query_norm), np.asarray(reference_norm) * most) != Direction.B_COPIES_A


def trapezoid_average_precision(ranks: np.ndarray | Sequence[int], positives: int) -> float:
    """Return the area under the precision-recall curve of one search by trapezoids, as Copydays is scored.

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
