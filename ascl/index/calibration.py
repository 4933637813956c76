"""Choose a score threshold from unrelated images, and estimate the false-positive rate above it.

These images are a background of which the index holds no copy, or the index's own, each without itself and its copies.

A background image that scores at least the threshold against the index is a false positive. The threshold is the lowest
one whose expected share of false positives is at most the wanted rate. A Clopper-Pearson interval says how well that
share is known. The rate counts queries, not pairs, and holds for the searched index: the more images an index has, the
higher the best score of an unrelated query.

The next unrelated query reaches a threshold just above the (a + 1)-th best of n background scores with probability
(a + 1) / (n + 1), and not a / n, because its score is equally likely to take any of the n + 1 places.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv

from ascl.core.errors import DataError

Source = Literal["background", "index"]     # where the unrelated images come from
IMAGES: dict[Source, str] = {"background": "background images", "index": "images of the index"}
OWN_IMAGES = ("the threshold comes from the index's own images, and geometry chose which of them are no copies of one "
              "another: copies that it did not recognize raise the threshold, and likenesses that it took for copies "
              "lower it. Calibrate with unrelated images for a rate to rely on")
GROWTH_WARNED = 0.1     # relative growth of the index since the calibration from which the user is warned
GROWTH_REFUSED = 1.0    # ... and from which matches are no longer called copies or not


@dataclass(frozen=True)
class Rate:
    """A counted share: `count` of `total`, and the confidence interval of the true share."""

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
    """Score normalization: score - weight * mean of the query's background scores at ranks start to end, from 0."""

    weight: float = 1.0
    start: int = 0
    end: int = 2


@dataclass(frozen=True)
class Nearest:
    """A background image (its path), and the image of the index (its id) that resembles it most."""

    path: str
    match: str
    score: float


@dataclass(frozen=True)
class Calibration:
    """A threshold and how it was found; stored with the index."""

    threshold: float  # a match is a copy if its score is at least this
    wanted: float  # the false-positive rate that was asked for
    achieved: Rate  # the rate on the background
    confidence: float  # confidence level of every interval
    images: int  # images in the index when it was calibrated
    added: int  # rows ever added to it by then
    left_out: dict[str, int]  # reason -> number of background images that did not count
    nearest: tuple[Nearest, ...]  # background images with the highest scores, best first, for a look by eye
    score_norm: ScoreNorm | None  # None = scores are not normalized
    warnings: tuple[str, ...]  # what a user should know about it
    source: Source = "background"  # which images it was calibrated with

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as a dict, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Calibration:
        """Return the calibration that `to_dict` wrote; other keys are ignored, DataError if one is missing."""
        try:
            fields = {"source": "background"} | fields      # calibrations of earlier versions do not say so
            own = {name: fields[name] for name in cls.__dataclass_fields__}
            own["achieved"] = Rate(**own["achieved"])
            own["nearest"] = tuple(Nearest(**one) for one in own["nearest"])
            own["score_norm"] = None if own["score_norm"] is None else ScoreNorm(**own["score_norm"])
            return cls(**own | {"warnings": tuple(own["warnings"])})
        except (KeyError, TypeError) as error:
            raise DataError(f"the stored calibration has another shape ({error!r}): calibrate again") from error


def calibrated(scores: np.ndarray, rate: float, *, confidence: float, images: int, added: int, left_out: dict[str, int],
               score_norm: ScoreNorm | None, nearest: tuple[Nearest, ...] = (), source: Source = "background"
               ) -> Calibration:
    """Return the threshold for a wanted false-positive rate.

    Args:
        scores: (n,) best score of each unrelated image against the index; at most 1 unless they are normalized.
        rate: wanted share of false positives, in (0, 1).
        confidence: confidence level of the interval, in (0, 1).
        images, added, left_out, score_norm, nearest, source: see `Calibration`.

    Raises:
        DataError: rate or confidence is out of range, there is no score, or a score is NaN.
    """
    for what, share, example in (("false-positive rate", rate, "1e-3"), ("confidence", confidence, "0.95")):
        if not 0 < share < 1:
            raise DataError(f"a {what} of {share:g}: give one between 0 and 1, such as {example}")
    if source == "index" and not len(scores):
        raise DataError(f"no image of the index is left to calibrate with (left out: {listed(left_out)}); give "
                        "unrelated images")
    if not len(scores):
        raise DataError(f"no background image is left to calibrate with (left out: {listed(left_out)}); give others")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} background scores are not a number; check the model's weights")
    threshold = lowest_threshold(scores, rate)
    count = int((scores >= threshold).sum())
    achieved = rate_of(count, len(scores), confidence)
    warnings, used = [OWN_IMAGES] if source == "index" else [], f"{len(scores):,} {IMAGES[source]}"
    fewest = math.ceil(1 / rate - 1e-9) - 1
    if len(scores) < fewest:
        enough = math.ceil(math.log((1 - confidence) / 2) / math.log1p(-rate))  # brings the upper end to `rate`
        warnings.append(f"{used} are too few to measure a false-positive rate of {rate:g}: "
                        f"give at least {fewest:,}, or {enough:,} to show that it is not exceeded. The threshold lies "
                        f"above the best of them, and the true rate may be up to {achieved.high:.2g}")
    elif achieved.high > rate:
        warnings.append(f"the expected rate of this threshold is {rate:g}, but {used} do "
                        f"not show that it is not exceeded: it may be up to {achieved.high:.2g}")
    if score_norm is None and threshold > 1:
        warnings.append(f"no match can be called a copy at this rate: {IMAGES[source]} have the highest possible "
                        "score. Check whether they are in the index under other names, or allow a higher rate")
    return Calibration(threshold, rate, achieved, confidence, images, added, left_out, nearest, score_norm,
                       tuple(warnings), source)


def lowest_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the lowest threshold t whose expected false-positive rate is at most `rate`.

    If a of n scores are >= t, that rate is (a + 1) / (n + 1). If it exceeds `rate` even for a = 0, t lies above all
    scores. Equal scores are on the same side of t. It is the next number of six decimals, so that what is printed and
    what decides are one.
    """
    highest_refused = np.sort(scores)[::-1][allowed_above(len(scores), rate)]
    return (math.floor(float(highest_refused) * 1e6) + 1) / 1e6


def allowed_above(total: int, rate: float) -> int:
    """Return how many of `total` background scores may reach the threshold; less than `total`, because rate < 1."""
    return max(0, math.floor(rate * (total + 1) * (1 + 1e-12)) - 1)     # 0.1 * 30 is a little less than 3


def rate_of(count: int, total: int, confidence: float) -> Rate:
    """Return `count` of `total` with its confidence interval."""
    return Rate(count, total, *clopper_pearson(count, total, confidence))


def clopper_pearson(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Return the exact confidence interval of a share, from `count` successes in `total` trials.

    It covers the true share with a probability of at least `confidence`. `scipy.stats.binomtest` gives the same values
    200 times as slowly, and a query needs one interval per match.

    Source: Clopper and Pearson, Biometrika 26 (1934), by quantiles of the beta distribution.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"expected 0 <= count <= total and total >= 1, got count {count} and total {total}")
    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


def rate_at(score: float, background: np.ndarray, confidence: float) -> Rate:
    """Return the share of background images that reach a score; `background`: (n,) their best scores, ascending."""
    count = len(background) - int(np.searchsorted(background, score, side="left"))
    return rate_of(count, len(background), confidence)


def growth(calibration: Calibration, added: int) -> float:
    """Return the number of images added since the calibration, relative to the images that were there."""
    return (added - calibration.added) / max(1, calibration.images)


def growth_warning(calibration: Calibration, added: int) -> str | None:
    """Return a warning about an index that has grown since its calibration; None if it has not."""
    grown = growth(calibration, added)
    if grown <= GROWTH_WARNED:
        return None
    what = f"the threshold was calibrated at {calibration.images:,} images and {added - calibration.added:,} were " \
           "added since: unrelated queries score higher now"
    return f"{what}. " + ("Calibrate again; until then no match is called a copy or not" if grown > GROWTH_REFUSED
                          else "Calibrate again")


def still_holds(calibration: Calibration, added: int) -> bool:
    """Return whether the index has grown little enough for the threshold to decide what is a copy."""
    return growth(calibration, added) <= GROWTH_REFUSED


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none"
