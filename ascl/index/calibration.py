"""From unrelated background images to a threshold, and to what is known of the false positives above it.

A background image that scores above the threshold against the index is a false positive. The threshold is the lowest
at which the expected share of such images is at most the wanted rate; its Clopper-Pearson interval says how well that
share is known. The rate is one of queries, not of pairs, and belongs to the index that was searched: the more images an
index has, the higher the best score of an unrelated query.

A threshold just above the (a + 1)-th best of n background scores is reached by the next unrelated query with a
probability of (a + 1) / (n + 1), since all n + 1 places are equally likely, and not a / n.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv

from ascl.core.errors import DataError

GROWTH_TOLD = 0.1       # of the index since the calibration, relative: told to the user
GROWTH_REFUSED = 1.0    # no yes or no any more


@dataclass(frozen=True)
class Rate:
    """A share that was counted: `count` of `total`, and the interval that holds the true one."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total

    def to_dict(self) -> dict[str, Any]:
        return {"rate": self.value, "low": self.low, "high": self.high, "count": self.count, "of": self.total}


@dataclass(frozen=True)
class ScoreNorm:
    """Score normalisation by the background: score - weight * mean of the start-th to end-th best background scores."""

    weight: float = 1.0
    start: int = 0
    end: int = 2


@dataclass(frozen=True)
class Nearest:
    """A background image (its path) and the image of the index (its id) that it resembles most."""

    path: str
    match: str
    score: float


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it rests on; stored with the index."""

    threshold: float  # a match is a copy if its score is at least this
    wanted: float  # the rate of false positives that was asked for
    achieved: Rate  # the rate on the background
    confidence: float  # of every interval
    images: int  # in the index when it was searched
    added: int  # rows that had ever been added to it by then
    left_out: dict[str, int]  # background images that did not count, by reason
    nearest: tuple[Nearest, ...]  # background images with the highest scores, best first: to be looked at
    score_norm: ScoreNorm | None  # None = scores as they are
    warnings: tuple[str, ...]  # what a user should know of it

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Calibration:
        """Return what `to_dict` was called on; other keys are passed over."""
        own = {name: fields[name] for name in cls.__dataclass_fields__}
        own["achieved"] = Rate(**own["achieved"])
        own["nearest"] = tuple(Nearest(**one) for one in own["nearest"])
        own["score_norm"] = None if own["score_norm"] is None else ScoreNorm(**own["score_norm"])
        return cls(**own | {"warnings": tuple(own["warnings"])})


def calibrated(scores: np.ndarray, rate: float, *, confidence: float, images: int, added: int, left_out: dict[str, int],
               score_norm: ScoreNorm | None, nearest: tuple[Nearest, ...] = ()) -> Calibration:
    """Return the threshold for a wanted rate of false positives.

    Args:
        scores: (n,) best score of each background image against the index; at most 1 where they are not normalised.
        rate: in (0, 1).
        others: as in `Calibration`.

    Raises:
        DataError: rate or confidence out of range, no score, or one that is not a number.
    """
    for what, share, example in (("false-positive rate", rate, "1e-3"), ("confidence", confidence, "0.95")):
        if not 0 < share < 1:
            raise DataError(f"a {what} of {share:g}: give one between 0 and 1, such as {example}")
    if not len(scores):
        raise DataError(f"no background image is left to calibrate with (left out: {listed(left_out)})")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} background scores are not a number")
    threshold = lowest_threshold(scores, rate)
    count = int((scores >= threshold).sum())
    achieved = rate_of(count, len(scores), confidence)
    warnings = []
    fewest = math.ceil(1 / rate - 1e-9) - 1
    if len(scores) < fewest:
        enough = math.ceil(math.log((1 - confidence) / 2) / math.log1p(-rate))  # brings the upper end to `rate`
        warnings.append(f"{len(scores):,} background images are too few to see a false-positive rate of {rate:g}: it "
                        f"takes at least {fewest:,}, and {enough:,} to show that it is not exceeded. The threshold "
                        f"lies above the best of them, and the true rate may be up to {achieved.high:.2g}")
    elif achieved.high > rate:
        warnings.append(f"a rate of {rate:g} is what this threshold is expected to have; that it is not exceeded is "
                        f"not shown: by {len(scores):,} background images it may be up to {achieved.high:.2g}")
    if score_norm is None and threshold > 1:
        warnings.append("no match can be called a copy at this rate: background images have the highest score there "
                        "is. Look whether they are in the index under other names, or allow a higher rate")
    return Calibration(threshold, rate, achieved, confidence, images, added, left_out, nearest, score_norm,
                       tuple(warnings))


def lowest_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the lowest t with an expected rate of at most `rate`; equal scores stand or fall together.

    With a of n scores >= t that is (a + 1) / (n + 1). Where it is above `rate` even for a = 0, t lies above them all.
    """
    highest_refused = np.sort(scores)[::-1][allowed_above(len(scores), rate)]
    return float(np.nextafter(np.float64(highest_refused), np.inf))


def allowed_above(total: int, rate: float) -> int:
    """Return how many of `total` background scores may reach the threshold; less than `total`, as rate < 1."""
    return max(0, math.floor(rate * (total + 1) * (1 + 1e-12)) - 1)     # 0.1 * 30 is a little less than 3


def rate_of(count: int, total: int, confidence: float) -> Rate:
    """Return `count` of `total` with its interval."""
    return Rate(count, total, *clopper_pearson(count, total, confidence))


def clopper_pearson(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Return the exact interval of a share of which `count` of `total` were seen; covers it with at least `confidence`.

    `scipy.stats.binomtest` has the same values; it takes 200 times as long, and a query asks for each of its matches.

    Source: Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is no share")
    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


def rate_at(score: float, background: np.ndarray, confidence: float) -> Rate:
    """Return how often a background image reaches this score; background: (n,) best scores, ascending."""
    count = len(background) - int(np.searchsorted(background, score, side="left"))
    return rate_of(count, len(background), confidence)


def growth(calibration: Calibration, added: int) -> float:
    """Return the images added to the index since the calibration, relative to those that were there."""
    return (added - calibration.added) / max(1, calibration.images)


def growth_warning(calibration: Calibration, added: int) -> str | None:
    """Return what to tell of an index that has grown since it was calibrated; None = nothing."""
    grown = growth(calibration, added)
    if grown <= GROWTH_TOLD:
        return None
    what = f"the threshold was calibrated at {calibration.images:,} images and {added - calibration.added:,} were " \
           "added since: unrelated queries score higher now"
    return f"{what}. " + ("There is no yes or no until it is calibrated again" if grown > GROWTH_REFUSED
                          else "Calibrate it again")


def still_holds(calibration: Calibration, added: int) -> bool:
    """Whether there is a yes or no."""
    return growth(calibration, added) <= GROWTH_REFUSED


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none"
