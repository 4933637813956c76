"""Exact search for the best pairs of queries and references, in blocks, without the matrix of all scores.

There are two rules: the best pairs over all queries (`capped_search`, the rule of DISC2021), or the best references of
every query (`nearest_references`). One float32 matrix product scores a block. Pairs that can still be among the best,
given the rounding error of that product, are scored again in float64, and only that score counts. So the result does
not depend on blocks, threads or device.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import NamedTuple

import numpy as np
import torch

from ascl.core.errors import DataError
from ascl.index import Metric

_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}  # unit roundoff of torch's float32 products


@dataclass(frozen=True)
class Blocks:
    """Sizes of the work done at a time; the result does not depend on them."""

    scores: int  # scores per matrix product: as many as fit the processor's cache, or a part of a GPU's memory
    references: int  # most references per product
    waiting_pairs: int = 2**20  # pairs collected before they are merged; more only if more results are asked for
    exact_rows: int = 2**15  # pairs scored in float64 together


BLOCKS = {"cpu": Blocks(2**19, 4096), "cuda": Blocks(2**27, 65536)}


def capped_search(query: np.ndarray, reference: np.ndarray, max_results: int, *, metric: Metric, device: str = "cpu",
                  blocks: Blocks | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `max_results` best pairs over all queries, or all pairs if there are fewer.

    Memory beyond the inputs: a few hundred bytes per result, and one block of scores.
    Source: the candidate rule of DISC2021 (arXiv 2106.09672).

    Args:
        query: (Nq, d) float; not normalized here.
        reference: (Nr, d) float, in memory or memory-mapped; read block by block.
        max_results: at least 1.
        metric: "ip", score = inner product; "l2", score = -squared Euclidean distance.
        device: "cpu" or "cuda", scores the blocks; the result is the same.
        blocks: None = sizes that suit the device.

    Returns:
        query index (n,) int64, reference index (n,) int64 and score (n,) float64, best first. Equal scores are ordered
        by query index, then by reference index, also at the cut.

    Raises:
        DataError: dimensions differ, a value is not finite (the message names its row), the metric is unknown, or
            max_results < 1.

    Example:
        >>> query, reference = np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]])
        >>> at_query, at_reference, score = capped_search(query, reference, 2, metric="ip")
        >>> at_query.tolist(), at_reference.tolist(), score.tolist()
        ([0, 1], [0, 1], [1.0, 0.8])
    """
    search = _Search(query, reference, metric, device, blocks)
    found = search.run(min(_at_least_one(max_results, "max_results"), len(query) * len(reference)), per_query=False)
    order = np.lexsort((found.reference, found.query, -found.score))
    return found.query[order], found.reference[order], found.score[order]


def nearest_references(query: np.ndarray, reference: np.ndarray, k: int, *, metric: Metric, device: str = "cpu",
                       blocks: Blocks | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best references of every query, or all if there are fewer.

    Arguments and errors are those of `capped_search`.

    Returns:
        reference index (Nq, min(k, Nr)) int64 and score of the same shape, float64, best first; equal scores are
        ordered by reference index.

    Example:
        >>> found, score = nearest_references(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]]), 1, metric="ip")
        >>> found.tolist(), score.tolist()
        ([[0], [1]], [[1.0], [0.8]])
    """
    search = _Search(query, reference, metric, device, blocks)
    keep = min(_at_least_one(k, "k"), len(reference))
    found = search.run(keep, per_query=True)
    order = np.lexsort((found.reference, -found.score, found.query))
    shape = (len(query), keep)
    return found.reference[order].reshape(shape), found.score[order].reshape(shape)


def _at_least_one(count: int, name: str) -> int:
    if index(count) < 1:
        raise DataError(f"{name} is {count}: ask for at least 1")
    return index(count)


class _Pairs(NamedTuple):
    query: np.ndarray
    reference: np.ndarray
    score: np.ndarray

    def at(self, rows: np.ndarray) -> _Pairs:
        return _Pairs(*(column[rows] for column in self))


class _Search:
    """A search: the prepared inputs, and for each query the score below which a pair cannot be among the best."""

    def __init__(self, query: np.ndarray, reference: np.ndarray, metric: Metric, device: str,
                 blocks: Blocks | None) -> None:
        if metric not in ("ip", "l2"):
            raise DataError(f"metric {metric!r} is unknown: choose 'ip' or 'l2'")
        for name, vectors in (("query", query), ("reference", reference)):
            if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
                raise DataError(f"{name} vectors must be an (N, d) matrix, got {vectors.dtype} {vectors.shape}")
        if query.shape[1] != reference.shape[1]:
            raise DataError(f"queries have dimension {query.shape[1]} and references {reference.shape[1]}: describe "
                            "both with one model")
        self.query, self.reference, self.metric = query, reference, metric
        self.device = torch.device(device)
        self.blocks = blocks or BLOCKS.get(self.device.type, BLOCKS["cuda"])
        self.query_squared = _squared_norms(query, "query", self.blocks.exact_rows)
        self.reference_squared = _squared_norms(reference, "reference", self.blocks.exact_rows)
        largest = np.sqrt(self.reference_squared.max(initial=0.0))
        magnitude = (np.sqrt(self.query_squared) + largest) ** 2  # bounds the sum of |terms| of a score in both metrics
        single = query.dtype != np.float64 and reference.dtype != np.float64 and magnitude.max(initial=0.0) < 1e37
        self.dtype = torch.float32 if single else torch.float64
        unit = _ROUNDING[torch.get_float32_matmul_precision()] if single else 2.0**-53
        self.slack = (query.shape[1] + 8) * (unit * magnitude + float(torch.finfo(self.dtype).tiny))
        self.threshold = np.full(len(query), -np.inf)
        self.mask = np.empty(0, dtype=bool)

    def run(self, keep: int, per_query: bool) -> _Pairs:
        """Return the best `keep` pairs, per query or over all queries, unordered."""
        best = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        if not keep or not len(self.query):
            return best
        capacity = max(self.blocks.waiting_pairs, keep * (len(self.query) if per_query else 1))
        queries = self._coarse(self.query, self.query_squared, of_query=True)
        step_reference = min(self.blocks.references, len(self.reference))
        step_query = max(1, self.blocks.scores // step_reference)
        # all blocks share one buffer: new buffers would fragment the heap between the few pairs that are kept
        scores = torch.empty(step_query * step_reference, dtype=self.dtype, device=self.device)
        self.mask = np.empty(len(scores) if self.device.type == "cpu" else 0, dtype=bool)
        waiting: list[_Pairs] = []
        pairs_waiting = 0
        for first_reference in range(0, len(self.reference), step_reference):
            rows = slice(first_reference, first_reference + step_reference)
            references = self._coarse(self.reference[rows], self.reference_squared[rows], of_query=False).T
            for first_query in range(0, len(self.query), step_query):
                left = queries[first_query : first_query + step_query]
                block = scores[: len(left) * references.shape[1]].view(len(left), references.shape[1])
                torch.mm(left, references, out=block)
                at_query, at_reference = self._candidates(block, first_query, keep, per_query)
                if not len(at_query):
                    continue
                waiting.append(self._exact(at_query + first_query, at_reference + first_reference))
                pairs_waiting += len(waiting[-1].score)
                if pairs_waiting > capacity:
                    best, waiting, pairs_waiting = self._best([best, *waiting], keep, per_query), [], 0
        return self._best([best, *waiting], keep, per_query)

    def _coarse(self, vectors: np.ndarray, squared: np.ndarray, *, of_query: bool) -> torch.Tensor:
        """Return a matrix whose rows' inner products are the scores; "l2" adds two columns: 2 q.r - |q|^2 - |r|^2."""
        matrix = torch.from_numpy(np.array(vectors)).to(self.device, self.dtype)
        if self.metric == "ip":
            return matrix
        minus = torch.from_numpy(-squared[:, None]).to(self.device, self.dtype)
        ones = torch.ones_like(minus)
        return torch.cat([2 * matrix, minus, ones] if of_query else [matrix, ones, minus], dim=1)

    def _candidates(self, block: torch.Tensor, first: int, keep: int, per_query: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns of the coarse scores in a block that can be among the best."""
        rows = slice(first, first + len(block))
        at = self._reaching(block, rows)
        if len(at[0]) <= keep * (len(block) if per_query else 1) or (per_query and block.shape[1] < keep):
            return at
        # with more candidates than results, raise the threshold first, before any is scored again
        if per_query:
            last = block.topk(keep, dim=1).values[:, -1].double().cpu().numpy()
            self.threshold[rows] = np.maximum(self.threshold[rows], last - self.slack[rows])
        else:
            places = [torch.from_numpy(column).to(block.device) for column in at]
            lowest = block[places[0], places[1]].topk(keep).values[-1].item()
            self.threshold = np.maximum(self.threshold, lowest - self.slack[rows].max())
        return self._reaching(block, rows)

    def _reaching(self, block: torch.Tensor, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns of the scores that reach the threshold of their row minus its slack."""
        cut = torch.from_numpy(self.threshold[rows] - self.slack[rows]).to(block.device, block.dtype)[:, None]
        if block.device.type == "cpu":  # numpy compares and finds the few hits six times as fast as torch
            mask = self.mask[: block.numel()].reshape(block.shape)
            flat = np.flatnonzero(np.greater_equal(block.numpy(), cut.numpy(), out=mask))
        else:
            flat = (block >= cut).flatten().nonzero()[:, 0].cpu().numpy()
        return np.divmod(flat, block.shape[1])

    def _exact(self, at_query: np.ndarray, at_reference: np.ndarray) -> _Pairs:
        """Score pairs in float64, and drop those that are below the threshold now."""
        score = np.empty(len(at_query))
        for start in range(0, len(score), self.blocks.exact_rows):
            rows = slice(start, start + self.blocks.exact_rows)
            left = self.query[at_query[rows]].astype(np.float64)
            right = self.reference[at_reference[rows]].astype(np.float64)
            if self.metric == "ip":
                score[rows] = np.einsum("nd,nd->n", left, right)
            else:
                left -= right
                score[rows] = -np.einsum("nd,nd->n", left, left)
        return _Pairs(at_query, at_reference, score).at(score >= self.threshold[at_query])

    def _best(self, parts: list[_Pairs], keep: int, per_query: bool) -> _Pairs:
        """Return the best pairs of several lists, and raise the threshold to the last one kept."""
        pairs = _Pairs(*map(np.concatenate, zip(*parts, strict=True)))
        if per_query:
            order = np.lexsort((pairs.reference, -pairs.score, pairs.query))
            ordered = pairs.at(order)
            start = np.searchsorted(ordered.query, np.arange(len(self.query)))
            place = np.arange(len(order)) - start[ordered.query]
            last = ordered.at(place == keep - 1)
            self.threshold[last.query] = np.maximum(self.threshold[last.query], last.score)
            return ordered.at(place < keep)
        if len(pairs.score) <= keep:
            return pairs
        lowest = np.partition(pairs.score, len(pairs.score) - keep)[len(pairs.score) - keep]
        self.threshold = np.maximum(self.threshold, lowest)
        above, tied = np.flatnonzero(pairs.score > lowest), np.flatnonzero(pairs.score == lowest)
        tied = tied[np.lexsort((pairs.reference[tied], pairs.query[tied]))]
        return pairs.at(np.concatenate([above, tied[: keep - len(above)]]))


def _squared_norms(vectors: np.ndarray, name: str, step: int) -> np.ndarray:
    """Return (N,) float64 squared norms; a value that is not finite is a DataError that names its row."""
    squared = np.empty(len(vectors))
    for start in range(0, len(vectors), step):
        block = np.asarray(vectors[start : start + step], dtype=np.float64)
        squared[start : start + step] = np.einsum("nd,nd->n", block, block)
    wrong = np.flatnonzero(~np.isfinite(squared))
    if len(wrong):
        raise DataError(f"{name} vector {wrong[0]} (from 0) is not finite, nor are {len(wrong) - 1} more: replace them")
    return squared
