"""Metrics by group of queries: by role, by kind of edit and by its strength."""

from __future__ import annotations

from typing import Any

import numpy as np

from ascl.image_copy.evaluation.files import QueryEdit
from ascl.image_copy.evaluation.judged import JudgedPairs
from ascl.image_copy.evaluation.metrics import metrics_of

GROUPINGS = {"role": ("role",), "kind": ("kind",), "strength": ("strength",), "kind_strength": ("kind", "strength")}
STRENGTHS = ("mild", "medium", "hard")  # as the generated benchmark names them


def breakdown(judged: JudgedPairs, threshold: float | None, edits: dict[str, QueryEdit],
              keep: np.ndarray | None, confirmed: np.ndarray | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return a row of metrics per group of queries, for each grouping with more than one group.

    Args:
        judged: the predictions of all queries.
        threshold: the score at P90 of the whole list; None if P90 is not reached.
        edits: how each query was made; queries without an entry are in no group.
        keep: (N,) bool, the predictions that the norm-ratio filter keeps, in their original order; None = no filter.
        confirmed: (N,) bool, the predictions that geometry confirms to be copies; None = it was not asked.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for grouping, attributes in GROUPINGS.items():
        members: dict[tuple[str, ...], dict[str, QueryEdit]] = {}
        for query, edit in edits.items():
            members.setdefault(tuple(getattr(edit, name) for name in attributes), {})[query] = edit
        if len(members) > 1:
            result[grouping] = []
            for group in sorted(members, key=lambda group: [_order(label) for label in group]):
                chosen = np.array([query in members[group] for query in judged.query_ids], dtype=bool)
                row = group_metrics(judged, chosen, threshold, list(members[group].values()), keep, confirmed)
                result[grouping].append({"name": " ".join(group), **row})
    return result


def hard_negatives(pairs: list[tuple[str, str]], edits: dict[str, QueryEdit], top: set[tuple[str, str]],
                   kept: set[tuple[str, str]] | None) -> list[dict[str, Any]]:
    """Return, by kind of query, how many pairs that are alike but no copies are among the top pairs.

    Args:
        pairs: queries and references.
        edits: how each query was made; the kind of a query without an entry is "".
        top: the top |GT| predictions. kept: those that the norm-ratio filter keeps; None = no filter.
    """
    by_kind: dict[str, set[tuple[str, str]]] = {}
    for pair in pairs:
        by_kind.setdefault(edits[pair[0]].kind if pair[0] in edits else "", set()).add(pair)
    return [{"name": kind, "pairs": len(members), "top": len(members & top)}
            | ({} if kept is None else {"filtered": len(members & kept)}) for kind, members in sorted(by_kind.items())]


def _order(label: str) -> tuple[int, str]:
    """Return the sort key of a label: strengths from weak to strong, then everything else alphabetically."""
    return (STRENGTHS.index(label), "") if label in STRENGTHS else (len(STRENGTHS), label)


def group_metrics(judged: JudgedPairs, chosen: np.ndarray, threshold: float | None, members: list[QueryEdit],
                  keep: np.ndarray | None, confirmed: np.ndarray | None = None) -> dict[str, Any]:
    """Return the row of the queries where `chosen` (Q,) is True; `members` are their edits, the rest as `breakdown`."""
    group = judged.of_queries(chosen)
    pairs = len(group.gt_query)
    measured = metrics_of(group) if pairs else None
    top = slice(0, len(judged.gt_query))
    of_group, correct = chosen[judged.query[top]], judged.correct[top]
    scales = [edit.content_scale for edit in members if edit.content_scale is not None]
    row: dict[str, Any] = {
        "queries": len(members), "pairs": pairs, "content_scale": float(np.mean(scales)) if scales else None,
        "top_true": int((correct & of_group).sum()), "top_false": int((~correct & of_group).sum()),
        "muap": measured and measured.muap, "recall_rank1": measured and measured.recall_rank1,
        "recall_at_p90": (int((group.correct & (group.score >= threshold)).sum()) / pairs
                          if pairs and threshold is not None else None),
    }
    if keep is not None:
        kept = of_group & keep[judged.order[top]]
        row |= {"filtered_true": int((correct & kept).sum()), "filtered_false": int((~correct & kept).sum())}
    if confirmed is not None:
        copies = chosen[judged.query] & confirmed[judged.order]
        row |= {"confirmed_true": int((judged.correct & copies).sum()),
                "confirmed_false": int((~judged.correct & copies).sum())}
    return row
