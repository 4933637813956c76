"""Ranks of a score matrix, counted block by block instead of sorted; ties count as lost.

The rank of a query (0 is best) is the number of wrong candidates whose score is at least that of its best right one.
Counting needs no order among equal scores, so a constant matrix earns nothing and no sorting algorithm affects the
result. Right candidates are given by a vector of owners or, if a data set has them, by a matrix of all right pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError

BLOCK_ELEMENTS = 2**22  # scores processed at a time: 16 MiB in float32, and as much again for masks

Matrix = Tensor | np.ndarray
Vector = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Ranks:
    """The rank of every query that has a right candidate; 0 is best.

    Attributes:
        i2t, t2i: (Q_images,) and (Q_texts,) int64 ranks, in the order of the images and of the texts.
        image_queries: (Q_images,) int64, the image of each entry of `i2t`; images without captions are not queries.
        text_queries: (Q_texts,) int64, the text of each entry of `t2i`.
        images, texts: numbers of rows and columns of the score matrix, distractors included.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    image_queries: np.ndarray
    text_queries: np.ndarray
    images: int
    texts: int


def ranks(blocks: Matrix | Iterable[Matrix], owner: Vector, *, truth: Matrix | None = None,
          block_elements: int = BLOCK_ELEMENTS) -> Ranks:
    """Count the rank of every query of a score matrix, given whole or as blocks of rows.

    The blocks are read twice: first for each query's best right score (and the ranks of images, whose rows are
    complete), then for the ranks of texts. So `blocks` must be a list, a tuple or another object that can be iterated
    twice; generators are refused.

    Args:
        blocks: (N_images, N_texts) float16, bfloat16, float32, float64 or integer scores, higher = more similar, as one
            tensor, array or memmap, or as blocks (n, N_texts) in the order of the images. Blocks may be on a GPU.
        owner: (N_texts,) integers in [0, N_images): the image that each text belongs to, in any order and number.
        truth: (N_images, N_texts) bool, True = a right pair, if all right pairs are known. Any right candidate is then
            a hit. It must include each text's own image.
        block_elements: number of scores processed at a time, for a whole matrix.

    Raises:
        DataError: a score is not finite (the message names row and column), or shapes, owners or truth do not fit.

    Example:
        >>> scores = torch.tensor([[0.9, 0.2, 0.1],
        ...                        [0.3, 0.4, 0.8]])
        >>> counted = ranks(scores, owner=[0, 0, 1])            # texts 0 and 1 belong to image 0, text 2 to image 1
        >>> counted.i2t.tolist(), counted.t2i.tolist()          # text 1 (0.2) scores higher with image 1 (0.4)
        ([0, 0], [0, 1, 0])
        >>> ranks(torch.zeros(2, 3), owner=[0, 0, 1]).t2i.tolist()          # ties count as lost
        [1, 1, 1]
    """
    if isinstance(blocks, Matrix):
        check_matrix(blocks, "the score matrix")
        blocks = MatrixBlocks(blocks, range(blocks.shape[0]), None, block_elements)
    elif iter(blocks) is blocks:
        raise DataError("blocks are read twice, but a generator can be read only once: give a list of blocks")
    owner = as_owner(owner)
    image_ranks, has_caption, best_of_text = _image_ranks(blocks, owner, truth)
    images, texts = len(image_ranks), len(owner)
    text_ranks = torch.zeros(texts, dtype=torch.int64)
    rows = 0
    for block, right in _blocks_and_right_pairs(blocks, owner, truth):
        text_ranks += ((block >= best_of_text.to(block.device)) & ~right).sum(dim=0).cpu()
        rows += len(block)
    if rows != images:
        raise DataError(f"the blocks held {images} rows when first read and {rows} when read again: they must not "
                        "change in between")
    return Ranks(image_ranks[has_caption], text_ranks.numpy(), np.flatnonzero(has_caption), np.arange(texts), images,
                 texts)


def _image_ranks(blocks: Iterable[Matrix], owner: np.ndarray,
                 truth: Matrix | None) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return, in a first pass, each image's rank, whether it has a right text, and each text's best right score."""
    image_ranks, has_right = [], []
    best_of_text: Tensor | None = None
    for block, right in _blocks_and_right_pairs(blocks, owner, truth):
        right_scores = block.masked_fill(~right, -math.inf)
        image_ranks.append(((block >= right_scores.amax(dim=1, keepdim=True)) & ~right).sum(dim=1).cpu())
        has_right.append(right.any(dim=1).cpu())
        best_here = right_scores.amax(dim=0)
        if best_of_text is not None:
            best_here = torch.maximum(best_of_text.to(block.device), best_here)     # promotes to the wider dtype
        best_of_text = best_here
    if best_of_text is None:
        raise DataError("there are no scores: all blocks are empty")
    images = sum(map(len, image_ranks))
    check_owner(owner, images, len(owner))
    if truth is not None and tuple(truth.shape) != (images, len(owner)):
        raise DataError(f"truth has shape {tuple(truth.shape)}, but the scores have ({images}, {len(owner)}): give one "
                        "entry per score")
    return torch.cat(image_ranks).numpy(), torch.cat(has_right).numpy(), best_of_text


def _blocks_and_right_pairs(blocks: Iterable[Matrix], owner: np.ndarray,
                            truth: Matrix | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the checked float scores (n, N_texts) and right pairs (n, N_texts) bool of each nonempty block."""
    first = 0
    for given in blocks:
        check_matrix(given, f"the block of scores from row {first} on")
        if given.shape[1] != len(owner):
            raise DataError(f"the scores have {given.shape[1]} columns and owner has {len(owner)} entries: give one "
                            "entry per column (text)")
        if len(given) == 0:
            continue
        block = float_tensor(given)
        if (bad := first_not_finite(block)) is not None:
            row, column, value = bad
            raise DataError(f"scores[{first + row}, {column}] is {value} (image {first + row}, text {column}) and "
                            "cannot be ranked: look for NaN features or an overflow in the model")
        yield block, _right_pairs(first, block, owner, truth)
        first += len(block)


def _right_pairs(first: int, block: Tensor, owner: np.ndarray, truth: Matrix | None) -> Tensor:
    """Return the right pairs (n, N_texts) bool of the block that starts at row `first`."""
    rows = torch.arange(first, first + len(block), device=block.device)
    own = torch.from_numpy(owner).to(block.device) == rows[:, None]
    if truth is None:
        return own
    right = as_tensor(truth[first : first + len(block)]).to(block.device)
    if right.dtype != torch.bool or right.shape != block.shape:
        raise DataError(f"truth must be bool and have the shape of the scores: from row {first} on it is {right.dtype} "
                        f"{tuple(right.shape)}, the scores are {tuple(block.shape)}")
    if (own & ~right).any():
        row, column = (own & ~right).nonzero()[0].tolist()
        raise DataError(f"truth[{first + row}, {column}] is False, but text {column} belongs to image {first + row}: "
                        "correct truth or owner")
    return right


class MatrixBlocks:
    """Row blocks of a matrix, or of some of its rows and columns; can be iterated many times."""

    def __init__(self, matrix: Matrix, rows: range, columns: np.ndarray | None, elements: int) -> None:
        self.matrix, self.rows, self.columns = matrix, rows, columns
        self.step = max(1, elements // max(1, matrix.shape[1]))

    def __iter__(self) -> Iterator[Matrix]:
        for first in range(self.rows.start, self.rows.stop, self.step):
            block = self.matrix[first : min(first + self.step, self.rows.stop)]
            yield block if self.columns is None else block[:, self.columns]


def as_tensor(block: Matrix) -> Tensor:
    """Return a block as a tensor without gradient; an array is copied, because a memmap may be read-only."""
    if isinstance(block, Tensor):
        return block.detach()
    # torch takes native byte order only
    return torch.from_numpy(np.array(block, dtype=block.dtype.newbyteorder("="), order="C"))


def float_tensor(block: Matrix) -> Tensor:
    """Return a block of scores as a float tensor; integers become float64."""
    tensor = as_tensor(block)
    return tensor if tensor.is_floating_point() else tensor.double()


def first_not_finite(scores: Tensor) -> tuple[int, int, float] | None:
    """Return row, column and value of the first score of a block that is not finite, or None."""
    finite = scores.isfinite()
    if finite.all():
        return None
    row, column = (~finite).nonzero()[0].tolist()
    return row, column, scores[row, column].item()


def check_matrix(scores: Any, what: str) -> None:
    """Raise DataError unless `scores` is a matrix of numbers that can be ranked."""
    if not isinstance(scores, Matrix) or scores.ndim != 2:
        shape = tuple(scores.shape) if isinstance(scores, Matrix) else type(scores).__name__
        raise DataError(f"{what} must be a tensor or an array of shape (images, texts), not {shape}")
    # torch has no float128; complex numbers, strings and booleans cannot be ranked
    if (scores.dtype.kind not in "fiu" or scores.dtype.itemsize > 8 if isinstance(scores, np.ndarray)
            else scores.dtype.is_complex or scores.dtype == torch.bool):
        raise DataError(f"{what} holds {scores.dtype}; give float16, bfloat16, float32, float64 or integers")


def as_owner(owner: Vector) -> np.ndarray:
    """Return owners as (N_texts,) int64; raise DataError unless they are a vector of integers."""
    vector = owner.detach().cpu().numpy() if isinstance(owner, Tensor) else np.asarray(owner)
    if vector.ndim != 1 or not len(vector) or vector.dtype.kind not in "iu":
        raise DataError("owner must be a vector of integers with one entry per text, "
                        f"not {vector.dtype} of shape {vector.shape}")
    return vector.astype(np.int64)


def check_owner(owner: np.ndarray, images: int, texts: int) -> None:
    """Raise DataError unless `owner` holds, for each of `texts` texts, the number of one of `images` images."""
    if len(owner) != texts:
        raise DataError(f"the scores have {texts} columns and owner has {len(owner)} entries: give one entry per "
                        "column (text)")
    outside = np.flatnonzero((owner < 0) | (owner >= images))
    if len(outside):
        raise DataError(f"owner[{outside[0]}] is {owner[outside[0]]}, but the scores have {images} rows (images 0 to "
                        f"{images - 1}): correct the {len(outside)} entries that are out of range")
