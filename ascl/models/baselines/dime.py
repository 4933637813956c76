"""DIME (Qu et al., "Dynamic Modality Interaction Modeling for Image-Text Retrieval", 2021): layers of four interaction
cells; routers decide, softly and for each pair, how much of each cell's result every cell of the next layer gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.tensors import at_least_float32, check_positive
from ascl.models.ascl import masked_mean
from ascl.models.base import TextEncoder
from ascl.models.baselines import tokens
from ascl.models.baselines.tokens import TokenModel, Tokens
from ascl.models.encoded import EncodedTexts

CELLS = 4
CLOSED = 1e-4           # a sum of gates below this opens a skip connection
OPEN = 1.5              # initial bias of the gates: they start near tanh(1.5) = 0.9
EPSILON = 1e-8

# Tensors of pairs are (C, Q, R, D): R tokens of Q query items as C context items see them. Before the first
# interaction they do not depend on the context, and C is 1.


class Router(nn.Module):
    """Soft gates to the cells of the next layer: relu(tanh(network(mean token))), each in [0, 1)."""

    def __init__(self, dim: int, paths: int) -> None:
        super().__init__()
        gates = nn.Linear(2 * dim, paths)
        nn.init.constant_(gates.bias, OPEN)
        self.network = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), gates)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return gates (C, Q, paths) of tokens (C, Q, R, D); mask (Q, R) bool or None."""
        return self.network(mean_token(x, mask)).tanh().relu()


class Reasoning(nn.Module):
    """The intra-modal reasoning cell: tokens of an item attend to each other; no normalization, no dropout."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.network = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (C, Q, R, D) -> (C, Q, R, D); mask (Q, R) bool or None."""
        query, key, value = (part.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)     # (C * Q, H, R, d)
                             for part in self.query_key_value(x).chunk(3, dim=-1))
        allowed = None if mask is None else mask.repeat(len(x), 1)[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        x = x + attended.transpose(1, 2).flatten(2).view_as(x)
        return x + self.network(x)


class Refinement(nn.Module):
    """The cross-modal refinement cell: SCAN's attention to the other item's tokens, which scale and shift the query."""

    def __init__(self, dim: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.scale, self.shift = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None, contexts: Tokens) -> Tensor:
        """Map (1 or C, Q, R, D) -> (C, Q, R, D); mask (Q, R) bool or None. Similarities are inner products."""
        similarity = at_least_float32(contexts.unit @ x.flatten(1, 2).transpose(1, 2))     # (C, S, Q * R)
        similarity = similarity.unflatten(2, x.shape[1:3])
        if mask is not None:
            similarity = similarity.masked_fill(~mask, 0)
        weights = tokens.stacked_attention(similarity, contexts.mask, mask, self.sharpness)
        attended = (weights.flatten(2).transpose(1, 2) @ contexts.unit).unflatten(1, x.shape[1:3])
        return x + self.network(x * self.scale(attended).tanh() + self.shift(attended))


class Guidance(nn.Module):
    """The global-local guidance cell: the other item's vector weighs the dimensions of each token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, vectors: Tensor) -> Tensor:
        """Map (1 or C, Q, R, D) -> (C, Q, R, D); mask (Q, R) bool or None, vectors (C, D)."""
        guided = self.local(x) * vectors[:, None, None]
        if mask is not None:
            guided = guided.masked_fill(~mask.unsqueeze(-1), 0)
        return (1 + F.normalize(guided, dim=2)) * x


class InteractionLayer(nn.Module):
    """Four cells, each with its input and a router: rectified identity, guidance, reasoning, refinement."""

    def __init__(self, dim: int, heads: int, paths: int, sharpness: float) -> None:
        super().__init__()
        self.paths = paths
        self.guidance, self.reasoning = Guidance(dim), Reasoning(dim, heads)
        self.refinement = Refinement(dim, sharpness)
        self.routers = nn.ModuleList(Router(dim, paths) for _ in range(CELLS))

    def forward(self, inputs: Sequence[Tensor], mask: Tensor | None, contexts: Tokens) -> list[Tensor]:
        """Map one (1 or C, Q, R, D) per cell to one (C, Q, R, D) per path; mask (Q, R) bool or None."""
        gates = torch.stack([router(x, mask) for router, x in zip(self.routers, inputs, strict=True)], dim=-1)
        total = gates.sum(dim=-1, keepdim=True)                                     # over cells; (1 or C, Q, paths, 1)
        assert contexts.vector is not None
        results = [inputs[0].relu(), self.guidance(inputs[1], mask, contexts.vector),
                   self.reasoning(inputs[2], mask), self.refinement(inputs[3], mask, contexts)]
        if self.paths == 1:             # the last layer: a closed cell passes its input on
            closed = (gates < CLOSED / CELLS).to(gates.dtype)
            passed = weighted(gates, results)[0] + weighted(closed, inputs)[0]
            return [passed / (total + closed.sum(dim=-1, keepdim=True))]
        shares = gates / (total + EPSILON)
        shares = torch.cat([shares[..., :1] + (total < CLOSED).to(shares.dtype), shares[..., 1:]], dim=-1)
        return weighted(shares, results)


class Interaction(nn.Module):
    """One direction: the layers refine the query items' tokens, which are then compared with the context's vector."""

    def __init__(self, dim: int, heads: int, layers: int, sharpness: float) -> None:
        super().__init__()
        paths = [CELLS] * (layers - 1) + [1]
        self.layers = nn.ModuleList(InteractionLayer(dim, heads, count, sharpness) for count in paths)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tokens, contexts: Tokens) -> Tensor:
        """Return the cosines (C, Q)."""
        inputs = [queries.unit.unsqueeze(0)] * CELLS
        for layer in self.layers:
            inputs = layer(inputs, queries.mask, contexts)
        refined = self.norm(inputs[0])
        largest = refined if queries.mask is None else refined.masked_fill(~queries.mask.unsqueeze(-1), float("-inf"))
        pooled = F.normalize(at_least_float32(mean_token(refined, queries.mask) + largest.amax(dim=2)), dim=-1)
        assert contexts.vector is not None
        return (pooled * contexts.vector.unsqueeze(1)).sum(dim=-1)


class Dime(TokenModel):
    """Routed interactions of regions with a text (i2t), of words with an image (t2i), or the mean of both scores.

    Its loss is VSE++'s, `losses.hardest_triplet`. As published, an image's vector is its mean region, and words pass
    through convolutions over one, two and three words, added to a linear map.

    What differs: a text's vector is the mean of its words, where the release takes the maximum of the convolutions.
    Layer normalization stands where the release normalizes the refined tokens over all pairs of the batch, and nothing
    where it normalizes image vectors (t2i), so that a score depends on its pair alone. The regularization of paths
    by the similarity of BERT's texts and the additional random negatives of its batches are left out. The two
    directions are trained together; the published ensemble adds the scores of two separate models. [CLS], [SEP] and
    padding take no part.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 256, *,
                 num_heads: int = 16, layers: int = 3, direction: Literal["both", "t2i", "i2t"] = "both",
                 lambda_softmax: float | None = None, standardize: bool = False) -> None:
        """
        Args:
            num_heads: heads of the reasoning cells; must divide embed_dim.
            layers: at least 1; 3 in the release.
            direction: i2t = regions are refined and compared with the text's vector, t2i = words with the image's.
            lambda_softmax: inverse temperature of the refinement cells' attention, > 0, in both directions. None = the
                published 9 if words are refined, 4 if regions are.

        Raises:
            ValueError: num_heads does not divide embed_dim, layers < 1, or lambda_softmax is not positive and finite.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
        if layers < 1:
            raise ValueError(f"matching needs at least 1 layer, got {layers}")
        words_attend, regions_attend = (usual if lambda_softmax is None else lambda_softmax
                                        for usual in (tokens.WORDS_ATTEND, tokens.REGIONS_ATTEND))
        check_positive(lambda_softmax=words_attend)
        self.num_heads = num_heads
        self.convolutions = nn.ModuleList(nn.Conv1d(text.dim, embed_dim, width) for width in (1, 2, 3))
        self.mapping = nn.Linear(3 * embed_dim, embed_dim)
        self.of_words = None if direction == "i2t" else Interaction(embed_dim, num_heads, layers, words_attend)
        self.of_regions = None if direction == "t2i" else Interaction(embed_dim, num_heads, layers, regions_attend)
        self.kept_numbers = tokens.KEPT_NUMBERS // (CELLS * layers)     # a block keeps that many large tensors

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode N texts as words, each with its neighbors."""
        hidden, mask = self.encoded_words(texts)
        columns = hidden.masked_fill(~mask.unsqueeze(-1), 0).transpose(1, 2)                # (N, text.dim, L)
        around = [F.relu(convolution(F.pad(columns, sides)))
                  for convolution, sides in zip(self.convolutions, ((0, 0), (0, 1), (1, 1)), strict=True)]
        return EncodedTexts(self.mapping(torch.cat(around, dim=1).transpose(1, 2)) + self.words(hidden), mask)

    def prepare(self, features: Tensor, mask: Tensor | None, *, words: bool) -> Tokens:
        """Return unit tokens, and the unit vector of each item."""
        vector = F.normalize(at_least_float32(masked_mean(features, mask)), dim=-1)
        return replace(tokens.unit_tokens(features, mask, attended_to=False), vector=vector)

    def block_scores(self, images: Tokens, texts: Tokens) -> Tensor:
        """Return the scores (N_images, N_texts) of one block."""
        of_directions = []
        if self.of_words is not None:
            of_directions.append(self.of_words(texts, images))
        if self.of_regions is not None:
            of_directions.append(self.of_regions(images, texts).T)
        return torch.stack(of_directions).mean(dim=0)

    def pair_numbers(self, regions: int, words: int) -> int:
        """Count the four results of each refined token, or the weights of the attention."""
        refined = max(words if self.of_words is not None else 1, regions if self.of_regions is not None else 1)
        return refined * max(regions, words, CELLS * self.regions.out_features, self.num_heads * refined)

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Count unit tokens and the item's vector."""
        return (2 * tokens + 1) * dim


def weighted(shares: Tensor, results: Sequence[Tensor]) -> list[Tensor]:
    """Return for each path the sum over cells of share (1 or C, Q, paths, cells) times result (1 or C, Q, R, D)."""
    count = max(len(result) for result in results)
    stacked = torch.stack([result.expand(count, -1, -1, -1) for result in results], dim=2)  # (C, Q, cells, R, D)
    return list((shares @ stacked.flatten(3)).unflatten(3, stacked.shape[3:]).unbind(dim=2))


def mean_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (C, Q, R, D) over the real tokens of mask (Q, R) bool or None -> (C, Q, D)."""
    if mask is None:
        return x.mean(dim=2)
    return x.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=2) / mask.sum(dim=1, keepdim=True)
