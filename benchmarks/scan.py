"""SCAN's stacked attention (Lee et al., "Stacked Cross Attention for Image-Text Matching", 2018), as usually computed.

A similar score that is cheaper per pair: one direction, no projections, one head. It shows the cost of other image-text
models. It follows the paper's equations in the order of published code: one caption at a time, repeated for all images,
with one product per image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.1                                         # of the leaky ReLU
TEXT_TO_IMAGE, IMAGE_TO_TEXT = 9.0, 4.0             # inverse temperatures, the paper's lambda


def text_to_image(regions: Tensor, words: Tensor) -> Tensor:
    """Score (N, K, D) with (L, D), unit vectors -> (N,): words attend to regions, mean cosine over words."""
    queries = words.repeat(len(regions), 1, 1)
    return F.cosine_similarity(queries, attended(queries, regions, TEXT_TO_IMAGE), dim=-1).mean(dim=1)


def image_to_text(regions: Tensor, words: Tensor) -> Tensor:
    """Score (N, K, D) with (L, D), unit vectors -> (N,): regions attend to words, mean cosine over regions."""
    keys = words.repeat(len(regions), 1, 1)
    return F.cosine_similarity(regions, attended(regions, keys, IMAGE_TO_TEXT), dim=-1).mean(dim=1)


def attended(queries: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    """Attend from (N, Q, D) to (N, S, D) -> (N, Q, D), for N pairs: the paper's equations 2 to 4 and 8 to 10."""
    similarity = F.leaky_relu(keys @ queries.transpose(1, 2), SLOPE)                # (N, S, Q)
    similarity = F.normalize(similarity, dim=2, eps=1e-8)
    return (sharpness * similarity.transpose(1, 2)).softmax(dim=2) @ keys


@torch.no_grad()
def score_all(
    direction: Callable[[Tensor, Tensor], Tensor], regions: Tensor, words: Tensor, lengths: list[int],
    device: torch.device,
) -> Tensor:
    """Score (N, K, D) with (T, L, D), where text t has lengths[t] real words -> (N, T) on the CPU."""
    regions = regions.to(device)
    scores = torch.empty(len(regions), len(words), device=device)
    for text, length in enumerate(lengths):
        scores[:, text] = direction(regions, words[text, :length].to(device))
    return scores.cpu()
