"""SCAN (Lee, Chen, Hua, Hu and He, "Stacked Cross Attention for Image-Text Matching", 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ascl.models.base import TextEncoder
from ascl.models.baselines.tokens import (
    REGIONS_ATTEND,
    WORDS_ATTEND,
    TokenModel,
    Tokens,
    attended_cosine,
    inner_products,
    mean_over_tokens,
    positive,
    similarities,
    stacked_attention,
    unit_tokens,
)
from ascl.models.encoded import EncodedImages, EncodedTexts

LOGSUMEXP = {"t2i": 6.0, "i2t": 5.0}        # lambda_2 of the paper's models of Flickr30K


class Scan(TokenModel):
    """One direction of stacked cross attention; `tokens` has the attention (equations 1 to 4).

    With R_i the cosine of query token i with its attended vector, the score of a pair is its mean over the queries
    (AVG, equation 6, the better of the two in the paper) or log(sum_i exp(lambda_2 R_i)) / lambda_2 (LSE, equation 5).
    A mean lies in [-1, 1]; the sum in LSE adds up to log(queries) / lambda_2 to it, which is the paper's formula.
    """

    def __init__(
        self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
        direction: Literal["t2i", "i2t"], pooling: Literal["mean", "logsumexp"] = "mean",
        lambda_softmax: float | None = None, lambda_lse: float | None = None, standardize: bool = False,
    ) -> None:
        """
        Args:
            direction: t2i = words attend to regions (the paper's text-image), i2t = regions attend to words.
            lambda_softmax: inverse temperature lambda_1 of the attention, > 0; None = the paper's, 9 for t2i, 4 for
                i2t.
            lambda_lse: lambda_2 > 0 of LSE; None = the paper's, 6 for t2i, 5 for i2t.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        self.direction, self.pooling = direction, pooling
        self.lambda_softmax = positive(
            "lambda_softmax", lambda_softmax, WORDS_ATTEND if direction == "t2i" else REGIONS_ATTEND
        )
        self.lambda_lse = positive("lambda_lse", lambda_lse, LOGSUMEXP[direction])

    def prepare_images(self, images: EncodedImages) -> Tokens:
        """Unit regions, and their inner products where they are attended to."""
        unit = unit_tokens(images.regions, images.mask)
        return Tokens(unit, images.mask, inner_products(unit) if self.direction == "t2i" else None)

    def prepare_texts(self, texts: EncodedTexts) -> Tokens:
        """Unit words, and their inner products where they are attended to."""
        unit = unit_tokens(texts.words, texts.mask)
        return Tokens(unit, texts.mask, inner_products(unit) if self.direction == "i2t" else None)

    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """(N_images, N_texts)."""
        contexts, queries = (images, texts) if self.direction == "t2i" else (texts, images)
        assert contexts.gram is not None
        similarity = similarities(contexts, queries)
        weights = stacked_attention(similarity, contexts.mask, self.lambda_softmax)
        pooled = self._pool(attended_cosine(weights, similarity, contexts.gram), queries.mask)
        return pooled if self.direction == "t2i" else pooled.T

    def _pool(self, cosines: Tensor, mask: Tensor | None) -> Tensor:
        """(C, Q, R) and (Q, R) bool or None -> (C, Q)."""
        if self.pooling == "mean":
            return mean_over_tokens(cosines, mask)
        terms = self.lambda_lse * cosines
        if mask is not None:
            terms = terms.masked_fill(~mask, float("-inf"))
        return torch.logsumexp(terms, dim=2) / self.lambda_lse

    def pair_numbers(self, regions: int, words: int) -> int:
        """A weight for each region and word."""
        return regions * words

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Unit tokens and their inner products."""
        return tokens * (dim + tokens)
