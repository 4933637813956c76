"""Tests of differences against brute force: every sign pattern, numerical integrals, one draw after the other."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.analysis.query_ranks import QueryRanks
from ascl.analysis.significance import (
    bootstrap_rsum,
    holm,
    image_counts,
    paired_t_test,
    sign_flip_test,
    t_interval,
)
from ascl.core.errors import DataError
from ascl.retrieval import rank_report, ranks

DIFFERENCES = st.lists(st.integers(-40, 40), min_size=2, max_size=8)
few = settings(max_examples=60, deadline=None)


# Over seeds


def sign_flip_oracle(differences):
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(sum(differences))
    sums = [sum(sign * value for sign, value in zip(pattern, differences, strict=True)) for pattern in patterns]
    return sum(abs(total) >= observed for total in sums) / len(patterns)


@few
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=8))
def test_sign_flips_are_counted_one_by_one(differences):
    assert sign_flip_test(differences) == pytest.approx(sign_flip_oracle(differences))


def test_sign_flips_of_recalls_with_rounding_count_equal_patterns_as_equal():
    # -0.4 - 0.6 - 0.3 + 0.9 is -0.4 as -0.4 + 0.6 + 0.3 - 0.9 is, but not to the last bit; in whole numbers it is
    assert sign_flip_test([-0.4, 0.6, 0.3, -0.9]) == sign_flip_oracle([-4, 6, 3, -9]) == 0.875


@pytest.mark.parametrize(("seeds", "smallest"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125), (20, 2 / 2**20)])
def test_few_seeds_bound_the_sign_flip_test(seeds, smallest):
    assert sign_flip_test([5.0 + seed for seed in range(seeds)]) == smallest


def test_tests_over_seeds_say_nothing_of_too_few_or_too_many():
    assert sign_flip_test([]) is None and sign_flip_test([1.0] * 21) is None
    assert paired_t_test([3.0]) is None and t_interval([3.0]) is None


def t_tail_oracle(t, freedom):
    """Two-sided tail of Student's t by the trapezoid rule over its density, with x = tan(angle)."""
    angles = np.linspace(math.atan(t), math.pi / 2, 400_001)[:-1]
    x = np.tan(angles)
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2) * (1 + x * x)
    return 2 * float(np.trapezoid(density, angles))


@pytest.mark.parametrize("differences", [
    [1.0, 2.0], [3.0, -1.0, 2.5], [0.2, 0.1, 0.4, 0.3], [5.0, 4.0, -3.0, 1.0, 0.5], list(np.linspace(-1, 3, 12)),
    list(np.linspace(-2, 3, 31)),
])
def test_the_t_test_is_the_integral_of_the_density(differences):
    t = abs(np.mean(differences)) / (np.std(differences, ddof=1) / math.sqrt(len(differences)))
    assert paired_t_test(differences) == pytest.approx(t_tail_oracle(t, len(differences) - 1), abs=2e-5)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_the_interval_uses_the_quantile_of_the_tables(freedom, quantile):
    """Any statistics book's table of t for 95 %, two-sided."""
    values = np.arange(freedom + 1.0)
    interval = t_interval(values)
    half = quantile * values.std(ddof=1) / math.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=1e-3 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=1e-3 * half)


@pytest.mark.parametrize("differences", [[1.0, 2.0], [3.0, -1.0, 2.5], [5.0, 4.0, -3.0, 1.0, 0.5]])
def test_interval_and_p_value_of_the_t_test_agree(differences):
    """The interval at level 1 - p just touches 0."""
    p = paired_t_test(differences)
    interval = t_interval(differences, level=1 - p)
    assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=1e-9)


@few
@given(DIFFERENCES, st.randoms(use_true_random=False))
def test_p_values_do_not_depend_on_unit_sign_or_order(differences, random):
    shuffled = random.sample(differences, len(differences))
    for test in (paired_t_test, sign_flip_test):
        p = test(differences)
        assert 0 <= p <= 1
        for other in (shuffled, [-d for d in differences], [0.25 * d for d in differences]):
            assert test(other) == pytest.approx(p, abs=1e-12)


def test_equal_runs_differ_by_nothing():
    assert paired_t_test([0.0, 0.0, 0.0]) == 1.0 and sign_flip_test([0.0, 0.0, 0.0]) == 1.0
    assert paired_t_test([2.0, 2.0, 2.0]) == 0.0


# Over test images


def made_ranks(seed, images=9, texts=25, *, owner=None, quality=1.0):
    """Ranks of random scores in which the right pairs are better by `quality`; image 4 has no caption."""
    generator = np.random.default_rng(seed)
    if owner is None:
        owner = np.array([image for image in np.random.default_rng(99).integers(images, size=texts) if image != 4])
    scores = generator.normal(size=(images, len(owner)))
    scores[owner, np.arange(len(owner))] += quality
    counted = ranks(scores, owner)
    return QueryRanks(counted.i2t, counted.t2i, counted.image_queries, counted.text_queries, owner), scores


def rsum_of(chosen, found):
    """Rsum over images drawn with repetition, by scalar loops; each image comes with its own captions."""
    total = 0.0
    for k in (1, 5, 10):
        hits = queries = 0
        for image in chosen:
            for place, query in enumerate(found.image_queries):
                if query == image:
                    queries += 1
                    hits += found.i2t[place] < k
        total += 100 * hits / queries
        hits = queries = 0
        for image in chosen:
            for place, query in enumerate(found.text_queries):
                if found.owner[query] == image:
                    queries += 1
                    hits += found.t2i[place] < k
        total += 100 * hits / queries
    return total


def bootstrap_oracle(reference, other, draws, seed):
    """The same draws, one after the other; Rsum of each run anew."""
    images = sorted(set(reference[0].image_queries.tolist()))
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = [images[i] for i in generator.integers(len(images), size=len(images))]
        drawn.append(np.mean([rsum_of(chosen, r) for r in other]) - np.mean([rsum_of(chosen, r) for r in reference]))
    return np.array(drawn)


@pytest.mark.parametrize("block", [2**22, 20])        # 20 numbers: two draws at a time
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_bootstrap_equals_draws_one_by_one(seeds, block):
    reference = [made_ranks(seed, quality=0.5)[0] for seed in range(seeds)]
    other = [made_ranks(10 + seed, quality=1.5)[0] for seed in range(seeds)]
    drawn = bootstrap_oracle(reference, other, draws=61, seed=7)
    found = bootstrap_rsum(reference, other, draws=61, seed=7, block=block)
    whole = range(9)
    assert found.difference == pytest.approx(
        np.mean([rsum_of(whole, r) for r in other]) - np.mean([rsum_of(whole, r) for r in reference]))
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    drawn = drawn.round(9)
    assert found.p == pytest.approx(min(1, 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / 62))


def test_the_counts_of_images_are_the_recalls_of_the_report():
    found, scores = made_ranks(3)
    sums = image_counts(found).sum(axis=1)
    assert 100 * (sums[0] / sums[1] + sums[2] / sums[3]) == pytest.approx(rank_report(scores, found.owner).rsum)
    assert image_counts(found).shape == (4, len(set(found.owner.tolist())))         # no caption, no query


def reordered(found, order):
    return QueryRanks(found.i2t, found.t2i[order], found.image_queries, found.text_queries[order], found.owner)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_bootstrap_does_not_mind_sides_order_or_repetition(one, two, random):
    (first, _), (second, _) = made_ranks(one), made_ranks(two)
    found = bootstrap_rsum([first], [second], draws=50)
    swapped = bootstrap_rsum([second], [first], draws=50)
    assert swapped.difference == pytest.approx(-found.difference)
    assert (-swapped.interval.high, -swapped.interval.low) == pytest.approx((found.interval.low, found.interval.high))
    assert swapped.p == found.p
    order = np.array(random.sample(range(len(first.t2i)), len(first.t2i)))
    assert bootstrap_rsum([reordered(first, order)], [reordered(second, order)], draws=50) == found
    doubled = bootstrap_rsum([first, first], [second, second], draws=50)
    assert doubled.difference == pytest.approx(found.difference) and doubled.p == found.p
    same = bootstrap_rsum([first, second], [second, first], draws=50)
    assert same.difference == 0 and same.p == 1.0 and same.interval.low == same.interval.high == 0


def test_the_bootstrap_covers_what_it_should():
    """The share of 95 % intervals that hold the true difference, over many small test sets of one known kind."""
    generator = np.random.default_rng(0)
    held, sets, images = 0, 150, 120
    owner = np.repeat(np.arange(images), 2)
    for _ in range(sets):
        # a query is found at once with 0.4 or 0.6, else not among the first ten; captions follow their image mostly
        found = []
        for chance in (0.4, 0.6):
            image = generator.random(images) < chance
            alike, alone = generator.random(2 * images) < 0.7, generator.random(2 * images) < chance
            own = np.where(alike, np.repeat(image, 2), alone)
            found.append(QueryRanks(np.where(image, 0, 50), np.where(own, 0, 50), np.arange(images),
                                    np.arange(2 * images), owner))
        interval = bootstrap_rsum([found[0]], [found[1]], draws=400).interval
        held += interval.low <= 6 * 20 <= interval.high         # 20 points in each of the six recalls
    assert 0.88 <= held / sets <= 0.99


def test_other_queries_are_refused():
    first, _ = made_ranks(0)
    fewer = QueryRanks(first.i2t, first.t2i[:-1], first.image_queries, first.text_queries[:-1], first.owner)
    with pytest.raises(DataError, match="different queries"):
        bootstrap_rsum([first], [fewer])
    named = [QueryRanks(**{**vars(first), "image_ids": list(ids)}) for ids in ("abcdefghi", "abcdefghj")]
    with pytest.raises(DataError, match="different queries"):
        bootstrap_rsum(named[:1], named[1:])
    assert bootstrap_rsum([first], named[:1], draws=10).difference == 0      # unknown names are no other names


# Several variants at once


def holm_oracle(p_values):
    """By its definition: go up from the smallest, and no corrected value lies below one before it."""
    left, corrected, last = dict(enumerate(p_values)), {}, 0.0
    while left:
        place = min(left, key=lambda i: left[i])
        last = max(last, min(1.0, len(left) * left.pop(place)))
        corrected[place] = last
    return [corrected[place] for place in range(len(p_values))]


@few
@given(st.lists(st.floats(0, 1), max_size=9), st.randoms(use_true_random=False))
def test_holm_by_its_definition_whatever_the_order(p_values, random):
    corrected = holm(p_values)
    assert corrected == pytest.approx(holm_oracle(p_values))
    assert all(c >= p for c, p in zip(corrected, p_values, strict=True))
    order = random.sample(range(len(p_values)), len(p_values))
    assert holm([p_values[i] for i in order]) == pytest.approx([corrected[i] for i in order])


def test_what_was_not_tested_does_not_count():
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])      # Holm's procedure by hand
