"""R-Precision and mAP@R, for queries with several right candidates: how many of them are near the top.

Recall at K needs one right candidate only and says little if there are many. For a query with R right candidates,

    R-Precision = share of right ones among the best R
    AP@R        = 1/R * sum over ranks i = 1..R of (precision among the best i) if the one at rank i is right, else 0

and mAP@R is the mean of AP@R over the queries (Musgrave, Belongie, Lim 2020, "A Metric Learning Reality Check"; used
by ECCV Caption, Chun et al. 2022). Both lie in [0, 1] and are 1 if all right candidates come first.

As in `ranking`, ties count as lost: of equal scores the wrong ones come first. Only the best R right and the best R
wrong candidates of a query are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.retrieval.ranking import BLOCK_ELEMENTS, Matrix, as_tensor, first_not_finite, float_tensor
from ascl.retrieval.report import directions_table


@dataclass(frozen=True)
class MultiPositive:
    """Metrics of one direction: `map_at_r`, `r_precision` in percent; `mean_right`: mean right candidates per query."""

    map_at_r: float
    r_precision: float
    mean_right: float
    queries: int


@dataclass(frozen=True)
class MultiPositiveReport:
    """The metrics of both directions."""

    i2t: MultiPositive
    t2i: MultiPositive

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return a table with one row per direction."""
        return directions_table("mAP@R | R-Precision | right candidates, mean | queries", self.i2t, self.t2i)


def multi_positive_report(scores: Matrix, truth: Matrix, *,
                          block_elements: int = BLOCK_ELEMENTS) -> MultiPositiveReport:
    """Return mAP@R and R-Precision in both directions.

    Args:
        scores: (N_images, N_texts) tensor, array or memmap, higher = more similar; read in blocks of
            `block_elements` scores.
        truth: (N_images, N_texts) bool, True = a right pair. Queries without a right candidate are left out.

    Raises:
        DataError: shapes differ, truth is not bool or has no right pair, or a score is not finite.
    """
    if scores.ndim != 2 or tuple(scores.shape) != tuple(truth.shape):
        raise DataError(f"scores have shape {tuple(scores.shape)}, truth has {tuple(truth.shape)}: give both as "
                        "(images, texts)")
    if truth.dtype not in (torch.bool, np.dtype(bool)):
        raise DataError(f"truth must be bool, got {truth.dtype}")
    return MultiPositiveReport(i2t=_direction(scores, truth, block_elements),
                               t2i=_direction(scores.T, truth.T, block_elements))


def _direction(scores: Matrix, truth: Matrix, elements: int) -> MultiPositive:
    """Return the metrics of one direction; rows are queries."""
    precision, average, right = (torch.cat(parts) for parts in zip(*_of_queries(scores, truth, elements), strict=True))
    has_right = right > 0
    if not has_right.any():
        raise DataError("truth has no right pair, so no query can be evaluated: set at least one entry to True")
    return MultiPositive(map_at_r=100 * float(average[has_right].mean()),
                         r_precision=100 * float(precision[has_right].mean()),
                         mean_right=float(right[has_right].double().mean()), queries=int(has_right.sum()))


def _of_queries(scores: Matrix, truth: Matrix, elements: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield R-Precision, AP@R (0 without right candidates) and number of right candidates, (n,) for each block."""
    step = max(1, elements // max(1, scores.shape[1]))
    for first in range(0, scores.shape[0], step):
        block, right = float_tensor(scores[first : first + step]), as_tensor(truth[first : first + step])
        if (bad := first_not_finite(block)) is not None:
            row, column, value = bad
            raise DataError(f"a score is {value} (query {first + row}, candidate {column}) and cannot be ranked: look "
                            "for NaN features or an overflow in the model")
        count = right.sum(dim=1)
        most = int(count.max())
        best_right = block.masked_fill(~right, -torch.inf).topk(most, dim=1).values
        best_wrong = block.masked_fill(right, -torch.inf).topk(min(most, block.shape[1]), dim=1).values
        # wrong candidates that score at least as high as each right one; with R or more, it is not among the best R
        reach = torch.searchsorted(-best_wrong, -best_right, right=True)
        number = torch.arange(1, most + 1, device=block.device)             # numbers the right candidates, best first
        rank = number + reach
        found = (rank <= count[:, None]) & (number <= count[:, None])
        divisor = count.clamp(min=1).double()
        average = (number.double() / rank * found).sum(dim=1) / divisor
        yield (found.sum(dim=1) / divisor).cpu(), average.cpu(), count.cpu()
