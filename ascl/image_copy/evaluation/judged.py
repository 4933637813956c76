"""Predicted pairs marked true or false, in the order in which every metric counts them.

Score descending and, on a tie, the wrong pair first, so that equal scores earn nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ascl.core.errors import DataError

Ids = np.ndarray | Sequence[int] | Sequence[str]


@dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Predictions in the order in which they are counted: score descending, false before true."""

    query_ids: np.ndarray  # (Q,) every query that predictions or ground truth name; `query` and `gt_query` index it
    order: np.ndarray  # (N,) int64 row of the input that each entry is
    query: np.ndarray  # (N,) int64 code of its query
    score: np.ndarray  # (N,) float64
    correct: np.ndarray  # (N,) bool, whether the pair is in the ground truth
    gt_query: np.ndarray  # (G,) int64 code of the query of each ground-truth pair
    gt_position: np.ndarray  # (G,) int64 where the predictions hold that pair, -1 for a pair that was not predicted

    def only(self, rows: np.ndarray) -> JudgedPairs:
        """Keep the ground truth and only the predictions where `rows` (N,) is True; the others are then misses."""
        position = np.append(np.where(rows, np.cumsum(rows) - 1, -1), -1)  # the last entry serves gt_position -1
        return replace(self, order=self.order[rows], query=self.query[rows], score=self.score[rows],
                       correct=self.correct[rows], gt_position=position[self.gt_position])

    def of_queries(self, chosen: np.ndarray) -> JudgedPairs:
        """Return predictions and ground truth of the queries where `chosen` (Q,) is True."""
        kept = self.only(chosen[self.query])
        of_chosen = chosen[self.gt_query]
        return replace(kept, gt_query=kept.gt_query[of_chosen], gt_position=kept.gt_position[of_chosen])


def judge(query: Ids, reference: Ids, score: np.ndarray | Sequence[float], gt_query: Ids,
          gt_reference: Ids) -> JudgedPairs:
    """Mark the predictions that are true and put them in the order of the metrics.

    Raises:
        DataError: lengths differ, ids neither integers nor text or of two types, a pair twice in the predictions or in
            the ground truth (named), a score that is not a number (row named), no ground truth.
    """
    queries = [_as_ids(query, "query"), _as_ids(gt_query, "gt_query")]
    references = [_as_ids(reference, "reference"), _as_ids(gt_reference, "gt_reference")]
    scores = _as_scores(score)
    if not len(queries[0]) == len(references[0]) == len(scores):
        raise DataError(f"{len(queries[0])} query ids, {len(references[0])} reference ids and {len(scores)} scores: "
                        "one each a pair")
    if len(queries[1]) != len(references[1]):
        raise DataError(f"the ground truth has {len(queries[1])} query ids and {len(references[1])} reference ids")
    if not len(queries[1]):
        raise DataError("the ground truth has no pair: nothing can be found, so nothing can be measured")
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
                            f"reference {reference_ids[of_reference]}; keep one row a pair")
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
    """Ids as int64, or as an array of text."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise DataError(f"{name}: ids have to be a list, got shape {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    given = np.array(ids, dtype=object)  # `asarray` makes text of a list of both
    if not array.size or (array.dtype.kind in "OU" and all(isinstance(one, str) for one in given)):
        return given
    if array.dtype.kind == "O" and all(isinstance(one, int | np.integer) for one in given):
        return given.astype(np.int64)
    raise DataError(f"{name}: ids have to be all integers or all text, got {array.dtype} ({array[0]!r} ...)")


def _as_scores(score: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(score)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise DataError(f"scores have to be a list of numbers, got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64)
    missing = np.flatnonzero(np.isnan(array))
    if len(missing):
        raise DataError(f"score {missing[0]} (from 0) is not a number, as are {len(missing) - 1} more; remove the rows")
    return array


def _codes(columns: list[np.ndarray], name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """One numbering for the ids of several columns -> (codes of each column, ids by code)."""
    integer = {column.dtype.kind == "i" for column in columns if column.size}
    if len(integer) > 1:
        raise DataError(f"{name} ids are integers in one of predictions and ground truth and text in the other")
    if integer == {True}:
        values, inverse = np.unique(np.concatenate(columns).astype(np.int64), return_inverse=True)
        return np.split(inverse.reshape(-1), [len(columns[0])]), values
    code_of: dict[str, int] = {}  # a dictionary, because sorting half a million texts takes ten times as long
    codes = [np.fromiter((code_of.setdefault(one, len(code_of)) for one in column.tolist()), np.int64, len(column))
             for column in columns]
    return codes, np.array(list(code_of), dtype=object)
