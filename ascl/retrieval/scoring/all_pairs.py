"""Score all pairs of a data set of any size: as a matrix, as blocks, as ranks only, or as the best candidates.

Only `rank_all_pairs` knows which text belongs to which image. It uses this for the order of work and for counting;
scores do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.retrieval.ranking import Ranks, Vector, as_owner, check_owner
from ascl.retrieval.report import FoldReport, RetrievalReport, folds_of, recall_report
from ascl.retrieval.scoring.tiles import USUAL_LIMITS, Limits, Progress, Tiles, make_tiles


@torch.no_grad()
def score_all_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, backend: str = "auto",
                    block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
                    limits: Limits = USUAL_LIMITS) -> Tensor:
    """Return the score of every image with every text: the values of `model.pair_scores`, computed fast.

    Args:
        backend: "reference" runs `torch.nn.MultiheadAttention` for every pair. "algebra" computes the same scores
            without attended vectors. "triton" does so in one fused kernel on a GPU, and falls back to the algebra for
            blocks that the kernel does not support. "auto" is the algebra. Models without cross-modal fusion and the
            baselines have one method only and ignore backend and dtype.
        block: number of images and of texts scored at a time; None = chosen by device, fewer if memory is short.
        dtype: of the matrix products: float32, bfloat16 or, on a GPU, float16; None = the model's. Softmax, norms and
            sums stay in float32, except the sum of attention over tokens, which is a matrix product. On a GPU, float32
            products use tf32 if `torch.set_float32_matmul_precision` allows it.
        progress: called with the number of newly scored pairs.
        limits: memory limits.

    Returns:
        (N_images, N_texts) float32 on the CPU, in [-1, 1]; can exceed 1 if a model pools by log-sum-exp (SCAN).

    Raises:
        ValueError: no images or no texts, an item whose mask is all False, embeddings that are not finite, items on
            several devices or of several dtypes, an unknown or unsupported backend or dtype, or a block that does not
            fit the free memory. Raised before any work.

    Example:
        >>> from ascl.models import AsCL
        >>> model = AsCL(embed_dim=8, num_heads=2)
        >>> images = EncodedImages(torch.randn(3, 5, 8), torch.randn(3, 8))                     # 3 images of 5 regions
        >>> texts = EncodedTexts(torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool))      # 4 texts of 6 words
        >>> scores = score_all_pairs(model, images, texts)
        >>> scores.shape, torch.allclose(scores, model.pair_scores(images, texts), atol=1e-5)
        (torch.Size([3, 4]), True)
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    scores = torch.empty(len(images), len(texts))
    for rows, strip in tiles.strips():
        scores[rows] = strip
    return scores


@dataclass(frozen=True)
class ScoreBlocks:
    """The rows of a score matrix that is never held as a whole; each iteration computes them again."""

    tiles: Tiles

    @torch.no_grad()
    def __iter__(self) -> Iterator[Tensor]:
        for _, strip in self.tiles.strips():
            yield strip


def score_blocks(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, backend: str = "auto",
                 block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
                 limits: Limits = USUAL_LIMITS) -> ScoreBlocks:
    """Return the score matrix as blocks of rows (n, N_texts), float32 on the CPU, computed when iterated.

    Pass the result to `rank_report` to rank with a matrix of all right pairs; it iterates twice, so every score is
    computed twice. If each text has one owner only, `rank_all_pairs` computes each score once. Arguments and errors as
    for `score_all_pairs`.

    Example:
        >>> from ascl.models import AsCL
        >>> model = AsCL(embed_dim=8, num_heads=2)
        >>> images = EncodedImages(torch.randn(3, 5, 8), torch.randn(3, 8))
        >>> texts = EncodedTexts(torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool))
        >>> torch.cat(list(score_blocks(model, images, texts))).shape
        torch.Size([3, 4])
    """
    return ScoreBlocks(make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                                  limits=limits))


@torch.no_grad()
def rank_all_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, owner: Vector, *,
                   backend: str = "auto", block: int | None = None, dtype: torch.dtype | None = None,
                   progress: Progress | None = None, limits: Limits = USUAL_LIMITS) -> RetrievalReport:
    """Return recalls in both directions; every pair is scored once and the matrix is never held.

    A rank is the number of wrong candidates that score at least as high as the best right one. So right pairs are
    scored first: each group of images with its own texts, then with all others. Ties count as lost; equal texts, and
    equal images, have equal scores, because each distinct pair is scored once.

    Args:
        owner: (N_texts,) integers, the image of each text, in any order and number. Others as for `score_all_pairs`.

    Raises:
        DataError: `owner` does not fit the images and texts, or a score is not finite.
        ValueError: as for `score_all_pairs`.

    Example:
        >>> from ascl.models import AsCL
        >>> model = AsCL(embed_dim=8, num_heads=2, local_weight=1.0)
        >>> tokens = torch.eye(8)[:3].unsqueeze(1)                              # 3 items of one token, orthogonal
        >>> images = EncodedImages(tokens, tokens[:, 0])
        >>> texts = EncodedTexts(tokens, torch.ones(3, 1, dtype=torch.bool))    # text i equals image i
        >>> rank_all_pairs(model, images, texts, owner=[0, 1, 2]).rsum
        600.0
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    owner = as_owner(owner)
    check_owner(owner, len(images), len(texts))
    belongs = torch.from_numpy(owner).to(tiles.device)
    counts = (len(images), len(texts))
    image_best, text_best = (torch.full((count,), -torch.inf, device=tiles.device) for count in counts)
    image_ranks, text_ranks = (torch.zeros(count, dtype=torch.int64, device=tiles.device) for count in counts)

    def right(rows: Tensor, columns: Tensor) -> Tensor:
        return belongs[columns] == rows[:, None]

    def count_for_images(rows: Tensor, columns: Tensor, scores: Tensor) -> None:
        image_ranks[rows] += ((scores >= image_best[rows, None]) & ~right(rows, columns)).sum(dim=1)

    def count_for_texts(rows: Tensor, columns: Tensor, scores: Tensor) -> None:
        text_ranks[columns] += ((scores >= text_best[columns]) & ~right(rows, columns)).sum(dim=0)

    image_of_text = tiles.of_images.number[owner]
    groups, shared = [], []
    for group in tiles.groups():
        own = (image_of_text >= group[0].start) & (image_of_text < group[-1].stop)
        numbers = np.unique(tiles.of_texts.number[own])     # with copies that belong to other groups' images
        groups.append((group, numbers))
        belongs_here = torch.from_numpy(own).to(tiles.device)
        kept = [(tile, *tiles.expanded(tile)) for tile in tiles.finite(group, numbers)]
        for _, rows, columns, scores in kept:
            best = scores.masked_fill(~right(rows, columns), -torch.inf)
            image_best[rows] = torch.maximum(image_best[rows], best.amax(dim=1))
            text_best[columns] = torch.maximum(text_best[columns], best.amax(dim=0))
        for tile, rows, columns, scores in kept:
            count_for_images(rows, columns, scores)
            here = belongs_here[columns]
            count_for_texts(rows, columns[here], scores[:, here])
            if not here.all():                              # their best right score is known after all groups
                shared.append((tile, belongs_here))
    for tile, belongs_here in shared:
        rows, columns, scores = tiles.expanded(tile)
        elsewhere = ~belongs_here[columns]
        count_for_texts(rows, columns[elsewhere], scores[:, elsewhere])
    for group, own in groups:
        others = np.setdiff1d(np.arange(len(tiles.of_texts.first)), own, assume_unique=True)
        for tile in tiles.finite(group, others):
            expanded = tiles.expanded(tile)
            count_for_images(*expanded)
            count_for_texts(*expanded)
    has_text = np.unique(owner)
    return recall_report(Ranks(i2t=image_ranks.cpu().numpy()[has_text], t2i=text_ranks.cpu().numpy(),
                               image_queries=has_text, text_queries=np.arange(len(texts)), images=len(images),
                               texts=len(texts)))


def rank_folds(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, owner: Vector, folds: int, *,
               progress: Progress | None = None) -> FoldReport:
    """Return recalls averaged over consecutive folds of images, scoring no pair of two folds.

    It is `fold_report` of all scores, for 1 / `folds` of the pairs.

    Args:
        folds: number of folds; must divide the number of images. Others as for `rank_all_pairs`.

    Raises:
        DataError: as for `rank_all_pairs`; or `folds` does not divide the images, or a fold has no text.
    """
    owner = as_owner(owner)
    check_owner(owner, len(images), len(texts))
    return FoldReport.mean([
        rank_all_pairs(model, images[rows.start : rows.stop], texts[torch.from_numpy(columns)],
                       owner[columns] - rows.start, progress=progress)
        for rows, columns in folds_of(owner, len(images), folds)])


@dataclass(frozen=True)
class TopPairs:
    """The k best candidates of each query, best first; the order of equal scores is not defined.

    texts_of_image (N_images, k) int64, image_scores (N_images, k) float32; images_of_text and text_scores (N_texts, k).
    """

    texts_of_image: Tensor
    image_scores: Tensor
    images_of_text: Tensor
    text_scores: Tensor


@torch.no_grad()
def top_pairs(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, k: int, *, backend: str = "auto",
              block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
              limits: Limits = USUAL_LIMITS) -> TopPairs:
    """Return the k best texts of each image and the k best images of each text, in one pass, without the matrix.

    Raises:
        ValueError: as for `score_all_pairs`; or k is below 1 or above the number of images or texts.
        DataError: a score is not finite.

    Example:
        >>> from ascl.models import AsCL
        >>> model = AsCL(embed_dim=8, num_heads=2, local_weight=1.0)
        >>> tokens = torch.eye(8)[:3].unsqueeze(1)                                  # 3 items of one token, orthogonal
        >>> images = EncodedImages(tokens, tokens[:, 0])
        >>> texts = EncodedTexts(tokens.flip(0), torch.ones(3, 1, dtype=torch.bool))    # the same, in reverse order
        >>> top_pairs(model, images, texts, k=1).texts_of_image.tolist()
        [[2], [1], [0]]
    """
    tiles = make_tiles(model, images, texts, backend=backend, block=block, dtype=dtype, progress=progress,
                       limits=limits)
    if not 1 <= k <= min(len(images), len(texts)):
        raise ValueError(f"k must be from 1 to {min(len(images), len(texts))} with {len(images)} images and "
                         f"{len(texts)} texts, got {k}")
    of_images, of_texts = (_Best(count, k, tiles.device) for count in (len(images), len(texts)))
    for group in tiles.groups():
        for tile in tiles.finite(group, np.arange(len(tiles.of_texts.first))):
            rows, columns, scores = tiles.expanded(tile)
            of_images.update(rows, columns, scores)
            of_texts.update(columns, rows, scores.T)
    return TopPairs(*(part.cpu() for best in (of_images, of_texts) for part in (best.candidates, best.scores)))


class _Best:
    """The k best candidates so far of N queries."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.scores = torch.full((queries, k), -torch.inf, device=device)
        self.candidates = torch.zeros(queries, k, dtype=torch.int64, device=device)

    def update(self, queries: Tensor, candidates: Tensor, scores: Tensor) -> None:
        """Add the scores (n, m) of `queries` (n,) with `candidates` (m,)."""
        every_score = torch.cat([self.scores[queries], scores], dim=1)
        every_candidate = torch.cat([self.candidates[queries], candidates.expand(len(queries), -1)], dim=1)
        self.scores[queries], kept = every_score.topk(self.scores.shape[1], dim=1)
        self.candidates[queries] = every_candidate.gather(1, kept)
