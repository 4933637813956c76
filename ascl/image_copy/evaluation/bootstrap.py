"""Bootstrap intervals of the metrics over the queries: what another sample of queries would have given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ascl.core.errors import DataError
from ascl.core.statistics import Interval, percentile_interval, resamples
from ascl.image_copy.evaluation.judged import JudgedPairs
from ascl.image_copy.evaluation.metrics import PRECISION, ranks_of_pairs


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals over `samples` draws of the queries; None if no draw had a true pair."""

    muap: Interval | None
    recall_at_p90: Interval | None  # a sample that never reaches P90 counts as recall 0
    recall_rank1: Interval | None
    samples: int  # draws that had a true pair (the metrics of the others are undefined)
    confidence: float  # of the intervals, 0.95 for example
    seed: int  # of the draws


def bootstrap_intervals(judged: JudgedPairs, queries: int, *, samples: int, seed: int,
                        confidence: float = 0.95) -> Bootstrap:
    """Return intervals of the metrics over draws of as many queries as there are, with replacement.

    A query that is drawn k times is in the list k times, with all its predictions and true pairs. The list is sorted
    once and each draw weighs its rows, so a draw costs one pass; the values are those of the drawn list.

    Args:
        judged: the predictions.
        queries: number of all queries, the sampled unit; includes those without predictions and without a reference.
        samples, seed: number of draws, and their seed.
        confidence: share of the draws inside the interval.

    Raises:
        DataError: fewer queries than the predictions and the ground truth name, or samples < 1.

    Example:
        >>> from ascl.image_copy import judge
        >>> judged = judge([1, 2], [7, 9], [0.9, 0.8], gt_query=[1, 2], gt_reference=[7, 9])    # all are right
        >>> bootstrap_intervals(judged, queries=2, samples=10, seed=0).muap
        Interval(low=1.0, high=1.0)
    """
    if queries < len(judged.query_ids):
        raise DataError(f"{queries} queries were given, but predictions and ground truth name {len(judged.query_ids)}")
    if samples < 1:
        raise DataError(f"{samples} bootstrap samples: give at least 1")
    first = ranks_of_pairs(judged) == 0
    true_rows = np.flatnonzero(judged.correct)
    true_query = judged.query[true_rows]
    values = np.full((samples, 3), np.nan)
    draws = (times for block in resamples(queries, samples, seed) for times in block)
    for sample, times in enumerate(draws):
        positives = times[judged.gt_query].sum()
        if positives == 0:
            continue
        times_true = times[true_query]
        true_after = np.cumsum(times_true)
        rows_after = np.cumsum(times[judged.query])[true_rows]
        copies = np.repeat(true_after, times_true)      # the copies of a true row are consecutive
        true = np.arange(1, len(copies) + 1)
        precision_at = true / (np.repeat(rows_after, times_true) - (copies - true))
        drawn = times_true > 0
        reached = true_after[drawn] / rows_after[drawn] >= PRECISION    # the last copy has the best precision
        values[sample] = (precision_at.sum(), true_after[drawn][reached].max(initial=0),
                          times[judged.gt_query[first]].sum())
        values[sample] /= positives
    kept = values[~np.isnan(values[:, 0])]
    muap, recall_at_p90, recall_rank1 = (percentile_interval(column, confidence) if len(kept) else None
                                         for column in kept.T)
    return Bootstrap(muap, recall_at_p90, recall_rank1, len(kept), confidence, seed)
