"""Thresholds and intervals against definitions written out in loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from ascl.core.errors import DataError
from ascl.index import calibration as calibrate
from ascl.index.calibration import (
    Calibration,
    Nearest,
    ScoreNorm,
    calibrated,
    clopper_pearson,
    lowest_threshold,
    rate_at,
)

ABOUT = {"confidence": 0.95, "images": 1000, "added": 1000, "left_out": {}, "score_norm": None}


def tail_by_loop(count: int, total: int, share: float) -> float:
    """Probability of at most `count`."""
    return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count + 1))


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 20), (1, 20), (7, 20), (19, 20), (20, 20), (3, 300)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_is_where_the_tails_have_half_of_the_rest(count, total, confidence):
    low, high = clopper_pearson(count, total, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= low <= count / total <= high <= 1
    assert low == 0 if count == 0 else 1 - tail_by_loop(count - 1, total, low) == pytest.approx(tail, rel=1e-9)
    assert high == 1 if count == total else tail_by_loop(count, total, high) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize(("count", "total", "low", "high"), [
    (81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776),
])
def test_clopper_pearson_as_published(count, total, low, high):
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 5, 95%."""
    assert clopper_pearson(count, total, 0.95) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("count", "total"), [(0, 50_000), (3, 50_000), (2500, 5000), (49_999, 50_000), (7, 7)])
def test_clopper_pearson_in_large_samples_against_the_binomial_test(count, total):
    found, interval = clopper_pearson(count, total, 0.95), binomtest(count, total).proportion_ci(0.95, method="exact")
    assert found == (pytest.approx(interval.low, rel=1e-9), pytest.approx(interval.high, rel=1e-9))
    low = beta.ppf(0.025, count, total - count + 1) if count else 0
    high = beta.ppf(0.975, count + 1, total - count) if count < total else 1
    assert found == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


@given(st.lists(st.integers(0, 12).map(lambda n: n / 8), min_size=1, max_size=60), st.floats(1e-3, 0.999))
def test_the_threshold_is_the_lowest_of_six_decimals_that_keeps_the_rate(scores, rate):
    """(a + 1) / (n + 1), the chance of one more such score, is at most the rate, or no score reaches it."""
    def expected(above):
        return (above + 1) / (len(scores) + 1)

    threshold = lowest_threshold(np.array(scores), rate)
    above = sum(score >= threshold for score in scores)
    assert above == 0 or expected(above) <= rate * (1 + 1e-9)
    assert float(f"{threshold:.6f}") == threshold  # what is printed decides
    below = threshold - 1.1e-6
    assert expected(sum(score >= below for score in scores)) > rate * (1 - 1e-9)


def test_a_rate_that_divides_the_images_allows_exactly_so_many():
    scores = np.arange(29) / 29
    assert (scores >= lowest_threshold(scores, 0.1)).sum() == 2  # 0.1 * 30 is 3.0000000000000004 or a little less
    assert (np.arange(1999) >= lowest_threshold(np.arange(1999), 1e-3)).sum() == 1


@pytest.mark.parametrize(("count", "rate"), [(100, 1e-2), (150, 2e-2), (500, 5e-2)])
def test_the_true_rate_is_on_average_at_most_the_wanted_one(count, rate):
    """Uniform scores, of which 1 - t is the true rate; a / n in the place of (a + 1) / (n + 1) exceeds it."""
    rng = np.random.default_rng(0)
    true = [1 - min(1.0, lowest_threshold(rng.random(count), rate)) for _ in range(4000)]
    deviation = np.std(true) / len(true) ** 0.5
    assert rate / 2 < np.mean(true) < rate + 4 * deviation
    careless = [1 - np.sort(rng.random(count))[::-1][int(rate * count)] for _ in range(4000)]
    assert np.mean(careless) > rate + 4 * deviation


def test_the_achieved_rate_and_its_interval():
    made = calibrated(np.linspace(0, 0.9, 2000), 1e-2, **ABOUT)
    assert (made.achieved.count, made.achieved.total, made.achieved.value) == (19, 2000, 0.0095)
    assert (made.achieved.low, made.achieved.high) == clopper_pearson(19, 2000, 0.95)
    (warning,) = made.warnings
    assert "2,000 background images do not show that it is not exceeded: it may be up to 0.015" in warning
    assert Calibration.from_dict({**made.to_dict(), "files": {}}) == made
    before = {name: value for name, value in made.to_dict().items() if name != "source"}
    assert Calibration.from_dict(before) == made and made.source == "background"    # as earlier versions stored it
    with_norm = calibrated(np.ones(9), 0.5, **ABOUT | {"score_norm": ScoreNorm(2.0, 1, 3), "left_out": {"x": 2}},
                           nearest=(Nearest("a.jpg", "b", 0.5),))
    assert Calibration.from_dict(with_norm.to_dict()) == with_norm


def test_too_few_images_are_told_with_the_number_needed():
    made = calibrated(np.linspace(0, 0.5, 100), 1e-3, **ABOUT)
    assert made.threshold > 0.5 and made.achieved.count == 0
    assert made.achieved.high == pytest.approx(1 - 0.025 ** (1 / 100))
    (warning,) = made.warnings
    assert "100 background images are too few" in warning and "at least 999, or 3,688 to show" in warning
    assert clopper_pearson(0, 3688, 0.95)[1] <= 1e-3 < clopper_pearson(0, 3687, 0.95)[1]
    assert "do not show" in calibrated(np.linspace(0, 0.5, 999), 1e-3, **ABOUT).warnings[0]
    assert calibrated(np.linspace(0, 0.5, 3688), 1e-3, **ABOUT).achieved.count == 2
    shown = calibrated(np.append(np.zeros(100_000), np.linspace(0, 0.5, 500)), 1e-2, **ABOUT)    # most are equal
    assert shown.achieved.high < 1e-2 and shown.warnings == ()


def test_a_calibration_by_the_images_of_the_index_says_so():
    made = calibrated(np.linspace(0, 0.5, 200), 1e-2, **ABOUT, source="index")
    own, interval = made.warnings
    assert "the index's own images" in own and "200 images of the index do not show" in interval
    assert Calibration.from_dict(made.to_dict()) == made
    with pytest.raises(DataError, match=r"no image of the index is left .*give unrelated images"):
        calibrated(np.array([]), 0.1, **ABOUT, source="index")


def test_background_images_with_the_highest_score_there_is_are_told():
    (warning,) = calibrated(np.ones(100), 0.05, **ABOUT).warnings
    assert "no match can be called a copy at this rate" in warning


@pytest.mark.parametrize(("scores", "rate", "confidence", "problem"), [
    ([0.1], 0.0, 0.95, "false-positive rate of 0: give one between"),
    ([0.1], 1.0, 0.95, "false-positive rate of 1: give one between"),
    ([0.1], 0.1, 1.0, "confidence of 1"),
    ([], 0.1, 0.95, r"no background image is left.*3 in the index"),
    ([0.1, math.nan], 0.1, 0.95, "1 background scores are not a number"),
])
def test_what_cannot_be_calibrated(scores, rate, confidence, problem):
    about = ABOUT | {"confidence": confidence, "left_out": {"in the index": 3, "repeated": 0}}
    with pytest.raises(DataError, match=problem):
        calibrated(np.array(scores), rate, **about)


def test_how_often_an_unrelated_image_reaches_a_score():
    background = np.array([0.1, 0.2, 0.2, 0.3])
    assert [rate_at(score, background, 0.95).count for score in (0.05, 0.1, 0.2, 0.25, 0.3, 0.31)] == [4, 4, 3, 1, 1, 0]


def test_an_index_that_grew_is_told_and_then_not_answered_for():
    made = calibrated(np.linspace(0, 0.9, 2000), 1e-2, **ABOUT)
    assert calibrate.growth_warning(made, 1100) is None and calibrate.still_holds(made, 1100)
    assert "calibrated at 1,000 images and 101 were added" in calibrate.growth_warning(made, 1101)
    assert calibrate.still_holds(made, 2000) and not calibrate.still_holds(made, 2001)
    assert "until then no match" in calibrate.growth_warning(made, 2001)
