"""Reports of recalls in both directions, from a score matrix or from ranks, or averaged over folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.retrieval import ranking
from ascl.retrieval.ranking import BLOCK_ELEMENTS, Matrix, Ranks, Vector, ranks


@dataclass(frozen=True)
class Recalls:
    """Recalls of one direction: `r1`, `r5`, `r10` in percent of the queries; ranks start at 1 (best)."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    queries: int


def directions_table(columns: str, i2t: Any, t2i: Any) -> str:
    """Return a Markdown table with a row per direction: the fields of two dataclasses, floats with one decimal."""
    rows = [[name, *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in astuple(numbers))]
            for name, numbers in (("image to text", i2t), ("text to image", t2i))]
    head = [f"| direction | {columns} |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows), ""])


@dataclass(frozen=True)
class _BothDirections:
    i2t: Recalls
    t2i: Recalls

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, 0 to 600."""
        return sum(recalls.r1 + recalls.r5 + recalls.r10 for recalls in (self.i2t, self.t2i))

    def _markdown(self, under: str) -> str:
        columns = "R@1 | R@5 | R@10 | median rank | mean rank | queries"
        return f"{directions_table(columns, self.i2t, self.t2i)}\n{under}\n"


@dataclass(frozen=True)
class RetrievalReport(_BothDirections):
    """Recalls in both directions over `images` images and `texts` texts."""

    images: int
    texts: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON, `rsum` included."""
        return {**asdict(self), "rsum": self.rsum}

    def to_markdown(self) -> str:
        """Return a table with one row per direction, and a line with Rsum."""
        return self._markdown(f"Rsum {self.rsum:.1f} over {self.images} images and {self.texts} texts.")


@dataclass(frozen=True)
class FoldReport(_BothDirections):
    """Recalls averaged over folds: `i2t` and `t2i` hold each metric's mean and the total number of queries."""

    folds: tuple[RetrievalReport, ...]

    @classmethod
    def mean(cls, folds: Sequence[RetrievalReport]) -> FoldReport:
        """Return the mean over folds."""
        return cls(_mean([fold.i2t for fold in folds]), _mean([fold.t2i for fold in folds]), tuple(folds))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON: the means, `rsum`, and each fold's report."""
        return {"i2t": asdict(self.i2t), "t2i": asdict(self.t2i), "rsum": self.rsum,
                "folds": [fold.to_dict() for fold in self.folds]}

    def to_markdown(self) -> str:
        """Return a table of the means, and a line with each fold's Rsum."""
        each = ", ".join(f"{fold.rsum:.1f}" for fold in self.folds)
        images = ", ".join(str(fold.images) for fold in self.folds)
        return self._markdown(f"Mean of {len(self.folds)} folds of {images} images: Rsum {self.rsum:.1f} "
                              f"(each fold: {each}).")


def rank_report(scores: Matrix | Iterable[Matrix], owner: Vector, *, truth: Matrix | None = None,
                block_elements: int = BLOCK_ELEMENTS) -> RetrievalReport:
    """Return recall at 1, 5 and 10 in both directions, for a score matrix given whole or in blocks.

    Recalls are in percent, `rsum` (their sum) is in [0, 600]. Arguments and errors as for `ranks`.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.2, 0.1],
        ...                        [0.3, 0.4, 0.8]])
        >>> report = rank_report(scores, owner=[0, 0, 1])       # texts 0 and 1 belong to image 0, text 2 to image 1
        >>> report.i2t.r1, round(report.t2i.r1, 1), round(report.t2i.mean_rank, 2)      # text 1 prefers image 1
        (100.0, 66.7, 1.33)
    """
    return recall_report(ranks(scores, owner, truth=truth, block_elements=block_elements))


def recall_report(counted: Ranks) -> RetrievalReport:
    """Return the recalls of given ranks."""
    return RetrievalReport(_recalls(counted.i2t), _recalls(counted.t2i), counted.images, counted.texts)


def fold_report(scores: Matrix, owner: Vector, folds: int = 5, *, truth: Matrix | None = None,
                block_elements: int = BLOCK_ELEMENTS) -> FoldReport:
    """Return recalls averaged over consecutive folds of images; a fold is ranked among its own images and texts only.

    COCO 1K is the mean of five folds of 1,000 of the 5,000 test images. Other arguments and errors as for `ranks`.

    Args:
        scores: (N_images, N_texts) tensor, array or memmap; read in blocks of `block_elements` scores.
        folds: number of folds; must divide N_images, because recall depends on the number of candidates.

    Raises:
        DataError: `folds` does not divide N_images, or a fold has no text.

    Example:
        >>> import numpy as np
        >>> scores = np.eye(4)
        >>> scores[0, 2] = 2                                            # text 2 scores highest with image 0
        >>> fold_report(scores, owner=[0, 1, 2, 3], folds=2).t2i.r1     # image 0 is not in the fold of text 2
        100.0
        >>> rank_report(scores, owner=[0, 1, 2, 3]).t2i.r1
        75.0
    """
    ranking.check_matrix(scores, "the score matrix")
    owner = ranking.as_owner(owner)
    ranking.check_owner(owner, *scores.shape)
    reports = []
    for rows, columns in folds_of(owner, scores.shape[0], folds):
        fold_truth = None if truth is None else truth[rows.start : rows.stop][:, columns]
        fold = ranking.MatrixBlocks(scores, rows, columns, block_elements)
        reports.append(rank_report(fold, owner[columns] - rows.start, truth=fold_truth))
    return FoldReport.mean(reports)


def folds_of(owner: np.ndarray, images: int, folds: int) -> list[tuple[range, np.ndarray]]:
    """Return the images and the texts of each of `folds` consecutive blocks of images.

    Args:
        owner: (N_texts,) image of each text, from 0 to `images` - 1.

    Raises:
        DataError: as `fold_report`.
    """
    if folds < 1 or images == 0 or images % folds:
        raise DataError(f"{images} images cannot be split into {folds} equal folds; choose a divisor of {images}")
    parts = []
    for first in range(0, images, images // folds):
        rows = range(first, first + images // folds)
        columns = np.flatnonzero((owner >= first) & (owner < rows.stop))
        if not len(columns):
            raise DataError(f"no text belongs to images {first} to {rows[-1]}, so this fold cannot be ranked: choose "
                            "fewer folds")
        parts.append((rows, columns))
    return parts


def _recalls(zero_based: np.ndarray) -> Recalls:
    r1, r5, r10 = (100.0 * int((zero_based < k).sum()) / len(zero_based) for k in (1, 5, 10))
    return Recalls(r1, r5, r10, float(np.median(zero_based)) + 1, float(zero_based.mean()) + 1, len(zero_based))


def _mean(folds: list[Recalls]) -> Recalls:
    *totals, queries = map(sum, zip(*map(astuple, folds), strict=True))
    r1, r5, r10, median_rank, mean_rank = (total / len(folds) for total in totals)
    return Recalls(r1, r5, r10, median_rank, mean_rank, queries)
