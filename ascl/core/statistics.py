"""Confidence intervals and bootstrap resamples, in forms that scipy does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

BLOCK = 2**22               # counts held at once by `resamples`


@dataclass(frozen=True)
class Interval:
    """Lower and upper end, in the unit of the estimated value."""

    low: float
    high: float


def resamples(items: int, draws: int, seed: int, *, block: int = BLOCK) -> Iterator[np.ndarray]:
    """Yield how often each item is drawn in each bootstrap resample: `items` draws with replacement.

    `scipy.stats.bootstrap` draws indices. With counts, a metric that is a sum over items is one matrix product.

    Args:
        items: number of items, >= 1.
        draws: number of resamples.
        seed: seeds `numpy.random.default_rng`.
        block: most counts in memory at a time; it does not change the draws.

    Yields:
        (n, items) int64, `draws` rows in all; each row sums to `items`.
    """
    generator = np.random.default_rng(seed)
    step = max(1, block // items)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        drawn = generator.integers(items, size=(rows, items)) + items * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return the interval that leaves out (1 - level) / 2 of the values on either side."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def wilson_interval(share: float, trials: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share of `trials` >= 1 (Wilson 1927); within [0, 1] and never empty.

    `scipy.stats.binomtest` takes only whole numbers of successes, which the mean share over several runs need not be.
    """
    z = float(ndtri((1 + level) / 2))
    center = share + z**2 / (2 * trials)
    half = z * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    return Interval(max((center - half) / scale, 0.0), min((center + half) / scale, 1.0))
