"""Exact search against the whole matrix: ties, all pairs, small blocks, near-ties below float32, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.image_copy import capped_search, nearest_references
from ascl.index.exact import Blocks


def every_pair(query, reference, metric):
    """All (query, reference, score), best first, by loops."""
    rows = []
    for i, q in enumerate(query.tolist()):
        for j, r in enumerate(reference.tolist()):
            if metric == "ip":
                score = sum(a * b for a, b in zip(q, r, strict=True))
            else:
                score = -sum((a - b) ** 2 for a, b in zip(q, r, strict=True))
            rows.append((i, j, score))
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def rows_of(found):
    return list(zip(*(column.tolist() for column in found), strict=True))


SMALL = Blocks(scores=15, references=5, waiting_pairs=7, exact_rows=4)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 17), st.integers(1, 200), st.sampled_from(["ip", "l2"])
)
@settings(max_examples=150, deadline=None)
def test_both_rules_match_the_whole_matrix_with_ties(seed, queries, references, wanted, metric):
    rng = np.random.default_rng(seed)
    query = rng.integers(-1, 2, (queries, 3)).astype(np.float32)       # many equal scores
    reference = rng.integers(-1, 2, (references, 3)).astype(np.float32)
    found = capped_search(query, reference, wanted, metric=metric, blocks=SMALL)
    nearest, score = nearest_references(query, reference, wanted, metric=metric, blocks=SMALL)
    expected = every_pair(query, reference, metric)
    assert rows_of(found) == expected[:wanted]                         # never one fewer
    assert nearest.shape == score.shape == (queries, min(wanted, references))
    for i in range(queries):
        own = [(r, s) for q, r, s in expected if q == i][:wanted]
        assert list(zip(nearest[i].tolist(), score[i].tolist(), strict=True)) == own


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e4])
def test_real_vectors_match_the_whole_matrix_in_any_block(metric, dtype, scale):
    if dtype == "float16" and scale != 1.0:
        scale = 0.1
    rng = np.random.default_rng(0)
    query, reference = ((scale * rng.normal(size=(n, 16))).astype(dtype) for n in (40, 90))
    left, right = query.astype(np.float64), reference.astype(np.float64)
    scores = left @ right.T if metric == "ip" else -((left[:, None] - right[None]) ** 2).sum(axis=2)
    expected = np.argsort(-scores, axis=None)[:333]
    whole = capped_search(query, reference, 333, metric=metric)
    in_blocks = capped_search(query, reference, 333, metric=metric, blocks=SMALL)
    assert rows_of(whole) == rows_of(in_blocks)
    assert (whole[0] * 90 + whole[1]).tolist() == expected.tolist()
    np.testing.assert_allclose(whole[2], scores.ravel()[expected], rtol=1e-9)


def test_pairs_that_float32_cannot_tell_apart_are_told_apart():
    """Scores that differ by 1e-9 of their size: the coarse product rounds them together, the result may not."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, 32)).astype(np.float32)
    reference = np.repeat(query, 400, axis=0)
    reference[np.arange(400), rng.integers(0, 32, 400)] *= np.float32(1 + 2e-7)
    exact = (query.astype(np.float64) * reference.astype(np.float64)).sum(axis=1)
    order = np.lexsort((np.arange(400), -exact))
    coarse = (query @ reference.T)[0]
    assert len(np.unique(exact)) > 10 * len(np.unique(coarse))
    lost = coarse[order[:100]] < exact[order[99]]
    assert lost.any()       # to a search that allows no margin for rounding
    found = capped_search(query, reference, 100, metric="ip", blocks=SMALL)
    assert found[1].tolist() == order[:100].tolist()


def test_numeric_check(shared):
    given_ = np.load(shared / "oracles" / "capped_search_l2.npz")
    found = capped_search(given_["query"], given_["ref"], int(given_["max_results"]), metric="l2")
    assert set(zip(*map(np.ndarray.tolist, found[:2]),
                   strict=True)) == set(zip(given_["exp_query"].tolist(), given_["exp_ref"].tolist(), strict=True))
    np.testing.assert_allclose(found[2], np.sort(given_["exp_score"])[::-1], atol=1e-5)


def test_a_thousand_equal_pairs_give_the_first_ones():
    found = capped_search(np.ones((40, 8), np.float32), np.ones((60, 8), np.float32), 100, metric="l2")
    assert rows_of(found) == [(i, j, 0.0) for i in range(2) for j in range(60)][:100]


def test_a_memory_map_and_one_outlier(tmp_path):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 8)).astype(np.float32)
    reference[17] *= 1e6                                               # widens the margin of all, changes nothing
    np.save(tmp_path / "r.npy", reference)
    query = rng.normal(size=(20, 8)).astype(np.float32)
    expected = rows_of(capped_search(query, reference, 50, metric="l2"))
    mapped = np.load(tmp_path / "r.npy", mmap_mode="r")
    assert rows_of(capped_search(query, mapped, 50, metric="l2")) == expected
    assert [row[:2] for row in expected] == [row[:2] for row in every_pair(query, reference, "l2")[:50]]


@pytest.mark.parametrize(("queries", "references"), [(0, 4), (4, 0)])
def test_nothing_to_search(queries, references):
    query, reference = np.zeros((queries, 3), np.float32), np.zeros((references, 3), np.float32)
    assert [len(column) for column in capped_search(query, reference, 5, metric="ip")] == [0, 0, 0]
    assert nearest_references(query, reference, 5, metric="ip")[0].shape == (queries, min(5, references))


@pytest.mark.parametrize(("change", "message"), [
    ({"max_results": 0}, "at least 1"),
    ({"metric": "cosine"}, "unknown"),
    ({"query": np.zeros((2, 4), np.float32)}, "dimension 4 and references 3"),
    ({"reference": np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)}, "reference vector 1 .*not finite"),
    ({"query": np.array([[np.inf, 0, 0]], np.float32)}, "query vector 0 .*not finite"),
    ({"query": np.zeros(3, np.float32)}, r"\(N, d\) matrix"),
])
def test_what_cannot_be_searched_is_refused(change, message):
    arguments = {"query": np.zeros((2, 3), np.float32), "reference": np.ones((2, 3), np.float32), "max_results": 2,
                 "metric": "l2"} | change
    with pytest.raises(DataError, match=message):
        capped_search(**arguments)
