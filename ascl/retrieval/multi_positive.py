"""R-Precision and mAP@R, for queries with several right candidates: how many of the right ones are near the front.

Recall at K asks for one right candidate and so says little where there are many. For a query with R right candidates,

    R-Precision = share of right ones among the best R
    AP@R        = 1/R * sum over ranks i = 1..R of (precision among the best i) if the one at rank i is right, else 0

and mAP@R is the mean of AP@R over the queries (Musgrave, Belongie, Lim 2020, "A Metric Learning Reality Check"; so used
by ECCV Caption, Chun et al. 2022). Both are 1 where all right candidates come first, and in [0, 1] always.

As everywhere here, ranks are counted and ties are lost: of equal scores the wrong ones come first. Only the best R
right and the best R wrong candidates of a query are ever put in order.
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
    """One direction: `map_at_r` and `r_precision` in percent; `mean_right`: right candidates of a query, on average."""

    map_at_r: float
    r_precision: float
    mean_right: float
    queries: int


@dataclass(frozen=True)
class MultiPositiveReport:
    """Both directions."""

    i2t: MultiPositive
    t2i: MultiPositive

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A table with one row for each direction."""
        return directions_table("mAP@R | R-Precision | right candidates, mean | queries", self.i2t, self.t2i)


def multi_positive_report(scores: Matrix, truth: Matrix, *,
                          block_elements: int = BLOCK_ELEMENTS) -> MultiPositiveReport:
    """Return mAP@R and R-Precision in both directions.

    Args:
        scores: (N_images, N_texts) tensor, array or memmap, higher = more alike; read in blocks of
            `block_elements`, never sorted whole.
        truth: (N_images, N_texts) bool: every pair that is right. A query without any is left out.

    Raises:
        DataError: shapes that differ, a truth that is not bool or holds no pair, a score that is not finite.
    """
    if scores.ndim != 2 or tuple(scores.shape) != tuple(truth.shape):
        raise DataError(f"scores have shape {tuple(scores.shape)}, truth has {tuple(truth.shape)}: give both as "
                        "(images, texts)")
    if truth.dtype not in (torch.bool, np.dtype(bool)):
        raise DataError(f"truth has to be bool, it is {truth.dtype}")
    return MultiPositiveReport(i2t=_direction(scores, truth, block_elements),
                               t2i=_direction(scores.T, truth.T, block_elements))


def _direction(scores: Matrix, truth: Matrix, elements: int) -> MultiPositive:
    """Rows are queries."""
    precision, average, right = (torch.cat(parts) for parts in zip(*_of_queries(scores, truth, elements), strict=True))
    has_right = right > 0
    if not has_right.any():
        raise DataError("truth holds no right pair: there is nothing to be found")
    return MultiPositive(map_at_r=100 * float(average[has_right].mean()),
                         r_precision=100 * float(precision[has_right].mean()),
                         mean_right=float(right[has_right].double().mean()), queries=int(has_right.sum()))


def _of_queries(scores: Matrix, truth: Matrix, elements: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of R-Precision, AP@R (0 where there is no right candidate) and number of right candidates, each (n,)."""
    step = max(1, elements // max(1, scores.shape[1]))
    for first in range(0, scores.shape[0], step):
        block, right = float_tensor(scores[first : first + step]), as_tensor(truth[first : first + step])
        if (bad := first_not_finite(block)) is not None:
            row, column, value = bad
            raise DataError(f"a score is {value} (query {first + row}, candidate {column}): such a score has no rank")
        count = right.sum(dim=1)
        most = int(count.max())
        best_right = block.masked_fill(~right, -torch.inf).topk(most, dim=1).values
        best_wrong = block.masked_fill(right, -torch.inf).topk(min(most, block.shape[1]), dim=1).values
        # wrong candidates that reach each right one; R or more of them, and it is not among the best R in any case
        reach = torch.searchsorted(-best_wrong, -best_right, right=True)
        number = torch.arange(1, most + 1, device=block.device)             # of the right candidates, best first
        rank = number + reach
        found = (rank <= count[:, None]) & (number <= count[:, None])
        divisor = count.clamp(min=1).double()
        average = (number.double() / rank * found).sum(dim=1) / divisor
        yield (found.sum(dim=1) / divisor).cpu(), average.cpu(), count.cpu()
