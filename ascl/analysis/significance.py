"""Test whether the difference between two variants could be chance: over training seeds, and over test images.

The two tests answer different questions. Over seeds: would retraining both with other seeds give the same order? Over
images: would these trained networks keep their order on other test images of the same kind?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ascl.analysis.query_ranks import QueryRanks
from ascl.core.errors import DataError
from ascl.core.statistics import BLOCK, Interval, percentile_interval, resamples

RECALL_AT = (1, 5, 10)      # Rsum is the sum of these recalls in both directions
MOST_SEEDS = 20             # in the exact sign-flip test: 2**20 patterns


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p value of the null hypothesis "each difference is as likely as its negative".

    It makes no other assumption. With n differences p is at least 2 / 2**n, so 0.05 needs 6 or more.

    Returns:
        The share of the 2**n sign patterns whose sum is at least as far from 0; None for 0 or more than 20 differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(values) <= MOST_SEEDS:
        return None
    sums = np.zeros(1)      # scipy's permutation_test takes seconds for 20 differences and refuses a single one
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    slack = 1e-9 * np.abs(values).sum()         # sums that differ by rounding only count as equal
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - slack))


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of Student's paired t-test of "the mean difference is 0"; None for fewer than two.

    It assumes normally distributed differences, which a few of them cannot confirm. It is 1 if all are 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:                         # t is not defined
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def t_interval(differences: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Return the confidence interval of the mean difference for `paired_t_test`; None for fewer than two."""
    if len(differences) < 2:
        return None
    mean = float(np.mean(differences))
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences))
    return Interval(mean - half, mean + half)


class BootstrapResult(NamedTuple):
    """The result of `bootstrap_rsum`; difference and interval in points of Rsum."""

    difference: float
    interval: Interval
    p: float


def bootstrap_rsum(reference: Sequence[QueryRanks], other: Sequence[QueryRanks], *, draws: int = 10_000, seed: int = 0,
                   level: float = 0.95, block: int = BLOCK) -> BootstrapResult:
    """Bootstrap Rsum(other) - Rsum(reference), each averaged over its runs, over the test images.

    An image is drawn together with all its captions, and for both sides at once. Ranks are not recomputed: each query
    keeps its competitors.

    Args:
        reference, other: ranks of the runs, all of the same queries; pass the same seeds on both sides.
        draws: number of resamples, each as large as the set of images.
        level: of the percentile interval.
        block: numbers in memory at a time.

    Returns:
        The difference, its interval, and p = 2 min(share of draws <= 0, share >= 0); one draw is added to each share,
        so that it is never 0.

    Raises:
        DataError: the runs ranked different queries.
        ValueError: one side has no runs.
    """
    if not reference or not other:
        raise ValueError("bootstrap_rsum needs at least one run on both sides")
    if any(not reference[0].same_queries(ranks) for ranks in [*reference, *other]):
        raise DataError("these runs ranked different queries: evaluate all of them on the same split of the same data")
    before, after = (np.mean([image_counts(ranks) for ranks in runs], axis=0) for runs in (reference, other))
    gained = np.stack([after[0] - before[0], before[1], after[2] - before[2], before[3]], axis=1)       # (images, 4)
    drawn = np.concatenate([_rsum(counts @ gained) for counts in resamples(len(gained), draws, seed, block=block)])
    extreme = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return BootstrapResult(difference=float(_rsum(gained.sum(axis=0, keepdims=True))[0]),
                           interval=percentile_interval(drawn, level), p=min(1.0, 2 * (extreme + 1) / (draws + 1)))


def image_counts(ranks: QueryRanks) -> np.ndarray:
    """Return the hits and queries of every image that occurs in a query, in order of the images.

    Returns:
        (4, images) float64: hits of the image's query, summed over R@1, R@5 and R@10; its number of queries (0 or 1);
        hits of its captions' queries; their number.
    """
    owners = ranks.owner[ranks.text_queries]
    known = np.union1d(ranks.image_queries, owners)
    counts = []
    for queries, found in ((ranks.image_queries, ranks.i2t), (owners, ranks.t2i)):
        place = np.searchsorted(known, queries)
        hits = (found[:, None] < np.array(RECALL_AT)).sum(axis=1)
        counts += [np.bincount(place, weights, len(known)) for weights in (hits, np.ones(len(hits)))]
    return np.stack(counts)


def _rsum(sums: np.ndarray) -> np.ndarray:
    """Return Rsum in points, (n,), for sums (n, 4) of `image_counts` over the drawn images."""
    queries = np.maximum(sums[:, 1::2], 1)      # a draw without queries of one direction has no hits either
    # rounded, because thirds and fifths leave rounding errors and a difference of exactly 0 must be 0
    return np.round(100 * (sums[:, ::2] / queries).sum(axis=1), 9)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values with Holm's correction for multiple tests; None stays None and does not count.

    scipy's `false_discovery_control` bounds the share of false discoveries instead of the chance of any.

    Returns:
        For the i-th smallest of m: the largest of (m - j) p_j over j <= i, at most 1 (j from 0).
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    scaled = np.maximum.accumulate([min(1.0, (len(order) - smaller) * p) for smaller, (p, _) in enumerate(order)])
    corrected = {place: p for (_, place), p in zip(order, scaled.tolist(), strict=True)}
    return [corrected.get(place) for place in range(len(p_values))]
