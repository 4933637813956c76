"""Make the scores of different queries comparable, with a background set that holds no copies.

There are three ways: subtract a query's score on the background (the normalization of SSCD and of the challenge),
subtract the nearest background vectors from the vectors themselves (negative embedding subtraction), or whiten with the
background's principal components. All are choices of the evaluation, not part of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.index.exact import nearest_references
from ascl.index.search import import_faiss

ROWS = 2**14  # whose neighbors are in memory at a time


def background_score(query: np.ndarray, background: np.ndarray, *, start: int, end: int,
                     device: str = "cpu") -> np.ndarray:
    """Return b(q), the mean of the `start`-th to `end`-th largest inner products of each query with the background.

    Args:
        query: (Nq, d) float.
        background: (M, d) float, M > end.
        start, end: from zero, both included; 0 and 2 are SSCD's, 9 and 9 the challenge's.
        device: where the background is searched.

    Returns:
        (Nq,) float64.

    Raises:
        DataError: not 0 <= start <= end, a background of at most `end` vectors, or as `nearest_references`.
    """
    start, end = index(start), index(end)
    if not 0 <= start <= end:
        raise DataError(f"score normalization from place {start} to {end}: give 0 <= start <= end")
    if len(background) <= end:
        raise DataError(f"the background has {len(background)} vectors, but place {end} (from 0) needs {end + 1}")
    _, scores = nearest_references(query, background, end + 1, metric="ip", device=device)
    return scores[:, start:].mean(axis=1)


def score_normalise(query: np.ndarray, reference: np.ndarray, background: np.ndarray, *, weight: float, start: int,
                    end: int) -> np.ndarray:
    """Return the normalized score of every pair: q.r - weight * b(q), with b from `background_score`.

    For sets too large for the whole matrix, search among `augmented` vectors instead.
    Source: Pizzi et al., CVPR 2022 (SSCD), appendix; Douze et al., arXiv 2106.09672, for start = end.

    Args:
        query, reference, background: (Nq, d), (Nr, d), (M, d) float; unit rows for cosines.
        weight: of the background; 1 is SSCD's and RDCD's, 2 the challenge's example.
        start, end: as `background_score`.

    Returns:
        (Nq, Nr) float64.

    Raises:
        DataError: dimensions differ, or as `background_score`.

    Example:
        >>> query, background = np.eye(2), np.array([[1.0, 0.0]])           # the first query resembles the background
        >>> score_normalise(query, np.eye(2), background, weight=1.0, start=0, end=0).tolist()
        [[0.0, -1.0], [0.0, 1.0]]
    """
    _check_dimension(query, reference, "references")
    normal = query.astype(np.float64) @ reference.astype(np.float64).T
    return normal - weight * background_score(query, background, start=start, end=end)[:, None]


def augmented(query: np.ndarray, reference: np.ndarray, background: np.ndarray, *, weight: float, start: int, end: int,
              device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return vectors with one more dimension whose inner products are the normalized scores, for any such index.

    Arguments and errors are those of `score_normalise`; `device` is where the background is searched.

    Returns:
        [query, -weight * b(query)] (Nq, d + 1) and [reference, 1] (Nr, d + 1), in the types of the inputs. Search them
        by inner product only: with the added column, rows are not unit vectors.

    Example:
        >>> query, background = np.eye(2), np.array([[1.0, 0.0]])
        >>> left, right = augmented(query, np.eye(2), background, weight=1.0, start=0, end=0)
        >>> (left @ right.T).tolist()                                       # as `score_normalise`
        [[0.0, -1.0], [0.0, 1.0]]
    """
    _check_dimension(query, reference, "references")
    subtracted = -weight * background_score(query, background, start=start, end=end, device=device)
    ones = np.ones((len(reference), 1), dtype=reference.dtype)
    return np.hstack([query, subtracted[:, None].astype(query.dtype)]), np.hstack([reference, ones])


def subtract_negatives(embeddings: np.ndarray, negatives: np.ndarray, *, beta: float, neighbours: int, iterations: int,
                       device: str = "cpu") -> np.ndarray:
    """Return vectors moved away from their nearest known non-copies: negative embedding subtraction.

    Each iteration sets e <- normalize(e - beta * mean of the `neighbours` negatives with the largest inner product with
    e). The winner of the challenge's descriptor track applied it to queries and references, with beta 0.35, 10
    neighbors and 1 iteration; the negatives were the training set, each averaged with its own neighbors beforehand.
    Source: Yokoo, arXiv 2112.04323, section on negative embedding subtraction.

    Args:
        embeddings: (N, d) float, unit rows; not normalized here.
        negatives: (M, d) float, M >= neighbours.
        beta: share of the mean that is subtracted, unitless.
        neighbours, iterations: at least 1.
        device: where the neighbors are searched.

    Returns:
        (N, d) in the type of `embeddings`, unit rows; a row that the subtraction makes zero stays zero.

    Raises:
        DataError: fewer negatives than neighbors, neighbours or iterations < 1, or as `nearest_references`.

    Example:
        >>> embeddings, negatives = np.array([[0.6, 0.8]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> subtract_negatives(embeddings, negatives, beta=0.8, neighbours=1, iterations=1).tolist()
        [[1.0, 0.0]]
    """
    neighbours, iterations = index(neighbours), index(iterations)
    if neighbours < 1 or iterations < 1:
        raise DataError(f"{neighbours} neighbors and {iterations} iterations: both must be at least 1")
    if len(negatives) < neighbours:
        raise DataError(f"{neighbours} neighbors of {len(negatives)} negatives: give more negatives or ask for fewer")
    moved = embeddings.astype(np.float64)
    for _ in range(iterations):
        nearest, _ = nearest_references(moved.astype(embeddings.dtype), negatives, neighbours, metric="ip",
                                        device=device)
        for first in range(0, len(moved), ROWS):
            rows = slice(first, first + ROWS)
            moved[rows] = _unit(moved[rows] - beta * negatives[nearest[rows]].mean(axis=1, dtype=np.float64))
    return moved.astype(embeddings.dtype)


@dataclass(frozen=True, eq=False)
class Whitening:
    """Centering and principal components, each divided by its standard deviation: `PCAW{d},L2norm` in FAISS."""

    mean: np.ndarray  # (D,) float64 of the background
    components: Any  # FAISS' `PCAMatrix` of the centered background

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return (N, D) float as (N, d) of the same type, unit rows, computed in float32; DataError for another D."""
        _check_dimension(vectors, self.mean[None], "the background of the whitening")
        return _unit(self.components.apply(np.subtract(vectors, self.mean, dtype=np.float32)).astype(vectors.dtype))


def fit_whitening(background: np.ndarray, dimension: int) -> Whitening:
    """Return the whitening to `dimension` components that a background set gives; needs FAISS.

    Args:
        background: (M, D) float.
        dimension: 1 to D, and no more than the background spans, because whitening divides by the standard deviation.

    Raises:
        DataError: FAISS is not installed, or `dimension` is out of range (the message gives the range).
    """
    faiss = import_faiss()
    if faiss is None:
        raise DataError("whitening needs FAISS: pip install 'ascl[search]', or pip install faiss-cpu")
    total = background.shape[1]
    if not 1 <= dimension <= total:
        raise DataError(f"whitening to {dimension} dimensions: the vectors have {total}; choose 1 to {total}")
    mean = background.mean(axis=0, dtype=np.float64)
    components = faiss.PCAMatrix(total, min(dimension, len(background)), -0.5)
    components.max_points_per_d = len(background)  # use all of the background, not a sample
    # Centered here: FAISS subtracts the mean from the sums of squares in float32, which loses small components.
    components.train(np.subtract(background, mean, dtype=np.float32))
    variance = faiss.vector_to_array(components.eigenvalues)
    # Components below float32's resolution of the largest variance are rounding errors, which whitening would amplify.
    spanned = min(int((variance > variance[0] * 8 * np.finfo(np.float32).eps).sum()), len(background) - 1)
    if dimension > spanned:
        raise DataError(f"whitening to {dimension} dimensions: the {len(background)} background vectors span only "
                        f"{spanned}; choose fewer, or give a larger background")
    return Whitening(mean, components)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def _check_dimension(vectors: np.ndarray, others: np.ndarray, name: str) -> None:
    if vectors.ndim != 2 or others.ndim != 2 or vectors.shape[1] != others.shape[1]:
        raise DataError(f"vectors of shape {vectors.shape} do not match {name} of shape {others.shape}")
