"""Metrics of copy detection against loops and the numeric checks: ties, distractors, misses, intervals, bad input."""


import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.image_copy import (
    bootstrap_intervals,
    judge,
    micro_average_precision,
    norm_ratio_keeps,
    top_pairs,
    trapezoid_average_precision,
)
from ascl.image_copy.evaluation.copydays import average_precisions, pooled_average_precision
from ascl.image_copy.evaluation.metrics import metrics_of


def oracle(rows, truth):
    """(muAP, recall at P90, its threshold, recall at rank 1, at rank 10) by loops over (query, reference, score)."""
    ordered = sorted(rows, key=lambda row: (-row[2], (row[0], row[1]) in truth))
    area, recall_before, hits, best, threshold = 0.0, 0.0, 0, None, None
    for count, (query, reference, score) in enumerate(ordered, start=1):
        hits += (query, reference) in truth
        precision, recall = hits / count, hits / len(truth)
        area += (recall - recall_before) * precision
        recall_before = recall
        if precision >= 0.9 and (best is None or recall > best):
            best, threshold = recall, score
    first, tenth = 0, 0
    for query, reference in truth:
        own = [score for q, r, score in rows if (q, r) == (query, reference)]
        if own:
            rank = sum(1 for q, _, score in rows if q == query and score >= own[0]) - 1
            first += rank == 0
            tenth += rank < 10
    return area, best, threshold, first / len(truth), tenth / len(truth)


@st.composite
def problems(draw):
    """Predictions with ties, true pairs of which some are not predicted, queries without a reference."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, references = draw(st.integers(1, 8)), draw(st.integers(1, 15))
    every = [(q, r) for q in range(queries) for r in range(references)]
    rows = [every[i] for i in rng.permutation(len(every))[: draw(st.integers(0, len(every)))]]
    truth = [every[i] for i in rng.permutation(len(every))[: draw(st.integers(1, min(6, len(every))))]]
    levels = draw(st.sampled_from([1, 3, 1000]))
    scores = rng.integers(0, levels, len(rows)) / 4 + np.array([pair in truth for pair in rows], dtype=float)
    return rows, scores, truth


def columns(pairs, kind=int):
    return [kind(a) for a, _ in pairs], [kind(b) for _, b in pairs]


@given(problems(), st.sampled_from([int, str]))
@settings(max_examples=200, deadline=None)
def test_metrics_match_the_loops(problem, kind):
    rows, scores, truth = problem
    found = micro_average_precision(*columns(rows, kind), scores, *columns(truth, kind))
    area, best, threshold, first, tenth = oracle([(q, r, s) for (q, r), s in zip(rows, scores.tolist(), strict=True)],
                                                 set(truth))
    assert found.muap == pytest.approx(area, abs=1e-12)
    assert (found.recall_at_p90, found.threshold_at_p90) == (best, threshold)
    assert (found.recall_rank1, found.recall_rank10) == pytest.approx((first, tenth), abs=1e-12)
    assert found.ground_truth_pairs == len(truth) and found.predictions == len(rows)


def test_numeric_check_of_ties_and_distractors(shared):
    given_ = np.load(shared / "oracles" / "muap_ties_distractors.npz")
    names = ("pred_query", "pred_ref", "pred_score", "gt_query", "gt_ref")
    found = micro_average_precision(*(given_[name] for name in names))
    for name in ("muap", "recall_at_p90", "threshold_at_p90", "recall_rank1", "recall_rank10"):
        assert getattr(found, name) == pytest.approx(float(given_[f"exp_{name}"]), abs=1e-9)
    for name in ("precisions", "recalls", "thresholds"):
        np.testing.assert_allclose(getattr(found, name), given_[f"exp_{name}"], atol=1e-12)


def test_equal_scores_earn_nothing():
    """A constant score may not profit from the order of the rows: the true row comes last."""
    for place in range(5):
        references = [1, 2, 3, 4]
        references.insert(place, 0)
        assert micro_average_precision([0] * 5, references, [0.5] * 5, [0], [0]).muap == pytest.approx(1 / 5)


def test_a_missed_pair_and_a_distractor_cost():
    found = micro_average_precision(["q1", "q9"], ["r1", "r1"], [0.5, 0.9], ["q1", "q2"], ["r1", "r7"])
    assert found.muap == pytest.approx(0.5 * 0.5) and found.recall_at_p90 is None and found.threshold_at_p90 is None


def test_a_precision_of_exactly_nine_tenths_counts():
    """8 true, 1 false, 1 true: 9 of 10; in the bootstrap one draw of a single query gives the list itself."""
    judged = judge([0] * 10, list(range(10)), np.arange(10)[::-1] / 10, [0] * 9, [0, 1, 2, 3, 4, 5, 6, 7, 9])
    found = metrics_of(judged)
    assert (found.recall_at_p90, found.threshold_at_p90) == (1.0, 0.0)
    assert bootstrap_intervals(judged, 1, samples=2, seed=0).recall_at_p90.low == 1.0


def test_nothing_predicted():
    found = micro_average_precision([], [], [], [1], [2])
    assert (found.muap, found.recall_at_p90, found.recall_rank1) == (0.0, None, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((["a", "a"], ["x", "x"], [1, 2], ["a"], ["x"]), "predictions: 1 row.*query a with reference x"),
     (([1], [2], [0.5], [3, 3], [4, 4]), "ground truth: 1 row.*query 3 with reference 4"),
     (([1, 2], [2, 3], [0.5, np.nan], [1], [2]), "score 1 .*not a number"), (([1], [2], [0.5], [], []), "no pair"),
     (([1], [2, 3], [0.5], [1], [2]), "1 query ids, 2 reference ids"),
     (([1], [2], [0.5], ["1"], ["2"]), "integers in one"), (([1.5], [2], [0.5], [1], [2]), "integers or all text"),
     ((["a", 1], ["b", "c"], [1, 2], ["a"], ["b"]), "integers or all text"),
     (([1], [2], ["high"], [1], [2]), "list of numbers")],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        micro_average_precision(*arguments)


def test_a_hundred_thousand_predictions_match_the_loop():
    rng = np.random.default_rng(0)
    pairs = rng.permutation(25_000 * 40)[:100_000]
    query, reference = np.char.add("Q", (pairs // 40).astype(str)), np.char.add("R", (pairs % 40).astype(str))
    score = rng.random(len(pairs))
    found = micro_average_precision(query, reference, score, query[:5000], reference[:5000])
    true, area = 0, 0.0
    for rank, row in enumerate(np.argsort(-score).tolist(), start=1):  # no two scores are equal
        if row < 5000:
            true += 1
            area += true / rank / 5000
    assert true == 5000 and found.muap == pytest.approx(area, abs=1e-12)


@given(st.lists(st.integers(0, 60), unique=True, max_size=12), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_trapezoids_match_the_loop(ranks, missed):
    positives = max(1, len(ranks) + missed)
    area = 0.0
    for k, rank in enumerate(sorted(ranks)):
        left = k / rank if rank else 1.0
        area += (left + (k + 1) / (rank + 1)) / 2 / positives
    assert trapezoid_average_precision(ranks, positives) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize(("ranks", "positives"), [([0, 0], 2), ([-1], 1), ([0, 1], 1), ([0.5], 1), ([], 0)])
def test_impossible_ranks_are_refused(ranks, positives):
    with pytest.raises(DataError):
        trapezoid_average_precision(ranks, positives)


def test_numeric_check_of_copydays(shared):
    given_ = np.load(shared / "oracles" / "copydays_ap.npz")
    is_true, distance = given_["is_true"].astype(bool), given_["distance"]
    query, reference = np.indices(is_true.shape)
    true_reference = np.where(is_true.any(axis=1), is_true.argmax(axis=1), 999)
    judged = judge(query.ravel(), reference.ravel(), -distance.ravel(), np.arange(20), true_reference)
    average = average_precisions(judged)
    np.testing.assert_allclose([average[q] for q in range(20)], given_["exp_per_query_ap"], atol=1e-12)
    assert np.mean(list(average.values())) == pytest.approx(float(given_["exp_map"]), abs=1e-12)
    assert pooled_average_precision(judged) == pytest.approx(float(given_["exp_uap_trapezoid"]), abs=1e-12)


def test_numeric_check_of_the_norm_ratio(shared):
    given_ = np.load(shared / "oracles" / "asl_test_filter.npz")
    norms = [np.linalg.norm(given_[name], axis=1) for name in ("query_features", "ref_features")]
    assert norm_ratio_keeps(*norms).tolist() == given_["exp_keep"].tolist()
    assert norm_ratio_keeps(np.array([1.0, 0.0, 2.0]), np.array([1.0, 0.0, 0.0])).tolist() == [True, True, False]


def test_the_top_pairs_are_taken_before_the_filter_and_not_refilled():
    judged = judge([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [.9, .8, .7, .6, .5], [0, 2, 3], [0, 2, 3])
    plain = top_pairs(judged)
    assert (plain.true_positives, plain.false_positives, plain.precision) == (2, 1, pytest.approx(2 / 3))
    kept = top_pairs(judged, np.array([True, False, True, True, True]))
    assert (kept.taken, kept.true_positives, kept.false_positives, kept.rejected_false) == (3, 2, 0, 1)
    assert kept.precision == 1.0
    none = top_pairs(judged, np.zeros(5, dtype=bool))
    assert (none.precision, none.rejected_true, none.rejected_false) == (None, 2, 1)


def test_a_subset_of_the_predictions_equals_predicting_no_more():
    rng = np.random.default_rng(1)
    query, reference = np.divmod(rng.permutation(60)[:40], 10)
    score, rows = rng.integers(0, 4, 40) / 4, rng.random(40) < 0.5
    truth = ([0, 0, 3, 5], [1, 2, 3, 4])
    judged = judge(query, reference, score, *truth)
    subset = judged.only(rows[judged.order])
    again = judge(query[rows], reference[rows], score[rows], *truth)
    assert subset.gt_position.tolist() == again.gt_position.tolist()
    assert subset.correct.tolist() == again.correct.tolist() and subset.score.tolist() == again.score.tolist()


@pytest.mark.parametrize("levels", [2, 1000])
def test_each_draw_has_the_metrics_of_the_drawn_list(levels):
    """The weighted pass against a list that holds a query drawn twice two times, under two names."""
    rng = np.random.default_rng(3)
    queries = 9
    pairs = [(q, r) for q in range(queries - 1) for r in range(6) if rng.random() < 0.7]
    truth = [(q, int(rng.integers(6))) for q in range(0, queries, 2)]
    scores = rng.integers(0, levels, len(pairs)) / levels + [0.5 * (pair in truth) for pair in pairs]
    judged = judge(*columns(pairs), scores, *columns(truth))
    expected = []
    generator = np.random.default_rng(11)
    for _ in range(30):
        drawn = generator.integers(0, queries, queries)
        rows, true = [], set()
        for copy, code in enumerate(drawn):                # codes are in the order of the ids here
            rows += [((copy, q), r, s) for (q, r), s in zip(pairs, scores, strict=True) if q == code]
            true |= {((copy, q), r) for q, r in truth if q == code}
        if true:
            area, best, _, first, _ = oracle(rows, true)
            expected.append((area, best or 0.0, first))
    found = bootstrap_intervals(judged, queries, samples=30, seed=11, confidence=0.8)
    assert found.samples == len(expected)
    low, high = np.percentile(np.array(expected), [10, 90], axis=0)
    ends = [(one.low, one.high) for one in (found.muap, found.recall_at_p90, found.recall_rank1)]
    np.testing.assert_allclose(ends, np.stack([low, high], axis=1), atol=1e-12)


def test_intervals_are_seeded_and_need_all_queries():
    judged = judge([0, 1, 2], [0, 1, 2], [.9, .8, .7], [0, 2], [0, 2])
    assert bootstrap_intervals(judged, 5, samples=20, seed=1) == bootstrap_intervals(judged, 5, samples=20, seed=1)
    with pytest.raises(DataError, match="2 queries were given"):
        bootstrap_intervals(judged, 2, samples=20, seed=1)
