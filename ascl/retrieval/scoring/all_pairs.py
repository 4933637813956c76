"""Every image against every text, for data sets of any size: the whole matrix, blocks of it, ranks alone, or the best.

`rank_all_pairs` alone is told which text belongs to which image; it uses it for order and for counting, and no score
depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.retrieval.ranking import Ranks, Vector, as_owner, check_owner
from ascl.retrieval.report import RetrievalReport, recall_report
from ascl.retrieval.scoring.tiles import USUAL_LIMITS, Limits, Progress, Tiles, make_tiles


@torch.no_grad()
def score_all_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, backend: str = "auto",
                    block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
                    limits: Limits = USUAL_LIMITS) -> Tensor:
    """Score of every image with every text; the same numbers as `model.pair_scores`.

    Args:
        backend: "reference" runs `torch.nn.MultiheadAttention` for every pair; "algebra" computes the same without
            attended vectors; "triton" does so in one fused kernel, on a GPU, and leaves what the kernel cannot take to
            the algebra. "auto" is the algebra. Other models (no fusion, the baselines) have one way only and ignore
            backend and dtype.
        block: images, and texts, whose pairs are scored at a time; None = by the device, fewer where memory is short.
        dtype: of the matrix products: float32, bfloat16 or, on a GPU, float16; softmax, norms and sums stay in float32.
            None = the model's own. On a GPU float32 products run in tf32 where torch's
            `set_float32_matmul_precision` says so; of the sums, that of attention over tokens is a matrix product.
        progress: called with a number of pairs, each time that so many more are done.
        limits: of memory.

    Returns:
        (N_images, N_texts) float32 on the CPU, in [-1, 1]; above it where a model pools by log-sum-exp (SCAN).

    Raises:
        ValueError: empty sets, an item whose mask is all false, embeddings that are not finite, items of several
            devices or types, an unknown or impossible backend or dtype, a block that does not fit into the free memory.
            All before any work.
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    scores = torch.empty(len(images), len(texts))
    for rows, strip in tiles.strips():
        scores[rows] = strip
    return scores


@dataclass(frozen=True)
class ScoreBlocks:
    """Rows of a score matrix that is never held whole; computed anew each time it is iterated."""

    tiles: Tiles

    @torch.no_grad()
    def __iter__(self) -> Iterator[Tensor]:
        for _, strip in self.tiles.strips():
            yield strip


def score_blocks(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, backend: str = "auto",
                 block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
                 limits: Limits = USUAL_LIMITS) -> ScoreBlocks:
    """Rows of the score matrix, some images at a time against all texts: (n, N_texts) float32 on the CPU.

    `rank_report` takes the result, for ranks by a matrix of all true pairs. It reads the blocks twice, so every score
    is then computed twice. Where each text has one owner, `rank_all_pairs` computes each score once. Arguments and
    errors as for `score_all_pairs`.
    """
    return ScoreBlocks(make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                                  limits=limits))


@torch.no_grad()
def rank_all_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, owner: Vector, *,
                   backend: str = "auto", block: int | None = None, dtype: torch.dtype | None = None,
                   progress: Progress | None = None, limits: Limits = USUAL_LIMITS) -> RetrievalReport:
    """Recalls in both directions; every pair is scored once and no matrix is held.

    A rank is the number of wrong candidates that reach the best right one, so the right pairs are scored first: each
    group of images meets its own texts, and then all others. Ties are lost; but two pairs of equal items in different
    blocks can differ in their last bit, here as in any matrix made in blocks.

    Args:
        owner: (N_texts,) image of each text, in any order and number; DataError where it does not fit, or where a score
            is not finite. The rest, and other errors, as for `score_all_pairs`.
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    owner = as_owner(owner)
    check_owner(owner, len(images), len(texts))
    belongs = torch.from_numpy(owner).to(tiles.device)
    counts = (len(images), len(texts))
    image_best, text_best = (torch.full((count,), -torch.inf, device=tiles.device) for count in counts)
    image_ranks, text_ranks = (torch.zeros(count, dtype=torch.int64, device=tiles.device) for count in counts)

    def right(rows: slice, columns: Tensor) -> Tensor:
        return belongs[columns] == torch.arange(rows.start, rows.stop, device=tiles.device)[:, None]

    def count(rows: slice, columns: Tensor, tile: Tensor) -> None:
        wrong = ~right(rows, columns)
        image_ranks[rows] += ((tile >= image_best[rows, None]) & wrong).sum(dim=1)
        text_ranks[columns] += ((tile >= text_best[columns]) & wrong).sum(dim=0)

    groups = [(group, (owner >= group[0].start) & (owner < group[-1].stop)) for group in tiles.groups()]
    for group, own in groups:
        kept = list(tiles.finite(group, np.flatnonzero(own)))
        for rows, columns, tile in kept:
            scores = tile.masked_fill(~right(rows, columns), -torch.inf)
            image_best[rows] = torch.maximum(image_best[rows], scores.amax(dim=1))
            text_best[columns] = torch.maximum(text_best[columns], scores.amax(dim=0))
        for rows, columns, tile in kept:
            count(rows, columns, tile)
    for group, own in groups:
        for rows, columns, tile in tiles.finite(group, np.flatnonzero(~own)):
            count(rows, columns, tile)
    has_text = np.unique(owner)
    return recall_report(Ranks(i2t=image_ranks.cpu().numpy()[has_text], t2i=text_ranks.cpu().numpy(),
                               image_queries=has_text, text_queries=np.arange(len(texts)), images=len(images),
                               texts=len(texts)))


@dataclass(frozen=True)
class TopPairs:
    """The k best candidates of each query, best first; which of several equal ones ends a list is not defined.

    texts_of_image, image_scores: (N_images, k) int64 and float32. images_of_text, text_scores: (N_texts, k).
    """

    texts_of_image: Tensor
    image_scores: Tensor
    images_of_text: Tensor
    text_scores: Tensor


@torch.no_grad()
def top_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, k: int, *, backend: str = "auto",
              block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
              limits: Limits = USUAL_LIMITS) -> TopPairs:
    """The k best texts of each image and the k best images of each text, in one pass and without the matrix.

    Raises:
        ValueError: as for `score_all_pairs`; k below 1, or above the number of images or of texts.
        DataError: a score that is not finite.
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    if not 1 <= k <= min(len(images), len(texts)):
        raise ValueError(f"k has to be from 1 to {min(len(images), len(texts))} with {len(images)} images and "
                         f"{len(texts)} texts, got {k}")
    of_images, of_texts = (_Best(count, k, tiles.device) for count in (len(images), len(texts)))
    for group in tiles.groups():
        for rows, columns, tile in tiles.finite(group, np.arange(len(texts))):
            numbers = torch.arange(rows.start, rows.stop, device=tiles.device)
            of_images.update(numbers, columns, tile)
            of_texts.update(columns, numbers, tile.T)
    return TopPairs(*(part.cpu() for best in (of_images, of_texts) for part in (best.candidates, best.scores)))


class _Best:
    """The k best candidates so far of N queries."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.scores = torch.full((queries, k), -torch.inf, device=device)
        self.candidates = torch.zeros(queries, k, dtype=torch.int64, device=device)

    def update(self, queries: Tensor, candidates: Tensor, scores: Tensor) -> None:
        """Scores (n, m) of `queries` (n,) with `candidates` (m,)."""
        every_score = torch.cat([self.scores[queries], scores], dim=1)
        every_candidate = torch.cat([self.candidates[queries], candidates.expand(len(queries), -1)], dim=1)
        self.scores[queries], kept = every_score.topk(self.scores.shape[1], dim=1)
        self.candidates[queries] = every_candidate.gather(1, kept)
