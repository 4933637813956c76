"""What baselines with cross attention share: tokens of length 1, stacked attention between all pairs of items, blocks.

Stacked cross attention (SCAN, Lee et al., "Stacked Cross Attention for Image-Text Matching", 2018, equations 1 to 4): a
query token x_i attends to the context tokens y_j of another item with weights

    alpha_ij = softmax_j(lambda * s'_ij),   s'_ij = [s_ij]+ / sqrt(sum_i [s_ij]+^2),   s_ij = cos(x_i, y_j)

where the sum runs over the *queries*: how much of a context token one query takes depends on how much the item's other
queries like it. [s]+ is max(s, 0) in the paper; the released code, which made the published numbers, has a leaky ReLU
of slope 0.1 there, and so has this. The cosine of x_i with a_i = sum_j alpha_ij y_j follows.

That vector is never built: with unit tokens x_i . a_i = sum_j alpha_ij s_ij, and |a_i|^2 = alpha_i G alpha_i, G the
inner products of the context's own tokens. Pairs are worked on in blocks of bounded size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ascl.core.tensors import at_least_float32
from ascl.models.ascl import masked_mean
from ascl.models.base import RetrievalModel, TextEncoder
from ascl.models.encoded import EncodedImages, EncodedTexts

SLOPE = 0.1                     # of the leaky ReLU
WORDS_ATTEND, REGIONS_ATTEND = 9.0, 4.0         # lambda, the inverse temperature of the attention (SCAN, section 4)
EPSILON = 1e-8
CPU_BLOCK_NUMBERS = 1 << 19     # numbers of the largest tensor of a block of pairs: 2 MB of float32 stay in a cache
GPU_BLOCK_NUMBERS = 1 << 25
KEPT_NUMBERS = 1 << 25          # of such tensors that a training step keeps


@dataclass
class Tokens:
    """N items whose tokens are to meet those of others.

    unit: (N, S, D) tokens of length 1, padding 0. mask: (N, S) bool, True = real, None = all.
    gram: (N, S, S) inner products of an item's tokens, None where it is never a context.
    as_query, as_context: (N, S, E) what a model adds to them, None where it adds nothing.
    """

    unit: Tensor
    mask: Tensor | None
    gram: Tensor | None = None
    as_query: Tensor | None = None
    as_context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.unit)

    def __getitem__(self, index: slice) -> Tokens:
        rest = (self.mask, self.gram, self.as_query, self.as_context)
        return Tokens(self.unit[index], *(None if part is None else part[index] for part in rest))


def unit_tokens(features: Tensor, mask: Tensor | None, *, attended_to: bool = True) -> Tokens:
    """(N, S, D) brought to length 1, zero and padded tokens to 0, with their inner products where attended to."""
    unit = F.normalize(at_least_float32(features), dim=-1)
    unit = unit if mask is None else unit.masked_fill(~mask.unsqueeze(-1), 0)
    return Tokens(unit, mask, at_least_float32(unit @ unit.transpose(1, 2)) if attended_to else None)


def similarities(contexts: Tokens, queries: Tokens) -> Tensor:
    """Cosines (C, S, Q, R) of the tokens of C context items with those of Q query items."""
    products = contexts.unit.flatten(0, 1) @ queries.unit.flatten(0, 1).T
    return at_least_float32(products).view(*contexts.unit.shape[:2], *queries.unit.shape[:2])


def stacked_attention(similarity: Tensor, context_mask: Tensor | None, sharpness: float) -> Tensor:
    """alpha of the module's head: (C, S, Q, R) weights that sum to 1 over S; 0 where the context is padding.

    Args:
        similarity: (C, S, Q, R), 0 for a query token that is padding.
        context_mask: (C, S) bool, True = real, or None. sharpness: lambda.
    """
    clipped = F.leaky_relu(similarity, SLOPE)
    logits = clipped * (sharpness / torch.linalg.vector_norm(clipped, dim=3, keepdim=True).clamp_min(EPSILON))
    if context_mask is not None:
        logits = logits.masked_fill(~context_mask[:, :, None, None], float("-inf"))
    return logits.softmax(dim=1)


def attended_cosine(weights: Tensor, similarity: Tensor, contexts: Tokens) -> Tensor:
    """cos(x_i, a_i), (C, Q, R), of weights and similarities (C, S, Q, R); 0 where x_i (padding) or a_i is 0."""
    assert contexts.gram is not None
    dot = (weights * similarity).sum(dim=1)
    square = (weights * at_least_float32(contexts.gram @ weights.flatten(2)).view_as(weights)).sum(dim=1)
    return dot / square.clamp_min(EPSILON**2).sqrt()


def mean_over_tokens(cosines: Tensor, mask: Tensor | None) -> Tensor:
    """(C, Q, R), 0 where padding, and (Q, R) bool or None -> (C, Q)."""
    return cosines.mean(dim=2) if mask is None else cosines.sum(dim=2) / mask.sum(dim=1)


class TokenModel(RetrievalModel):
    """A model whose images and texts meet token by token before their score.

    Encoded items are projected regions and words; their lengths play no part in a score. The whole-image feature is not
    used, as in the papers: an encoded image's `globals` is its mean region, for those who want one vector of an image.
    Words come from the text encoder that all models here share, where the papers train a bidirectional GRU.

    block_numbers: of the largest tensor of a block of pairs; None = by the device.
    kept_numbers: of such tensors while training; above it the backward pass computes blocks again.
    """

    tokens_meet = True
    text: TextEncoder

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int, *,
                 standardize: bool) -> None:
        super().__init__(region_dim, global_dim, standardize=standardize)
        self.text = text
        self.regions = nn.Linear(region_dim, embed_dim)
        self.words = nn.Linear(text.dim, embed_dim)
        self.block_numbers: int | None = None
        self.kept_numbers = KEPT_NUMBERS

    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """(N, K, region_dim), (N, global_dim), (N, K) bool or None -> N images."""
        projected = self.regions(self.standardized(regions, globals_)[0])
        return EncodedImages(projected, masked_mean(projected, mask), mask)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """N texts -> N texts with projected words."""
        hidden, mask = self.text(list(texts))
        return EncodedTexts(self.words(hidden), mask)

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """(N, D) mean word of each text."""
        return masked_mean(texts.words, texts.mask)

    @abstractmethod
    def prepare(self, features: Tensor, mask: Tensor | None, *, words: bool) -> Tokens:
        """What the scores need of images (N, K, D) or, where `words`, of texts (N, L, D), whatever their partners."""

    def prepare_images(self, images: EncodedImages) -> Tokens:
        """Return what the scores need of each image, whatever the text."""
        return self.prepare(images.regions, images.mask, words=False)

    def prepare_texts(self, texts: EncodedTexts) -> Tokens:
        """Return what the scores need of each text, whatever the image."""
        return self.prepare(texts.words, texts.mask, words=True)

    @abstractmethod
    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """(N_images, N_texts) of items few enough for all their pairs to be worked on together."""

    @abstractmethod
    def pair_numbers(self, regions: int, words: int) -> int:
        """Numbers of one pair in the largest tensor that `block_scores` makes, for so many tokens of either."""

    def working_numbers(self, device: torch.device) -> int:
        """Return how many numbers the largest tensor of a block of pairs has."""
        return self.block_numbers or (GPU_BLOCK_NUMBERS if device.type == "cuda" else CPU_BLOCK_NUMBERS)

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Score of every image with every text, differentiable; memory beyond the prepared items is bounded."""
        return self.score_prepared(self.prepare_images(images), self.prepare_texts(texts))

    def score_prepared(self, images: Tokens, texts: Tokens) -> Tensor:
        """(N_images, N_texts) scores of prepared items, in blocks of bounded size."""
        pair = self.pair_numbers(images.unit.shape[1], texts.unit.shape[1])
        limit = self.working_numbers(images.unit.device)
        again = torch.is_grad_enabled() and pair * len(images) * len(texts) > self.kept_numbers
        columns = min(len(texts), max(1, limit // pair))
        rows = max(1, limit // (pair * columns))

        def block(row: int, column: int) -> Tensor:
            items = images[row : row + rows], texts[column : column + columns]
            if again:
                return checkpoint(self.block_scores, *items, use_reentrant=False, preserve_rng_state=False)
            return self.block_scores(*items)

        return torch.cat([torch.cat([block(row, column) for column in range(0, len(texts), columns)], dim=1)
                          for row in range(0, len(images), rows)])
