"""SCAN (Lee, Chen, Hua, Hu and He, "Stacked Cross Attention for Image-Text Matching", 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ascl.core.tensors import check_positive
from ascl.models.base import TextEncoder
from ascl.models.baselines import tokens
from ascl.models.baselines.tokens import FeatureNorm, TokenModel, Tokens


class Scan(TokenModel):
    """One direction of stacked cross attention; the attention itself (equations 1 to 4) is in `tokens`.

    R_i is the cosine of query token i with its attended vector. The score of a pair is the mean of R_i over the queries
    (AVG, equation 6, the better one in the paper), log(sum_i exp(lambda_2 R_i)) / lambda_2 (LSE, equation 5), or, as
    the release offers, their sum or maximum. Mean and maximum lie in [-1, 1]; LSE, as in the paper, can exceed it by
    up to log(queries) / lambda_2.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 direction: Literal["t2i", "i2t"], pooling: Literal["mean", "logsumexp", "sum", "max"] = "mean",
                 lambda_softmax: float | None = None, lambda_lse: float | None = None,
                 feature_norm: FeatureNorm = "clipped_l2norm", standardize: bool = False) -> None:
        """
        Args:
            direction: t2i = words attend to regions (the paper's text-image), i2t = regions attend to words.
            lambda_softmax: inverse temperature lambda_1 of the attention, > 0; None = the paper's 9 for t2i, 4 for i2t.
            lambda_lse: lambda_2 > 0 of LSE; None = the paper's values for Flickr30K, 6 for t2i, 5 for i2t.
            feature_norm: normalization of the similarities before the attention, see `tokens.stacked_attention`.

        Raises:
            ValueError: lambda_softmax or lambda_lse is not positive and finite.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        self.direction, self.pooling, self.words_attend = direction, pooling, direction == "t2i"
        self.feature_norm: FeatureNorm = feature_norm
        usual = tokens.WORDS_ATTEND if self.words_attend else tokens.REGIONS_ATTEND
        self.lambda_softmax = usual if lambda_softmax is None else lambda_softmax
        self.lambda_lse = (6.0 if self.words_attend else 5.0) if lambda_lse is None else lambda_lse
        check_positive(lambda_softmax=self.lambda_softmax, lambda_lse=self.lambda_lse)

    def prepare(self, features: Tensor, mask: Tensor | None, *, words: bool) -> Tokens:
        """Return unit tokens, with their inner products on the side that is attended to."""
        return tokens.unit_tokens(features, mask, attended_to=words != self.words_attend)

    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """Return the scores (N_images, N_texts) of one block."""
        contexts, queries = (images, texts) if self.words_attend else (texts, images)
        similarity = tokens.similarities(contexts, queries)
        weights = tokens.stacked_attention(similarity, contexts.mask, queries.mask, self.lambda_softmax,
                                           self.feature_norm)
        pooled = self._pool(tokens.attended_cosine(weights, similarity, contexts), queries.mask)
        return pooled if self.words_attend else pooled.T

    def _pool(self, cosines: Tensor, mask: Tensor | None) -> Tensor:
        """Pool cosines (C, Q, R) over the tokens of mask (Q, R) bool or None -> (C, Q)."""
        if self.pooling == "mean":
            return tokens.mean_over_tokens(cosines, mask)
        if self.pooling == "sum":
            return cosines.sum(dim=2)
        real = cosines if mask is None else cosines.masked_fill(~mask, float("-inf"))
        if self.pooling == "max":
            return real.amax(dim=2)
        return torch.logsumexp(self.lambda_lse * real, dim=2) / self.lambda_lse

    def pair_numbers(self, regions: int, words: int) -> int:
        """Count one weight per region and word."""
        return regions * words

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Count unit tokens and their inner products."""
        return tokens * (dim + tokens)
