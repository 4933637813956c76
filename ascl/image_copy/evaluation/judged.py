"""Predicted pairs, marked true or false, in the order in which every metric counts them.

The order is by descending score, on a tie the wrong pair first, so that ties count as lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ascl.core.errors import DataError

Ids = np.ndarray | Sequence[int] | Sequence[str]


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Predictions in the order in which they are counted: by descending score, false before true."""

    query_ids: np.ndarray  # (Q,) every query that predictions or ground truth name; `query` and `gt_query` index it
    order: np.ndarray  # (N,) int64 input row of each entry
    query: np.ndarray  # (N,) int64 index of its query
    score: np.ndarray  # (N,) float64
    correct: np.ndarray  # (N,) bool, whether the pair is in the ground truth
    gt_query: np.ndarray  # (G,) int64 index of the query of each ground-truth pair
    gt_position: np.ndarray  # (G,) int64 position of that pair in the predictions; -1 if it was not predicted

    def only(self, rows: np.ndarray) -> JudgedPairs:
        """Return all of the ground truth and only the predictions where `rows` (N,) is True; the rest become misses."""
        position = np.append(np.where(rows, np.cumsum(rows) - 1, -1), -1)  # the last entry is for gt_position -1
        return replace(self, order=self.order[rows], query=self.query[rows], score=self.score[rows],
                       correct=self.correct[rows], gt_position=position[self.gt_position])

    def of_queries(self, chosen: np.ndarray) -> JudgedPairs:
        """Return predictions and ground truth of the queries where `chosen` (Q,) is True."""
        kept = self.only(chosen[self.query])
        of_chosen = chosen[self.gt_query]
        return replace(kept, gt_query=kept.gt_query[of_chosen], gt_position=kept.gt_position[of_chosen])


def judge(query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids,
          gt_reference: Ids) -> JudgedPairs:
    """Return the predictions, marked true or false, in the order of the metrics.

    Args:
        query, reference: (N,) ids of the predicted pairs, integers or text.
        score: (N,) higher = more alike, on any scale.
        gt_query, gt_reference: (G,) ids of the true pairs, G >= 1, of the same type as the predictions'.

    Raises:
        DataError: lengths differ; ids are neither integers nor text, or of two types; a pair is twice in the
            predictions or in the ground truth (named); a score is not a number (row named); no ground truth.

    Example:
        >>> judged = judge(["a", "a"], ["x", "y"], [0.5, 0.5], gt_query=["a"], gt_reference=["x"])
        >>> judged.correct.tolist(), judged.order.tolist()          # a tie: the wrong pair, row 1, comes first
        ([False, True], [1, 0])
    """
    queries = [_as_ids(query, "query"), _as_ids(gt_query, "gt_query")]
    references = [_as_ids(reference, "reference"), _as_ids(gt_reference, "gt_reference")]
    scores = _as_scores(score)
    if not len(queries[0]) == len(references[0]) == len(scores):
        raise DataError(f"{len(queries[0])} query ids, {len(references[0])} reference ids and {len(scores)} scores: "
                        "give one of each per pair")
    if len(queries[1]) != len(references[1]):
        raise DataError(f"the ground truth has {len(queries[1])} query ids and {len(references[1])} reference ids: "
                        "give one of each per pair")
    if not len(queries[1]):
        raise DataError("the ground truth has no pair, so nothing can be measured")
    (query_code, gt_query_code), query_ids = _codes(queries, "query")
    (reference_code, gt_reference_code), reference_ids = _codes(references, "reference")
    pair = query_code * len(reference_ids) + reference_code
    gt_pair = gt_query_code * len(reference_ids) + gt_reference_code
    for name, pairs in (("predictions", pair), ("ground truth", gt_pair)):
        ordered = np.sort(pairs)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            of_query, of_reference = divmod(int(twice[0]), len(reference_ids))
            raise DataError(f"{name}: {len(twice)} row(s) repeat a pair, first query {query_ids[of_query]} with "
                            f"reference {reference_ids[of_reference]}; keep one row per pair")
    _, rows, found = np.intersect1d(pair, gt_pair, assume_unique=True, return_indices=True)
    correct = np.zeros(len(pair), dtype=bool)
    correct[rows] = True
    order = np.lexsort((correct, -scores))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    gt_position = np.full(len(gt_pair), -1, dtype=np.int64)
    gt_position[found] = position[rows]
    return JudgedPairs(query_ids, order, query_code[order], scores[order], correct[order], gt_query_code, gt_position)


def _as_ids(ids: Ids, name: str) -> np.ndarray:
    """Return ids as int64, or as an array of text."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise DataError(f"{name}: ids must be a list, got shape {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    given = np.array(ids, dtype=object)  # `asarray` turns a list of both into text
    if not array.size or (array.dtype.kind in "OU" and all(isinstance(one, str) for one in given)):
        return given
    if array.dtype.kind == "O" and all(isinstance(one, int | np.integer) for one in given):
        return given.astype(np.int64)
    raise DataError(f"{name}: ids must be all integers or all text, got {array.dtype} ({array[0]!r} ...)")


def _as_scores(score: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(score)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise DataError(f"scores must be a list of numbers, got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64)
    missing = np.flatnonzero(np.isnan(array))
    if len(missing):
        raise DataError(f"score {missing[0]} (from 0) is not a number, nor are {len(missing) - 1} more; remove these "
                        "rows")
    return array


def _codes(columns: list[np.ndarray], name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return a common numbering of the ids of several columns: the codes of each column, and the ids by code."""
    integer = {column.dtype.kind == "i" for column in columns if column.size}
    if len(integer) > 1:
        raise DataError(f"{name} ids are integers in one of predictions and ground truth and text in the other; use "
                        "one type")
    if integer == {True}:
        values, inverse = np.unique(np.concatenate(columns).astype(np.int64), return_inverse=True)
        return np.split(inverse.reshape(-1), [len(columns[0])]), values
    code_of: dict[str, int] = {}  # sorting half a million texts would take ten times as long
    codes = [np.fromiter((code_of.setdefault(one, len(code_of)) for one in column.tolist()), np.int64, len(column))
             for column in columns]
    return codes, np.array(list(code_of), dtype=object)
