"""Ranks and recalls of a score matrix: counted rather than sorted, ties lost, block by block.

The rank of a query (0 is best) is the number of wrong candidates whose score is at least that of its best right one.
Counting needs no order among equals, so a constant matrix scores nothing and no sort's stability enters the result.
Which candidates are right comes from a vector of owners or, where a data set knows it, from the whole truth.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError

BLOCK_ELEMENTS = 2**22  # scores looked at together: 16 MiB in float32, and as much again for the masks

Matrix = Tensor | np.ndarray
Vector = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Ranks:
    """Rank of every query that has a right candidate; 0 is best.

    Attributes:
        i2t: (Q_images,) int64, in the order of the images.
        t2i: (Q_texts,) int64, in the order of the texts.
        image_queries: (Q_images,) int64: which image each entry of `i2t` is; an image without captions is no query.
        text_queries: (Q_texts,) int64: which text each entry of `t2i` is.
        images: rows of the score matrix, distractors included.
        texts: columns of the score matrix, distractors included.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    image_queries: np.ndarray
    text_queries: np.ndarray
    images: int
    texts: int


@dataclass(frozen=True)
class Recalls:
    """One direction of retrieval: `r1`, `r5`, `r10` in percent of the queries; ranks from 1 = best."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    queries: int


@dataclass(frozen=True)
class RetrievalReport:
    """Recalls in both directions over `images` images and `texts` texts."""

    i2t: Recalls
    t2i: Recalls
    images: int
    texts: int

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, 0 to 600."""
        return _rsum(self.i2t, self.t2i)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, `rsum` included."""
        return {**asdict(self), "rsum": self.rsum}

    def to_markdown(self) -> str:
        """A table with one row for each direction and one line under it."""
        return _markdown(self.i2t, self.t2i, f"Rsum {self.rsum:.1f} over {self.images} images and {self.texts} texts.")


@dataclass(frozen=True)
class FoldReport:
    """Several folds: `i2t` and `t2i` hold the mean over the folds of each figure, and the total of the queries."""

    i2t: Recalls
    t2i: Recalls
    folds: tuple[RetrievalReport, ...]

    @property
    def rsum(self) -> float:
        """Mean over the folds of the sum of the six recalls, 0 to 600."""
        return _rsum(self.i2t, self.t2i)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: the means, `rsum`, and every fold's own report."""
        return {
            "i2t": asdict(self.i2t),
            "t2i": asdict(self.t2i),
            "rsum": self.rsum,
            "folds": [fold.to_dict() for fold in self.folds],
        }

    def to_markdown(self) -> str:
        """A table of the means, and under it each fold's own sum."""
        each = ", ".join(f"{fold.rsum:.1f}" for fold in self.folds)
        images = ", ".join(str(fold.images) for fold in self.folds)
        return _markdown(
            self.i2t,
            self.t2i,
            f"Mean of {len(self.folds)} folds of {images} images: Rsum {self.rsum:.1f} (each fold: {each}).",
        )


def ranks(blocks: Matrix | Iterable[Matrix], owner: Vector, *, truth: Matrix | None = None) -> Ranks:
    """Count the rank of every query of a score matrix that is given whole or as blocks of rows.

    The blocks are read twice: once for each query's best right score (and the ranks of the images, whose rows are
    complete), once to count for each text the images that reach it. So `blocks` has to be a list, a tuple or an object
    that starts anew each time it is iterated; a generator is refused.

    Args:
        blocks: (N_images, N_texts) float16, bfloat16, float32, float64 or integer scores, higher = more alike, as one
            tensor, array or memmap, or as blocks (n, N_texts) in the order of the images. Blocks may lie on a GPU.
        owner: (N_texts,) integers in [0, N_images): the image that each text belongs to, in any order and number.
        truth: (N_images, N_texts) bool: every pair that is right, where that is known. A hit is then any right
            candidate and only the others are wrong. It has to contain each text's own image.

    Returns:
        Ranks with numpy arrays.

    Raises:
        DataError: a score is not finite (row and column are named), or shapes, owners or truth do not fit.
    """
    blocks = _as_blocks(blocks)
    owner_vector = as_owner(owner)
    image_ranks, has_caption, best_of_text = _image_ranks(blocks, owner_vector, truth)
    images = len(image_ranks)
    text_ranks = _text_ranks(blocks, owner_vector, truth, best_of_text, images)
    return Ranks(
        i2t=image_ranks[has_caption],
        t2i=text_ranks,
        image_queries=np.flatnonzero(has_caption),
        text_queries=np.arange(len(text_ranks)),
        images=images,
        texts=len(text_ranks),
    )


def rank_report(scores: Matrix | Iterable[Matrix], owner: Vector, *, truth: Matrix | None = None) -> RetrievalReport:
    """Recall at 1, 5 and 10 in both directions, for scores whole or in blocks.

    Arguments and errors as for `ranks`. With `truth` an image's or a text's hit is its best true candidate.
    """
    return report_of(ranks(scores, owner, truth=truth))


def report_of(counted: Ranks) -> RetrievalReport:
    """Recalls of ranks."""
    return RetrievalReport(
        i2t=_recalls(counted.i2t), t2i=_recalls(counted.t2i), images=counted.images, texts=counted.texts
    )


def fold_report(scores: Matrix, owner: Vector, folds: int = 5, *, truth: Matrix | None = None) -> FoldReport:
    """Mean over consecutive folds of images, each ranked among its own images and their own texts only.

    COCO 1K is five folds of 1,000 of the 5,000 test images.

    Args:
        scores: (N_images, N_texts) matrix, tensor, array or memmap; read in blocks.
        owner: (N_texts,) image of each text.
        folds: how many; has to divide N_images, because recall depends on the number of candidates.
        truth: (N_images, N_texts) bool or None, as for `ranks`.

    Raises:
        DataError: as for `ranks`, and where the folds would be unequal or one of them would have no text.
    """
    _check_matrix(scores, "the score matrix")
    images = scores.shape[0]
    if folds < 1 or images == 0 or images % folds:
        raise DataError(f"{images} images cannot be split into {folds} equal folds; choose a divisor of {images}")
    owner_vector = as_owner(owner)
    check_owner(owner_vector, images, scores.shape[1])
    size = images // folds
    reports = []
    for first in range(0, images, size):
        columns = np.flatnonzero((owner_vector >= first) & (owner_vector < first + size))
        if not len(columns):
            raise DataError(f"no text belongs to images {first} to {first + size - 1}: this fold cannot be ranked")
        fold = _MatrixBlocks(scores, range(first, first + size), columns)
        fold_truth = None if truth is None else truth[first : first + size][:, columns]
        reports.append(rank_report(fold, owner_vector[columns] - first, truth=fold_truth))
    return FoldReport(
        i2t=_mean_recalls([report.i2t for report in reports]),
        t2i=_mean_recalls([report.t2i for report in reports]),
        folds=tuple(reports),
    )


def load_scores(path: str | os.PathLike, owner: Vector | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a score matrix made elsewhere: an `.npz` file with the arrays `scores` and `owner`.

    Args:
        path: file written by `numpy.savez(path, scores=scores, owner=owner)`.
        owner: used where the file has none; the owner is never guessed from the shape.

    Returns:
        scores (N_images, N_texts) float, owner (N_texts,) int64.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an npz file, truncated, an array missing, or shapes and owners that do not fit.
    """
    path = Path(path)
    arrays = _read_npz(path)
    if "scores" not in arrays:
        found = ", ".join(sorted(arrays)) or "none"
        raise DataError(f"{path} has no array `scores` (found: {found}); write it with numpy.savez(path, scores=...)")
    if "owner" in arrays and owner is not None:
        raise DataError(f"{path} holds an array `owner` and another one was given; leave one of them out")
    if "owner" not in arrays and owner is None:
        raise DataError(
            f"{path} has no array `owner`: add one integer for each column of `scores`, the row (image) that this "
            "text belongs to, for example numpy.savez(path, scores=scores, owner=numpy.repeat(numpy.arange(n), 5))"
        )
    scores = arrays["scores"]
    try:
        _check_matrix(scores, "`scores`")
        owner_vector = as_owner(arrays["owner"] if owner is None else owner)
        check_owner(owner_vector, scores.shape[0], scores.shape[1])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return scores, owner_vector


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no score file at {path}")
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise DataError(f"{path} holds one bare array; write scores and owner with numpy.savez(path, ...)")
        with opened as archive:
            return {name: archive[name] for name in archive.files if name in ("scores", "owner")}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file of numbers, or is truncated: {error}") from error


# The two passes


def _image_ranks(
    blocks: Iterable[Matrix], owner: np.ndarray, truth: Matrix | None
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """First pass: the rank of each image, whether it has a right text, and each text's best right score."""
    image_ranks, has_right = [], []
    best_of_text: Tensor | None = None
    for first, block in _checked_blocks(blocks, len(owner)):
        right = _right_pairs(first, block, owner, truth)
        right_scores = block.masked_fill(~right, -math.inf)
        best_of_image = right_scores.amax(dim=1)
        image_ranks.append(((block >= best_of_image[:, None]) & ~right).sum(dim=1).cpu())
        has_right.append(right.any(dim=1).cpu())
        best_here = right_scores.amax(dim=0)
        if best_of_text is not None:
            best_here = torch.maximum(*_same_type(best_of_text.to(block.device), best_here))
        best_of_text = best_here
    if best_of_text is None:
        raise DataError("there are no scores: no block of rows has a row")
    images = sum(map(len, image_ranks))
    check_owner(owner, images, len(owner))
    if truth is not None and tuple(truth.shape) != (images, len(owner)):
        raise DataError(f"truth has shape {tuple(truth.shape)}, the scores have ({images}, {len(owner)})")
    return torch.cat(image_ranks).numpy(), torch.cat(has_right).numpy(), best_of_text


def _text_ranks(
    blocks: Iterable[Matrix], owner: np.ndarray, truth: Matrix | None, best: Tensor, images: int
) -> np.ndarray:
    """Second pass: how many wrong images reach each text's best right score."""
    counts = torch.zeros(len(owner), dtype=torch.int64)
    rows = 0
    for first, block in _checked_blocks(blocks, len(owner)):
        right = _right_pairs(first, block, owner, truth)
        counts += ((block >= best.to(block.device)) & ~right).sum(dim=0).cpu()
        rows = first + len(block)
    if rows != images:
        raise DataError(f"the blocks held {images} rows when read first and {rows} when read again")
    return counts.numpy()


def _right_pairs(first: int, block: Tensor, owner: np.ndarray, truth: Matrix | None) -> Tensor:
    """(n, N_texts) bool: the right pairs of rows `first` and on."""
    rows = torch.arange(first, first + len(block), device=block.device)
    own = torch.from_numpy(owner).to(block.device) == rows[:, None]
    if truth is None:
        return own
    part = truth[first : first + len(block)]
    right = (part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))).to(block.device)
    if right.dtype != torch.bool or right.shape != block.shape:
        raise DataError(
            f"truth has to be bool and as large as the scores: rows {first} to {first + len(block) - 1} are "
            f"{right.dtype} {tuple(right.shape)}, the scores {tuple(block.shape)}"
        )
    if (own & ~right).any():
        row, column = (own & ~right).nonzero()[0].tolist()
        raise DataError(f"truth[{first + row}, {column}] is False, but text {column} belongs to image {first + row}")
    return right


# Reading blocks


class _MatrixBlocks:
    """Row blocks of a matrix, or of some of its rows and columns; can be iterated again and again."""

    def __init__(self, matrix: Matrix, rows: range, columns: np.ndarray | None = None) -> None:
        self.matrix, self.rows, self.columns = matrix, rows, columns

    def __iter__(self) -> Iterator[Matrix]:
        step = max(1, BLOCK_ELEMENTS // max(1, self.matrix.shape[1]))
        for first in range(self.rows.start, self.rows.stop, step):
            block = self.matrix[first : min(first + step, self.rows.stop)]
            yield block if self.columns is None else block[:, self.columns]


def _as_blocks(scores: Matrix | Iterable[Matrix]) -> Iterable[Matrix]:
    if isinstance(scores, Tensor | np.ndarray):
        _check_matrix(scores, "the score matrix")
        return _MatrixBlocks(scores, range(scores.shape[0]))
    if iter(scores) is scores:
        raise DataError("the blocks are read twice and a generator can be read once; give a list of blocks")
    return scores


def _checked_blocks(blocks: Iterable[Matrix], texts: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, float tensor) of each block, after checking its shape and that every score is finite."""
    first = 0
    for block in blocks:
        _check_matrix(block, f"the block of scores from row {first} on")
        if block.shape[1] != texts:
            raise DataError(
                f"the scores have {block.shape[1]} columns and owner has {texts} entries; give one per text"
            )
        if len(block) == 0:
            continue
        tensor = _float_tensor(block)
        finite = torch.isfinite(tensor)
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"scores[{first + row}, {column}] is {tensor[row, column].item()} (image {first + row}, text {column}; "
                f"{int((~finite).sum())} scores of this block of {len(block)} rows are not finite): such a score has "
                "no rank; look for NaN features or an overflow in what computed it"
            )
        yield first, tensor
        first += len(block)


def _float_tensor(block: Matrix) -> Tensor:
    if not isinstance(block, Tensor):
        # A copy of the block, because a memmap is read-only; numpy's bytes may also be in the other machine's order.
        block = torch.from_numpy(np.array(block, dtype=block.dtype.newbyteorder("=")))
    block = block.detach()
    return block if block.is_floating_point() else block.double()


def _same_type(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.promote_types(a.dtype, b.dtype)
    return a.to(both), b.to(both)


# Checks


def _check_matrix(scores: Any, what: str) -> None:
    if not isinstance(scores, Tensor | np.ndarray) or scores.ndim != 2:
        shape = tuple(scores.shape) if isinstance(scores, Tensor | np.ndarray) else type(scores).__name__
        raise DataError(f"{what} has to be a tensor or an array of shape (images, texts), not {shape}")
    # float128 does not fit into a tensor, and complex numbers, strings and booleans have no rank
    if isinstance(scores, np.ndarray) and (scores.dtype.kind not in "fiu" or scores.dtype.itemsize > 8):
        raise DataError(f"{what} holds {scores.dtype}; give float16, float32, float64 or integers")
    if isinstance(scores, Tensor) and (scores.dtype.is_complex or scores.dtype == torch.bool):
        raise DataError(f"{what} holds {scores.dtype}; give float16, bfloat16, float32, float64 or integers")


def as_owner(owner: Vector) -> np.ndarray:
    """(N_texts,) int64 of what was given as owners; DataError for what is no vector of integers."""
    vector = owner.detach().cpu().numpy() if isinstance(owner, Tensor) else np.asarray(owner)
    if vector.ndim != 1 or not len(vector) or vector.dtype.kind not in "iu":
        raise DataError(
            "owner has to be a vector of integers with one entry for each text, "
            f"not {vector.dtype} of shape {vector.shape}"
        )
    return vector.astype(np.int64)


def check_owner(owner: np.ndarray, images: int, texts: int) -> None:
    """DataError unless `owner` has one of `images` images for each of `texts` texts."""
    if len(owner) != texts:
        raise DataError(f"the scores have {texts} columns and owner has {len(owner)} entries; give one per text")
    outside = np.flatnonzero((owner < 0) | (owner >= images))
    if len(outside):
        raise DataError(
            f"owner[{outside[0]}] is {owner[outside[0]]}, but the scores have {images} rows "
            f"(images 0 to {images - 1}); {len(outside)} entries are out of range"
        )


# Figures


def _recalls(zero_based: np.ndarray) -> Recalls:
    def recall(k: int) -> float:
        return 100.0 * int((zero_based < k).sum()) / len(zero_based)

    return Recalls(
        r1=recall(1),
        r5=recall(5),
        r10=recall(10),
        median_rank=float(np.median(zero_based)) + 1,
        mean_rank=float(zero_based.mean()) + 1,
        queries=len(zero_based),
    )


def _mean_recalls(each: list[Recalls]) -> Recalls:
    def mean(read: Callable[[Recalls], float]) -> float:
        return sum(map(read, each)) / len(each)

    return Recalls(
        r1=mean(lambda fold: fold.r1),
        r5=mean(lambda fold: fold.r5),
        r10=mean(lambda fold: fold.r10),
        median_rank=mean(lambda fold: fold.median_rank),
        mean_rank=mean(lambda fold: fold.mean_rank),
        queries=sum(fold.queries for fold in each),
    )


def _rsum(i2t: Recalls, t2i: Recalls) -> float:
    return i2t.r1 + i2t.r5 + i2t.r10 + t2i.r1 + t2i.r5 + t2i.r10


def _markdown(i2t: Recalls, t2i: Recalls, under: str) -> str:
    rows = [
        f"| {name} | {r.r1:.1f} | {r.r5:.1f} | {r.r10:.1f} | {r.median_rank:.1f} | {r.mean_rank:.1f} | {r.queries} |"
        for name, r in (("image to text", i2t), ("text to image", t2i))
    ]
    head = ["| direction | R@1 | R@5 | R@10 | median rank | mean rank | queries |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", under, ""])
