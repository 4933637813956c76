"""Copydays (INRIA): the ground truth from the numbers of the pictures, and the trapezoid scores of the publishers.

Numbers have six digits: 200000, 200100 ... 215600 are the 157 originals, and every picture with the same first four
digits is a copy of that original. Blocks are folders: `original`, `strong` (229 pictures), `jpegqual/3` to `/75`,
`crops/10` to `/80`. Pictures of the last two have the number of their original.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.image_copy.evaluation.files import GroundTruth
from ascl.image_copy.evaluation.judged import JudgedPairs
from ascl.image_copy.evaluation.metrics import trapezoid_average_precision

NEIGHBOURS = 100  # results per query that the published evaluation keeps
_NUMBER = re.compile(r"(2\d{3})(\d\d)(?:\.\w+)?")


def copydays_ground_truth(queries: Sequence[str], references: Sequence[str]) -> GroundTruth:
    """Return the pairs of every query and the original with its number.

    Args:
        queries: ids of the pictures of all blocks, `BLOCK/NUMBER`; the originals are queries too.
        references: ids of the originals (six digits that end in 00, with or without a folder) and of any distractors.

    Raises:
        DataError: no original is among the references, two have one number, or a query has no Copydays number.

    Example:
        >>> truth = copydays_ground_truth(["strong/200001", "crops/10/215600"], ["200000", "215600", "distractor"])
        >>> truth.pair_reference
        ['200000', '215600']
    """
    original: dict[str, str] = {}
    for name in references:
        number = _NUMBER.fullmatch(name.rpartition("/")[2])
        if number and number[2] == "00" and original.setdefault(number[1], name) != name:
            raise DataError(f"references {original[number[1]]!r} and {name!r} are both the original {number[1]}00")
    if not original:
        raise DataError("no reference has the number of a Copydays original (200000, 200100, ...); describe the images "
                        "of the folder `original`")
    found = []
    for name in queries:
        number = _NUMBER.fullmatch(name.rpartition("/")[2])
        if number is None:
            raise DataError(f"query {name!r} has no Copydays number; expected an id such as BLOCK/200001")
        # a missing original stays a pair, which counts as a miss
        found.append(original.get(number[1], f"{number[1]}00"))
    return GroundTruth(list(queries), list(queries), found)


def copydays_report(judged: JudgedPairs) -> dict[str, Any]:
    """Return the mAP of every block and the micro average precision of all queries pooled, by trapezoids.

    Returns:
        `map_by_block` (block -> mean over its queries), `map` (over all queries), `pooled_uap`, all in [0, 1], and the
        number of `queries`.

    Example:
        >>> from ascl.image_copy import judge
        >>> found = judge(["strong/200001"] * 2, ["200000", "200100"], [0.4, 0.9], ["strong/200001"], ["200000"])
        >>> copydays_report(found)["map_by_block"]          # the original comes second: (0 / 1 + 1 / 2) / 2
        {'strong': 0.25}
    """
    average = average_precisions(judged)
    blocks: dict[str, list[float]] = {}
    for query, value in average.items():
        blocks.setdefault(str(judged.query_ids[query]).rpartition("/")[0], []).append(value)
    return {"map_by_block": {block: float(np.mean(values)) for block, values in sorted(blocks.items())},
            "map": float(np.mean(list(average.values()))), "pooled_uap": pooled_average_precision(judged),
            "queries": len(average)}


def average_precisions(judged: JudgedPairs) -> dict[int, float]:
    """Return the trapezoid average precision of every query with a true pair, by query code."""
    by_query = np.argsort(judged.query, kind="stable")
    start = np.searchsorted(judged.query[by_query], np.arange(len(judged.query_ids)))
    rank = np.empty(len(by_query), dtype=np.int64)
    rank[by_query] = np.arange(len(by_query)) - start[judged.query[by_query]]
    ranks: dict[int, list[int]] = {}
    for query, position in zip(judged.gt_query.tolist(), judged.gt_position.tolist(), strict=True):
        ranks.setdefault(query, []).append(int(rank[position]) if position >= 0 else -1)
    return {query: trapezoid_average_precision([one for one in own if one >= 0], len(own))
            for query, own in ranks.items()}


def pooled_average_precision(judged: JudgedPairs) -> float:
    """Return the trapezoid average precision of one list with the results of all queries, over all true pairs."""
    return trapezoid_average_precision(np.flatnonzero(judged.correct), len(judged.gt_query))
