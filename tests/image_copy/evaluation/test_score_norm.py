"""Score normalization, negative subtraction and whitening against plain loops and the numeric checks."""

import importlib.util
import sys

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.image_copy import augmented, capped_search, fit_whitening, score_normalise, subtract_negatives

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="FAISS is not installed")


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def normalized_oracle(query, reference, background, weight, start, end):
    scores = []
    for q in query.tolist():
        of_background = sorted(sum(a * b for a, b in zip(q, x, strict=True)) for x in background.tolist())[::-1]
        subtracted = sum(of_background[start : end + 1]) / (end + 1 - start)
        scores.append([sum(a * b for a, b in zip(q, r, strict=True)) - weight * subtracted for r in reference.tolist()])
    return scores


@pytest.mark.parametrize(("weight", "start", "end"), [(1.0, 0, 2), (2.0, 9, 9), (0.5, 3, 7)])
def test_normalized_scores_match_the_loops_and_an_inner_product_index(weight, start, end):
    rng = np.random.default_rng(0)
    query, reference, background = unit(rng, 7, 5), unit(rng, 11, 5), unit(rng, 30, 5)
    expected = normalized_oracle(query, reference, background, weight, start, end)
    found = score_normalise(query, reference, background, weight=weight, start=start, end=end)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    left, right = augmented(query, reference, background, weight=weight, start=start, end=end)
    assert left.shape == (7, 6) and right.shape == (11, 6)
    np.testing.assert_allclose(left @ right.T, expected, atol=1e-12)
    at_query, at_reference, score = capped_search(left, right, 77, metric="ip")
    np.testing.assert_allclose(score, np.array(expected)[at_query, at_reference], atol=1e-12)


def test_numeric_check_of_score_normalization(shared):
    given = np.load(shared / "oracles" / "score_norm_sscd_default.npz")
    vectors = [given[name] for name in ("query", "ref", "background")]
    options = {"weight": float(given["weight"]), "start": int(given["start"]), "end": int(given["end"])}
    np.testing.assert_allclose(score_normalise(*vectors, **options), given["exp_scores"], atol=1e-5)
    left, right = augmented(*vectors, **options)
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_allclose(left, given["exp_query_aug"], atol=1e-5)
    np.testing.assert_allclose(right, given["exp_ref_aug"], atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_negative_subtraction_matches_the_loops(iterations):
    rng = np.random.default_rng(1)
    embeddings, negatives = unit(rng, 9, 6), unit(rng, 25, 6)
    expected = []
    for e in embeddings:
        for _ in range(iterations):
            nearest = sorted(negatives.tolist(), key=lambda n: -sum(a * b for a, b in zip(e, n, strict=True)))[:4]
            moved = [value - 0.35 * sum(n[i] for n in nearest) / 4 for i, value in enumerate(e)]
            length = sum(value * value for value in moved) ** 0.5
            e = [value / length for value in moved]
        expected.append(e)
    found = subtract_negatives(embeddings, negatives, beta=0.35, neighbours=4, iterations=iterations)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    single = subtract_negatives(embeddings.astype("f4"), negatives.astype("f4"), beta=0.35, neighbours=4,
                                iterations=iterations)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)


def test_negative_subtraction_leaves_its_input_alone_and_survives_zero():
    embeddings, negatives = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    assert subtract_negatives(embeddings, negatives, beta=1.0, neighbours=2, iterations=1).tolist() == [[0.0, 0.0]]
    assert embeddings.tolist() == [[1.0, 0.0]]


@needs_faiss
@pytest.mark.parametrize(("dimension", "name"), [(8, "exp_sim_full"), (4, "exp_sim_d4")])
def test_numeric_check_of_whitening(shared, dimension, name):
    given = np.load(shared / "oracles" / "pcaw_l2norm.npz")
    whitening = fit_whitening(given["train"], dimension)
    left, right = whitening.apply(given["query"]), whitening.apply(given["ref"])
    np.testing.assert_allclose(left @ right.T, given[name], atol=2e-4)


@needs_faiss
@pytest.mark.parametrize("dimension", [6, 2])
def test_whitening_is_that_of_the_covariance_in_float64(dimension):
    """Similarities, which no choice of the components' signs changes; the mean is far from the origin."""
    rng = np.random.default_rng(2)
    background = rng.normal(size=(4000, 6)) * [5, 4, 3, 2, 1, 0.5] + 3
    centered = background - background.mean(axis=0)
    variance, components = np.linalg.eigh(centered.T @ centered / len(background))
    expected = (centered @ components / variance**0.5)[:200, ::-1][:, :dimension]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = fit_whitening(background, dimension).apply(background[:200])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)


def test_without_faiss_whitening_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DataError, match=r"whitening needs FAISS: pip install 'ascl\[search\]'"):
        fit_whitening(np.eye(4), 2)


@needs_faiss
def test_whitening_refuses_components_without_variance():
    rng = np.random.default_rng(3)
    flat = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    with pytest.raises(DataError, match="span only 3"):
        fit_whitening(flat, 4)
    assert np.isfinite(fit_whitening(flat, 3).apply(flat)).all()
    with pytest.raises(DataError, match="span only 4"):
        fit_whitening(rng.normal(size=(5, 8)), 8)
    with pytest.raises(DataError, match="choose 1 to 8"):
        fit_whitening(flat, 9)


@pytest.mark.parametrize(("call", "message"), [
    (lambda v: score_normalise(v, v, v, weight=1, start=2, end=1), "0 <= start <= end"),
    (lambda v: score_normalise(v, v, v, weight=1, start=0, end=3), "place 3 .*needs 4"),
    (lambda v: score_normalise(v, v[:, :1], v, weight=1, start=0, end=0), "do not match references"),
    (lambda v: score_normalise(v, v, v[:, :1], weight=1, start=0, end=0), "dimension"),
    (lambda v: subtract_negatives(v, v, beta=1, neighbours=4, iterations=1), "4 neighbors of 3"),
    (lambda v: subtract_negatives(v, v, beta=1, neighbours=1, iterations=0), "at least 1"),
])
def test_what_cannot_be_normalized_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call(np.eye(3, 2, dtype=np.float32))
