"""Whether a difference between two variants could be chance: over training seeds, and over test images.

Two questions, two tests. Over seeds: would training both once more, with another seed, give the same order? Over
images: would these trained networks keep their order on other test images of the same kind? Neither answers the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ascl.analysis.query_ranks import QueryRanks
from ascl.core.errors import DataError

RECALLS = (1, 5, 10)        # Rsum is the sum of these recalls in both directions
MOST_SEEDS = 20             # of the exact sign-flip test: 2**20 patterns
BLOCK = 2**22               # numbers held at once by the bootstrap


@dataclass(frozen=True)
class Interval:
    """Lower and upper end, in the unit of what it is an interval of."""

    low: float
    high: float


# Over seeds


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Exact two-sided p value of "the differences are as likely positive as negative", by every pattern of signs.

    It assumes nothing but that each difference is as likely as its negative. With n differences it is never below
    2 / 2**n: no fewer than 6 can reach 0.05.

    Args:
        differences: one for each seed, any unit.

    Returns:
        Share of the 2**n sign patterns whose sum is at least as far from 0; None for no or more than 20 differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(values) <= MOST_SEEDS:
        return None
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    slack = 1e-9 * np.abs(values).sum()         # patterns that are equal but for rounding count as equal
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - slack))


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p value of Student's paired t-test of "the mean difference is 0".

    It assumes that the differences are normally distributed, which so few cannot show.

    Returns:
        0 to 1; None for fewer than two differences. 1 where all are 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    error = _standard_error(values)
    if error == 0:
        return 1.0 if values.mean() == 0 else 0.0
    return _outside(abs(float(values.mean())) / error, len(values) - 1)


def t_interval(differences: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Interval of the mean difference that belongs to `paired_t_test`; None for fewer than two differences."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    half = _t_quantile(1 - level, len(values) - 1) * _standard_error(values)
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _outside(t: float, freedom: int) -> float:
    """Probability that Student's t with `freedom` degrees of freedom lies outside [-t, t].

    The finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    cos = math.cos(angle)
    odd = freedom % 2 == 1
    term = cos if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(3 if odd else 2, freedom - 1, 2):
        term *= cos * cos * (power - 1) / power
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1.0 - inside))


def _t_quantile(outside: float, freedom: int) -> float:
    """The t that is exceeded on either side with probability `outside`, by bisection."""
    low, high = 0.0, 1.0
    while _outside(high, freedom) > outside:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > outside else (low, middle)
    return (low + high) / 2


# Over test images


@dataclass(frozen=True)
class BootstrapResult:
    """Of `bootstrap_rsum`; difference and interval in points of Rsum."""

    difference: float
    interval: Interval
    p: float


def bootstrap_rsum(
    reference: Sequence[QueryRanks], other: Sequence[QueryRanks], *, draws: int = 10_000, seed: int = 0,
    level: float = 0.95,
) -> BootstrapResult:
    """Paired bootstrap over test images of Rsum(other) - Rsum(reference), each averaged over its runs.

    An image is drawn together with all of its captions, and for both sides at once. Ranks are not computed anew: each
    query keeps its competitors.

    Args:
        reference, other: ranks of the runs, all of the same queries; the same seeds on both sides where there are any.
        draws: resamples of as many images as there are.
        level: of the percentile interval.

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
    gained = _mean_hits(other) - _mean_hits(reference)
    columns = np.concatenate([gained, image_counts(reference[0])[[1, 3]]]).T        # (images, 4)
    drawn = np.concatenate([_rsum(weights @ columns) for weights in _weights(len(columns), draws, seed)])
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    extreme = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return BootstrapResult(
        difference=float(_rsum(columns.sum(axis=0, keepdims=True))[0]), interval=Interval(float(low), float(high)),
        p=min(1.0, 2 * (extreme + 1) / (draws + 1)),
    )


def image_counts(ranks: QueryRanks) -> np.ndarray:
    """Hits and queries of every image that is asked for, in order of the images.

    Returns:
        (4, images) float64: hits of the image's own query summed over R@1, R@5 and R@10; its queries (0 or 1); hits of
        its captions' queries; its captions' queries.
    """
    owners = ranks.owner[ranks.text_queries]
    known = np.union1d(ranks.image_queries, owners)
    counts = np.zeros((4, len(known)))
    for row, queries, found in ((0, ranks.image_queries, ranks.i2t), (2, owners, ranks.t2i)):
        place = np.searchsorted(known, queries)
        np.add.at(counts[row], place, (found[:, None] < np.array(RECALLS)).sum(axis=1))
        np.add.at(counts[row + 1], place, 1)
    return counts


def _mean_hits(runs: Sequence[QueryRanks]) -> np.ndarray:
    """(2, images): hits of the image's query and of its captions', averaged over the runs."""
    return np.mean([image_counts(ranks)[[0, 2]] for ranks in runs], axis=0)


def _rsum(sums: np.ndarray) -> np.ndarray:
    """(n, 4) sums of hits i2t, hits t2i, queries i2t, queries t2i over the drawn images -> (n,) points of Rsum."""
    queries = np.maximum(sums[:, 2:], 1)        # a draw without any query of one direction has no hits of it either
    # thirds and fifths do not cancel to the last bit, and a difference of exactly nothing has to count as one
    return np.round(100 * (sums[:, :2] / queries).sum(axis=1), 9)


def _weights(images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, (block, images) at a time, `draws` rows in all."""
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // images)
    for first in range(0, draws, block):
        rows = min(block, draws - first)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


# Several variants at once


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: p values as they stand when all of these were tested at once; None stays None, uncounted.

    Returns:
        For the i-th smallest of m: the largest of (m - j) p_j over j <= i, at most 1 (j from 0).
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for smaller, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - smaller) * p))
        corrected[place] = largest
    return corrected
