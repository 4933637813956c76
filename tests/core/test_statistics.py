"""Intervals against their definitions and published examples; resamples against draws one after the other."""

import math

import numpy as np
import pytest
from scipy import stats

from ascl.core.statistics import Interval, percentile_interval, resamples, wilson_interval


def test_wilson_interval():
    # 81 of 263, the worked example of Newcombe (1998): 0.2553 to 0.3662
    found = wilson_interval(81 / 263, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    # and by the definition: the shares p from which the observed one lies z standard errors away
    for share, trials in ((0.0, 7), (0.25, 8), (1.0, 3)):
        found = wilson_interval(share, trials)
        for p in (found.low, found.high):
            assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / trials), abs=1e-6)
    assert wilson_interval(0.0, 5).low == 0 and wilson_interval(1.0, 5).high == 1


@pytest.mark.parametrize(("hits", "trials", "level"), [(0, 4, 0.95), (3, 7, 0.9), (50, 60, 0.99), (1, 1, 0.95)])
def test_wilson_interval_of_whole_successes_is_scipys(hits, trials, level):
    theirs = stats.binomtest(hits, trials).proportion_ci(level, method="wilson")
    found = wilson_interval(hits / trials, trials, level)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("block", [1, 20, 2**22])        # 20 counts: two draws at a time, the last block ragged
def test_resamples_are_draws_one_after_the_other(block):
    generator = np.random.default_rng(5)
    expected = []
    for _ in range(7):
        drawn = generator.integers(9, size=9).tolist()
        expected.append([drawn.count(item) for item in range(9)])
    assert np.concatenate(list(resamples(9, 7, 5, block=block))).tolist() == expected


def test_percentile_interval_leaves_out_as_much_on_either_side():
    assert percentile_interval(np.arange(101.0), 0.9) == Interval(pytest.approx(5), pytest.approx(95))
