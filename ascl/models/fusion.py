"""Cross-modal attention (AsCL, equation 1) in the two forms that exist, and the weights of a score as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class AttentionWeights(NamedTuple):
    """Matrices of one multi-head attention: head h of x is rows h*d..(h+1)*d of `query @ x`. None = identity."""

    query: Tensor | None    # (D, D)
    key: Tensor | None      # (D, D)
    value: Tensor | None    # (D, D)
    out: Tensor | None      # (D, D)
    scale: float            # multiplies query . key before the softmax
    heads: int

    def then(self, matrix: Tensor) -> Tensor:
        """Return (E, D) that follows the attended vector with the attention's own output projection in it."""
        return matrix if self.out is None else matrix @ self.out


@dataclass(frozen=True)
class FusionWeights:
    """All that a score by cross attention (equation 2) takes of a model, products of its matrices made once.

    of_texts: (D, D) and of_images: (2 D, D) follow the mean attended text and image vector. image_global: (D, D) X_g.
    gate: (D, D) the half of the gate's matrix that V_g2 meets; gate_bias: (D,). local_weight: u1.
    """

    region_to_word: AttentionWeights
    word_to_region: AttentionWeights
    of_texts: Tensor
    of_images: Tensor
    image_global: Tensor
    gate: Tensor
    gate_bias: Tensor
    local_weight: float


class UnprojectedAttention(nn.Module):
    """Multi-head attention without any projection and with a fixed logit scale, as in the authors' later release.

    Heads are consecutive slices of D. Called as `torch.nn.MultiheadAttention` with `batch_first=True` is.
    """

    def __init__(self, embed_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.scale = embed_dim, num_heads, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """(N, Q, D), (N, K, D), (N, K, D) and (N, K) bool, True = ignore -> (N, Q, D) and the weights (N, H, Q, K)."""
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        logits = q @ k.transpose(-1, -2) * self.scale                              # (N, H, Q, K)
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None, :], float("-inf"))
        weights = logits.softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights if need_weights else None


def cross_attention(embed_dim: int, num_heads: int, *, projections: bool, scale: float) -> nn.Module:
    """One direction of the fusion.

    With projections it is `torch.nn.MultiheadAttention`, started at the identity: torch's own initialization makes
    query . key of similar items random and small, so that the attention starts out uniform and stays so for
    long; the identity starts it at "attend to what is similar", which is what the method wants it to learn.
    """
    if not projections:
        return UnprojectedAttention(embed_dim, num_heads, scale)
    attention = nn.MultiheadAttention(embed_dim, num_heads, bias=False, batch_first=True)
    with torch.no_grad():
        identity = torch.eye(embed_dim)
        attention.in_proj_weight.copy_(identity.repeat(3, 1))
        attention.out_proj.weight.copy_(identity)
    return attention


def attention_weights(attention: nn.Module) -> AttentionWeights:
    """Return the matrices behind either form of `cross_attention`."""
    if isinstance(attention, UnprojectedAttention):
        return AttentionWeights(None, None, None, None, attention.scale, attention.num_heads)
    assert isinstance(attention, nn.MultiheadAttention)
    heads = attention.num_heads
    query, key, value = attention.in_proj_weight.chunk(3)
    return AttentionWeights(query, key, value, attention.out_proj.weight, (attention.embed_dim // heads) ** -0.5, heads)
