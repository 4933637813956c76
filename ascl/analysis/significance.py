"""Whether a difference between two variants could be chance: over training seeds, and over test images.

Two questions, two tests. Over seeds: would training both once more, with another seed, give the same order? Over
images: would these trained networks keep their order on other test images of the same kind? Neither answers the other.
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
MOST_SEEDS = 20             # of the exact sign-flip test: 2**20 patterns


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p value of "each difference is as likely as its negative", by every sign pattern.

    It assumes nothing else. With n differences it is never below 2 / 2**n: no fewer than 6 can reach 0.05.

    Returns:
        Share of the 2**n sign patterns whose sum is at least as far from 0; None for no or more than 20 differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(values) <= MOST_SEEDS:
        return None
    sums = np.zeros(1)      # scipy's permutation_test takes seconds for 20 differences, and refuses a single one
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    slack = 1e-9 * np.abs(values).sum()         # patterns that are equal but for rounding count as equal
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - slack))


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of Student's paired t-test of "the mean difference is 0"; 1 where all are 0.

    It assumes that the differences are normally distributed, which a few of them cannot show. None for fewer than two.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:                         # where t is not defined
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def t_interval(differences: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Return the interval of the mean difference that belongs to `paired_t_test`; None for fewer than two."""
    if len(differences) < 2:
        return None
    mean = float(np.mean(differences))
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences))
    return Interval(mean - half, mean + half)


class BootstrapResult(NamedTuple):
    """What `bootstrap_rsum` found; difference and interval in points of Rsum."""

    difference: float
    interval: Interval
    p: float


def bootstrap_rsum(reference: Sequence[QueryRanks], other: Sequence[QueryRanks], *, draws: int = 10_000, seed: int = 0,
                   level: float = 0.95, block: int = BLOCK) -> BootstrapResult:
    """Bootstrap Rsum(other) - Rsum(reference), each averaged over its runs, over the test images.

    An image is drawn together with all of its captions, and for both sides at once. Ranks are not computed anew: each
    query keeps its competitors.

    Args:
        reference, other: ranks of the runs, all of the same queries; the same seeds on both sides where there are any.
        draws: resamples of as many images as there are.
        level: of the percentile interval.
        block: numbers in memory at a time.

    Returns:
        The difference, its interval, and p = 2 min(share of draws <= 0, share >= 0), each share counted with one more
        draw on its side, so that it is never 0.

    Raises:
        DataError: the runs ranked different queries.
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
    """Return the hits and queries of every image that is asked for, in order of the images.

    Returns:
        (4, images) float64: hits of the image's own query summed over R@1, R@5 and R@10; its queries (0 or 1); hits of
        its captions' queries; its captions' queries.
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
    """(n, 4) sums of `image_counts` over the drawn images -> (n,) points of Rsum."""
    queries = np.maximum(sums[:, 1::2], 1)      # a draw without any query of one direction has no hits of it either
    # thirds and fifths do not cancel to the last bit, and a difference of exactly nothing has to count as one
    return np.round(100 * (sums[:, ::2] / queries).sum(axis=1), 9)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values with Holm's correction for testing all of these at once; None stays None and does not count.

    scipy's `false_discovery_control` bounds the share of false discoveries, not the chance of any.

    Returns:
        For the i-th smallest of m: the largest of (m - j) p_j over j <= i, at most 1 (j from 0).
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    scaled = np.maximum.accumulate([min(1.0, (len(order) - smaller) * p) for smaller, (p, _) in enumerate(order)])
    corrected = {place: p for (_, place), p in zip(order, scaled.tolist(), strict=True)}
    return [corrected.get(place) for place in range(len(p_values))]
