"""IMRAM (Chen et al., "IMRAM: Iterative Matching with Recurrent Attention Memory for Cross-Modal Image-Text Retrieval",
2020): regions attend to words and words to regions, in several steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.tensors import at_least_float32, check_positive
from ascl.models.base import TextEncoder
from ascl.models.baselines import tokens
from ascl.models.baselines.tokens import TokenModel, Tokens


class MemoryDistillation(nn.Module):
    """The memory distillation unit of one direction (section 3.2): it maps a query x and its attended vector c to

        x' = g * x + (1 - g) * o,   g = sigmoid(W_g [x, c] + b_g),   o = tanh(W_o [x, c] + b_o)

    One matrix holds both: rows of g above those of o, columns of x before those of c. The unit is linear before the
    gate, so the terms of x and c are computed separately: c is a weighted sum of context tokens, and so is its term.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate_and_new = nn.Linear(2 * dim, 2 * dim)

    def of_query(self, x: Tensor) -> Tensor:
        """Return the term of x (..., D), bias included -> (..., 2 D)."""
        return F.linear(x, self.gate_and_new.weight.chunk(2, dim=1)[0], self.gate_and_new.bias)

    def of_context(self, y: Tensor) -> Tensor:
        """Return the term of context tokens (..., D) -> (..., 2 D)."""
        return F.linear(y, self.gate_and_new.weight.chunk(2, dim=1)[1])

    def forward(self, x: Tensor, of_both: Tensor) -> Tensor:
        """Return x' (..., D) from x (..., D) and the sum of both terms (..., 2 D)."""
        gate, new = of_both.chunk(2, dim=-1)
        return torch.lerp(torch.tanh(new), x.expand_as(new), torch.sigmoid(gate))


class Imram(TokenModel):
    """Iterative matching: at each step the queries attend, are scored, and absorb what they attended to.

    At step k the queries' states attend to the other item's tokens (`tokens.stacked_attention`). The step's score is
    the mean cosine of the *original* tokens with the attended vectors, and `MemoryDistillation` computes the next
    states. Steps share weights, the two directions do not. The paper sums the scores of all steps and directions; here
    it is their mean, in [-1, 1], so a margin of 0.2 there is 0.2 / (steps * directions) here.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 steps: int = 3, direction: Literal["both", "t2i", "i2t"] = "both",
                 states: Literal["raw", "normalized", "inner"] = "raw", lambda_softmax: float | None = None,
                 standardize: bool = False) -> None:
        """
        Args:
            steps: K of the paper, at least 1; 1 step is SCAN's attention.
            direction: t2i = words attend to regions (Text-IMRAM), i2t = regions attend to words (Image-IMRAM), both =
                Full-IMRAM.
            states: how states go from step to step. raw = as they are, and they enter the attention through cosines, as
                the paper's equations say. normalized = scaled to length 1, which is the released code by default.
                inner = as they are, and they enter the attention through inner products, which is the released code
                with `--no_IMRAM_norm`, as both of its scripts call it. raw and normalized are the same for up to 2
                steps, all are for 1 step.
            lambda_softmax: inverse temperature of the attention, > 0, in both directions. None = 9 if words attend, as
                in the released settings for Flickr30K; SCAN's 4 if regions attend. The release has one for both.

        Raises:
            ValueError: steps < 1, or lambda_softmax is not positive and finite.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        if steps < 1:
            raise ValueError(f"matching needs at least 1 step, got {steps}")
        self.steps, self.states = steps, states
        self.words_attend, self.regions_attend = (usual if lambda_softmax is None else lambda_softmax
                                                  for usual in (tokens.WORDS_ATTEND, tokens.REGIONS_ATTEND))
        check_positive(lambda_softmax=self.words_attend)
        self.over_words, self.over_regions = direction != "i2t", direction != "t2i"
        # with one step there is no next state
        self.word_memory, self.region_memory = (MemoryDistillation(embed_dim) if steps > 1 and used else None
                                                for used in (self.over_words, self.over_regions))

    def prepare(self, features: Tensor, mask: Tensor | None, *, words: bool) -> Tokens:
        """Return unit tokens with their terms in the memories: in one as queries, in the other as context."""
        own, others = (self.word_memory, self.region_memory)[:: 1 if words else -1]
        prepared = tokens.unit_tokens(features, mask, attended_to=self.over_regions if words else self.over_words)
        return replace(prepared,
                       as_query=None if own is None else at_least_float32(own.of_query(prepared.unit)),
                       as_context=None if others is None else others.of_context(prepared.unit))

    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """Return the scores (N_images, N_texts) of one block."""
        of_directions = []
        if self.over_words:
            of_directions.append(self._direction(images, texts, self.word_memory, self.words_attend))
        if self.over_regions:
            of_directions.append(self._direction(texts, images, self.region_memory, self.regions_attend).T)
        return torch.stack(of_directions).mean(dim=0) / self.steps

    def _direction(self, contexts: Tokens, queries: Tokens, memory: MemoryDistillation | None,
                   sharpness: float) -> Tensor:
        """Return the sum of the steps' mean cosines, (C, Q)."""
        first = tokens.similarities(contexts, queries)                                      # (C, S, Q, R)
        weights = tokens.stacked_attention(first, contexts.mask, queries.mask, sharpness)
        score = tokens.mean_over_tokens(tokens.attended_cosine(weights, first, contexts), queries.mask)
        if memory is None:
            return score
        assert queries.as_query is not None and contexts.as_context is not None
        states, of_states = queries.unit.flatten(0, 1), queries.as_query.flatten(0, 1)      # (Q * R, D), (Q * R, 2 D)
        for step in range(1, self.steps):
            attended = at_least_float32(weights.flatten(2).transpose(1, 2) @ contexts.as_context)     # (C, Q * R, 2 D)
            states = memory(states, of_states + attended)
            if self.states == "normalized":
                states = F.normalize(states, dim=-1)
            similarity = at_least_float32(contexts.unit @ states.transpose(1, 2))                     # (C, S, Q * R)
            if self.states == "raw":
                length = torch.linalg.vector_norm(states, dim=-1).clamp_min(tokens.EPSILON)           # (C, Q * R)
                similarity = similarity / length.unsqueeze(1)
            similarity = similarity.view_as(first)
            if queries.mask is not None:                # the state of padding is not zero and would count as a query
                similarity = similarity.masked_fill(~queries.mask, 0)
            weights = tokens.stacked_attention(similarity, contexts.mask, queries.mask, sharpness)
            score = score + tokens.mean_over_tokens(tokens.attended_cosine(weights, first, contexts), queries.mask)
            if step + 1 < self.steps:
                of_states = at_least_float32(memory.of_query(states))
        return score

    def pair_numbers(self, regions: int, words: int) -> int:
        """Count the gate and new state of each attending token."""
        return regions * words if self.steps == 1 else max(regions, words) * 2 * self.regions.out_features

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Count unit tokens, their inner products, and their terms in both memories."""
        return tokens * ((1 if self.steps == 1 else 5) * dim + tokens)
