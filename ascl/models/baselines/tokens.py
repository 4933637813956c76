"""Shared code of baselines with cross attention: unit tokens, stacked attention between all pairs of items, blocks.

Stacked cross attention (SCAN, Lee et al., "Stacked Cross Attention for Image-Text Matching", 2018, equations 1 to 4): a
query token x_i attends to the context tokens y_j of another item with weights

    alpha_ij = softmax_j(lambda * s'_ij),   s'_ij = [s_ij]+ / sqrt(sum_i [s_ij]+^2),   s_ij = cos(x_i, y_j)

where the sum runs over the *queries*: a query's weight on a context token depends on how similar the item's other
queries are to that token. [s]+ is max(s, 0) in the paper. The released code, which produced the published numbers, uses
a leaky ReLU of slope 0.1 instead, and so does this module. The result is the cosine of x_i with
a_i = sum_j alpha_ij y_j.

The vector a_i is never computed: with unit tokens x_i . a_i = sum_j alpha_ij s_ij, and |a_i|^2 = alpha_i G alpha_i,
where G holds the inner products of the context's own tokens. Pairs are processed in blocks of bounded size.
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
CPU_BLOCK_NUMBERS = 1 << 19     # size of the largest tensor of a block of pairs: 2 MB of float32 fit the CPU's cache
GPU_BLOCK_NUMBERS = 1 << 25
KEPT_NUMBERS = 1 << 25          # total size of such tensors that a training step keeps for the backward pass


@dataclass
class Tokens:
    """The tokens of N items, prepared for cross attention.

    unit: (N, S, D) tokens of length 1, padding 0. mask: (N, S) bool, True = real, None = all.
    gram: (N, S, S) inner products of an item's tokens; None if the item is never a context.
    as_query, as_context: (N, S, E) tensors that a model needs in addition, or None.
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
    """Scale (N, S, D) to length 1, with zero and padded tokens at 0; add inner products if `attended_to`."""
    unit = F.normalize(at_least_float32(features), dim=-1)
    unit = unit if mask is None else unit.masked_fill(~mask.unsqueeze(-1), 0)
    return Tokens(unit, mask, at_least_float32(unit @ unit.transpose(1, 2)) if attended_to else None)


def similarities(contexts: Tokens, queries: Tokens) -> Tensor:
    """Return the cosines (C, S, Q, R) of the S tokens of C context items with the R tokens of Q query items."""
    products = contexts.unit.flatten(0, 1) @ queries.unit.flatten(0, 1).T
    return at_least_float32(products).view(*contexts.unit.shape[:2], *queries.unit.shape[:2])


def stacked_attention(similarity: Tensor, context_mask: Tensor | None, sharpness: float) -> Tensor:
    """Return alpha of the module's docstring: weights (C, S, Q, R) that sum to 1 over S and are 0 for padded context.

    Args:
        similarity: (C, S, Q, R), 0 for padded query tokens.
        context_mask: (C, S) bool, True = real, or None. sharpness: lambda.
    """
    clipped = F.leaky_relu(similarity, SLOPE)
    logits = clipped * (sharpness / torch.linalg.vector_norm(clipped, dim=3, keepdim=True).clamp_min(EPSILON))
    if context_mask is not None:
        logits = logits.masked_fill(~context_mask[:, :, None, None], float("-inf"))
    return logits.softmax(dim=1)


def attended_cosine(weights: Tensor, similarity: Tensor, contexts: Tokens) -> Tensor:
    """Return cos(x_i, a_i), (C, Q, R), from weights and similarities (C, S, Q, R); 0 if x_i (padding) or a_i is 0."""
    assert contexts.gram is not None
    dot = (weights * similarity).sum(dim=1)
    square = (weights * at_least_float32(contexts.gram @ weights.flatten(2)).view_as(weights)).sum(dim=1)
    return dot / square.clamp_min(EPSILON**2).sqrt()


def mean_over_tokens(cosines: Tensor, mask: Tensor | None) -> Tensor:
    """Average cosines (C, Q, R), 0 for padding, over the real tokens of mask (Q, R) bool or None -> (C, Q)."""
    return cosines.mean(dim=2) if mask is None else cosines.sum(dim=2) / mask.sum(dim=1)


class TokenModel(RetrievalModel):
    """A model that scores a pair by the similarities of its image tokens and text tokens.

    Encoded items are projected regions and words; the norm of a token does not affect scores. As in the papers, the
    whole-image feature is not used; an encoded image's `globals` is its mean region, for uses that need one vector.
    Words come from the text encoder that all models here share; the papers train a bidirectional GRU.

    block_numbers: size of the largest tensor of a block of pairs; None = chosen by device.
    kept_numbers: total size of such tensors in training; above it, the backward pass recomputes blocks.
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
        """Project regions (N, K, region_dim); globals_ (N, global_dim) is not used; mask (N, K) bool or None."""
        projected = self.regions(self.standardized(regions, globals_)[0])
        return EncodedImages(projected, masked_mean(projected, mask), mask)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode N texts as projected words."""
        hidden, mask = self.encoded_words(texts)
        return EncodedTexts(self.words(hidden), mask)

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """Return the mean word of each text, (N, D)."""
        return masked_mean(texts.words, texts.mask)

    @abstractmethod
    def prepare(self, features: Tensor, mask: Tensor | None, *, words: bool) -> Tokens:
        """Compute what does not depend on the pair, from regions (N, K, D) or (`words`) from words (N, L, D)."""

    def prepare_images(self, images: EncodedImages) -> Tokens:
        """Compute the part of the scores that depends on the images only."""
        return self.prepare(images.regions, images.mask, words=False)

    def prepare_texts(self, texts: EncodedTexts) -> Tokens:
        """Compute the part of the scores that depends on the texts only."""
        return self.prepare(texts.words, texts.mask, words=True)

    @abstractmethod
    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """Return the scores (N_images, N_texts) of one block, all pairs at once."""

    @abstractmethod
    def pair_numbers(self, regions: int, words: int) -> int:
        """Return one pair's share of the largest tensor in `block_scores`, in numbers."""

    def working_numbers(self, device: torch.device) -> int:
        """Return the size (in numbers) of the largest tensor of a block of pairs."""
        return self.block_numbers or (GPU_BLOCK_NUMBERS if device.type == "cuda" else CPU_BLOCK_NUMBERS)

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Return the scores (N_images, N_texts), differentiable; memory beyond the prepared items is bounded."""
        return self.score_prepared(self.prepare_images(images), self.prepare_texts(texts))

    def score_prepared(self, images: Tokens, texts: Tokens) -> Tensor:
        """Return the scores (N_images, N_texts) of prepared items, computed in blocks of bounded size."""
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
