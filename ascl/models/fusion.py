"""Cross-modal attention (AsCL, equation 1), with and without projections, and the weights of a score as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ascl.core.tensors import at_least_float32, products


class AttentionWeights(NamedTuple):
    """The matrices of one multi-head attention; rows h*d..(h+1)*d of `query @ x` are head h. None = identity."""

    query: Tensor | None    # (D, D)
    key: Tensor | None      # (D, D)
    value: Tensor | None    # (D, D)
    out: Tensor | None      # (D, D)
    scale: float            # multiplies query . key before the softmax
    heads: int

    def then(self, matrix: Tensor) -> Tensor:
        """Return `matrix` (E, D) times the attention's output projection: it applies to the unprojected result."""
        return matrix if self.out is None else matrix @ self.out


@dataclass(frozen=True)
class FusionWeights:
    """All model weights in a cross-attention score (equation 2), with products of matrices computed once.

    of_texts (D, D) and of_images (2 D, D) are applied to the mean attended text and image vector.
    image_global: (D, D), X_g. gate: (D, D), the half of the gate's matrix that is applied to V_g2. gate_bias: (D,).
    local_weight: u1. student_weight: of the student's cosine in the score, see `AsCL`.
    """

    region_to_word: AttentionWeights
    word_to_region: AttentionWeights
    of_texts: Tensor
    of_images: Tensor
    image_global: Tensor
    gate: Tensor
    gate_bias: Tensor
    local_weight: float
    student_weight: float


def with_student(scores: Tensor, images: Tensor | None, texts: Tensor | None, weight: float) -> Tensor:
    """Return (1 - weight) * scores + weight * the student's cosines, (N_images, N_texts).

    Args:
        scores: of equation 2. images, texts: the student's unit vectors (N_images, P), (N_texts, P); None = no student.

    Raises:
        ValueError: only one of them has such vectors.
    """
    if images is None and texts is None:
        return scores
    if images is None or texts is None:
        raise ValueError("only the images or only the texts have a student's vectors: encode both by one model")
    return (1 - weight) * scores + weight * products(at_least_float32(images), texts)


class UnprojectedAttention(nn.Module):
    """Multi-head attention without projections and with a fixed logit scale, as in the authors' later release.

    Heads are consecutive slices of D. The call is that of `torch.nn.MultiheadAttention` with `batch_first=True`.
    """

    def __init__(self, embed_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.scale = embed_dim, num_heads, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend -> (N, Q, D) and weights (N, H, Q, K) or None.

        Args:
            query: (N, Q, D). key, value: (N, K, D). key_padding_mask: (N, K) bool, True = ignore.
        """
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        logits = q @ k.transpose(-1, -2) * self.scale                              # (N, H, Q, K)
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask[:, None, None, :], float("-inf"))
        weights = logits.softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights if need_weights else None


class TiedKeyValue(nn.Module):
    """A parametrization of `in_proj_weight` with one matrix for key and value (AsCL, equation 1 as printed).

    The parameter is (2 D, D), the query's matrix above the shared one; `in_proj_weight` is (3 D, D), as usual.
    """

    def forward(self, query_and_shared: Tensor) -> Tensor:
        query, shared = query_and_shared.chunk(2)
        return torch.cat([query, shared, shared])

    def right_inverse(self, in_proj_weight: Tensor) -> Tensor:
        """Return the parameter from (3 D, D); the value's matrix is dropped for the key's."""
        return in_proj_weight[: 2 * in_proj_weight.shape[1]]


def cross_attention(embed_dim: int, num_heads: int, *, projections: bool, tied_key_value: bool,
                    scale: float) -> nn.Module:
    """Return the attention of one direction of the fusion.

    With projections it is a `torch.nn.MultiheadAttention` initialized to the identity. With torch's own initialization
    query . key of similar items is random and small: attention starts uniform and stays so for long. The identity
    starts at "attend to what is similar", which is what the method has to learn.
    """
    if not projections:
        return UnprojectedAttention(embed_dim, num_heads, scale)
    attention = nn.MultiheadAttention(embed_dim, num_heads, bias=False, batch_first=True)
    with torch.no_grad():
        identity = torch.eye(embed_dim)
        attention.in_proj_weight.copy_(identity.repeat(3, 1))
        attention.out_proj.weight.copy_(identity)
    if tied_key_value:
        parametrize.register_parametrization(attention, "in_proj_weight", TiedKeyValue())
    return attention


def attention_weights(attention: nn.Module) -> AttentionWeights:
    """Return the matrices of an attention that `cross_attention` built."""
    if isinstance(attention, UnprojectedAttention):
        return AttentionWeights(None, None, None, None, attention.scale, attention.num_heads)
    assert isinstance(attention, nn.MultiheadAttention)
    heads = attention.num_heads
    query, key, value = attention.in_proj_weight.chunk(3)
    return AttentionWeights(query, key, value, attention.out_proj.weight, (attention.embed_dim // heads) ** -0.5, heads)
