"""Scores of chosen pairs of a batch: each item with the few others that the student finds most alike.

A training step on the hardest negatives needs the scores of the hardest pairs only, and most pairs of a batch are
easy. The student's cosines, which cost one matrix product, say which pairs are hard. So a step's cost grows with the
batch size, not with its square. The formulas are those of `attention`, for each pair on its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import at_least_float32
from ascl.models import EncodedImages, EncodedTexts
from ascl.models.ascl import masked_mean
from ascl.models.fusion import AttentionWeights, FusionWeights
from ascl.retrieval.scoring.attention import by_head, length, output_matrix, project


def hardest_pairs(cosines: Tensor, count: int) -> Tensor:
    """Choose the true pairs, and each item's `count` other candidates of the highest cosines, in both directions.

    Args:
        cosines: (B, B) of images and texts; text i belongs to image i.

    Returns:
        (B, B) bool, True = chosen.
    """
    chosen = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    others, count = cosines.detach().masked_fill(chosen, -math.inf), min(count, len(cosines) - 1)
    for dim in (1, 0):
        chosen.scatter_(dim, others.topk(count, dim=dim).indices, True)
    return chosen


def score_chosen(weights: FusionWeights, images: EncodedImages, texts: EncodedTexts, chosen: Tensor) -> Tensor:
    """Return the scores of equation 2, (B, N), of the chosen pairs; -inf elsewhere. Differentiable.

    Args:
        chosen: (B, N) bool.
    """
    image, text = chosen.nonzero(as_tuple=True)
    of_regions, text_vector = _attended(weights.region_to_word, images.regions, images.mask, texts.words, texts.mask,
                                        weights.of_texts, image, text)
    of_words, image_parts = _attended(weights.word_to_region, texts.words, texts.mask, images.regions, images.mask,
                                      weights.of_images, text, image)
    second = F.linear(images.globals, weights.image_global)
    logit = F.linear(second, weights.gate, weights.gate_bias)
    first, first_logit = image_parts.chunk(2, dim=-1)
    t = torch.sigmoid(first_logit + logit[image])
    image_vector = torch.lerp(at_least_float32(second)[image], first, t)
    global_ = F.cosine_similarity(image_vector, text_vector, dim=-1)
    scores = weights.local_weight * (of_regions + of_words) / 2 + (1 - weights.local_weight) * global_
    return scores.new_full(chosen.shape, -math.inf).index_put((image, text), scores)


def _attended(weights: AttentionWeights, queries: Tensor, query_mask: Tensor | None, tokens: Tensor,
              mask: Tensor | None, following: Tensor, of_query: Tensor, of_key: Tensor) -> tuple[Tensor, Tensor]:
    """Return of P pairs the mean cosine of the query tokens with their attended vectors, and mean attended vector.

    Args:
        queries: (N, R, D). tokens: (M, S, D), keys and values. Masks (N, R), (M, S) bool or None.
        following: (E, D). of_query, of_key: (P,) the items of each pair.

    Returns:
        (P,) and (P, E), at least float32.
    """
    heads = weights.heads
    query = project(queries, weights.query, heads) * weights.scale
    out = project(queries, None if weights.out is None else weights.out.T, heads)
    key, value = (project(tokens, matrix, heads) for matrix in (weights.key, weights.value))
    u = by_head(value, output_matrix(tokens, weights))                                              # (M, H * S, D)
    gram = u @ u.transpose(1, 2)
    query, out = (x.index_select(1, of_query) for x in (query, out))                                # (H, P, R, d)
    key, value = (x.index_select(1, of_key) for x in (key, value))                                  # (H, P, S, d)
    logits = query @ key.transpose(-1, -2)                                                          # (H, P, R, S)
    if mask is not None:
        logits = logits.masked_fill(~mask[of_key][None, :, None], -math.inf)
    attention = at_least_float32(logits).softmax(dim=-1)
    dot = (attention * (out @ value.transpose(-1, -2))).sum(dim=(0, 3))                             # (P, R)
    rows = attention.permute(1, 2, 0, 3).flatten(2)                                                 # (P, R, H * S)
    square = at_least_float32((rows @ gram.index_select(0, of_key)) * rows).sum(dim=-1)
    norm = length(at_least_float32(queries).square().sum(dim=-1))
    real = None if query_mask is None else query_mask[of_query]
    cosine = masked_mean((dot / (norm[of_query] * length(square))).unsqueeze(-1), real).squeeze(-1)
    mean = masked_mean(rows, real).unflatten(-1, (heads, 1, -1)).transpose(0, 1)                    # (H, P, 1, S)
    return cosine, at_least_float32(F.linear((mean @ value).transpose(0, 1).flatten(1), following))
