"""Contrastive losses: over scores (AsCL, section 2.4, equations 3 to 5) and over vectors (MoCo, SSCD)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.asymmetry import keep_generated_negatives
from ascl.core import tensors
from ascl.core.tensors import at_least_float32, check_positive, check_vectors, products, unit
from ascl.losses.spread import entropy_of_nearest

PARTITION_FLOOR = 1e-6      # added to the sum over the negatives in SSCD's InfoNCE


def check_square(scores: Tensor, extra_negatives: Tensor | None) -> None:
    """ValueError unless `scores` is (B, B) with B >= 1 and `extra_negatives` is None or (B, M)."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise ValueError(f"scores must be (B, B) with the positives on the diagonal, got {tuple(scores.shape)}")
    if extra_negatives is not None and (extra_negatives.dim() != 2 or len(extra_negatives) != len(scores)):
        raise ValueError(f"extra_negatives must be ({len(scores)}, M), got {tuple(extra_negatives.shape)}")


def info_nce(scores: Tensor, extra_negatives: Tensor | None = None, *, temperature: float) -> Tensor:
    """Return the cross-entropy of each query against its own positive, averaged over the batch.

    ValueError for shapes that do not fit, or a temperature that is not positive.

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; an entry of -inf takes no part.
        temperature: divides every score before the softmax; unitless, > 0.

    Returns:
        () float32 (float64 for float64 scores), in nats; log(B + M) when all scores are equal.
    """
    check_square(scores, extra_negatives)
    check_positive(temperature=temperature)
    logits = scores if extra_negatives is None else torch.cat([scores, extra_negatives], dim=1)
    logits = at_least_float32(logits) / temperature                      # (B, B + M)
    return F.cross_entropy(logits, torch.arange(len(scores), device=scores.device))


def asymmetry_loss(scores: Tensor, negatives: Tensor | None, contrast: Callable[..., Tensor]) -> Tensor:
    """Return the sum of two directions: captions against images, images against captions and generated negatives.

    Equation 3 with `scores` of the original captions, equation 4 with those of the generated positives.

    Args:
        scores: (B, B); [i, j] is image i against caption j (or generated positive j), true pairs on the diagonal.
        negatives: (B, M); [i, n] is image i against generated negative n, or None. Those that exceed the image's
            positive are left out of the sum (alpha = 0), which is not the same as a score of 0.
        contrast: `info_nce` or `hardest_triplet` with its settings bound: (scores, extra_negatives) -> scalar.
    """
    check_square(scores, negatives)
    if negatives is not None:
        negatives = negatives.masked_fill(~keep_generated_negatives(scores.diagonal(), negatives), -math.inf)
    return contrast(scores.T, None) + contrast(scores, negatives)


def ascl_loss(scores: Tensor, negatives: Tensor | None = None, positive_scores: Tensor | None = None,
              positive_negatives: Tensor | None = None, *, temperature: float,
              contrast: Callable[..., Tensor] | None = None) -> Tensor:
    """Return the total loss of AsCL (equation 5): the mean of the terms for Asymmetry-I and for Asymmetry-II and III.

    Args:
        scores: (B, B) cosine, image i against caption j.
        negatives: (B, M) image i against noised caption n; None = "w/o Neg".
        positive_scores: (B, B) image i against generated positive j (concatenated or truncated); None = "w/o Pos",
            and the total is the first term alone.
        positive_negatives: (B, M) image i against noised generated positive n; needs `positive_scores`.
        temperature: of the softmax, unitless, > 0.
        contrast: replaces the cross-entropy, for the ablation "w triplet loss"; then `temperature` is not used.

    Returns:
        () float32 (float64 for float64 scores), in nats; log(B) + log(B + M) when all scores are equal.
    """
    if positive_scores is None and positive_negatives is not None:
        raise ValueError("positive_negatives are negatives of generated positives: give positive_scores too")
    contrast = contrast or partial(info_nce, temperature=temperature)
    first = asymmetry_loss(scores, negatives, contrast)
    if positive_scores is None:
        return first
    return 0.5 * first + 0.5 * asymmetry_loss(positive_scores, positive_negatives, contrast)


def info_nce_queue(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy of each query against its own key among earlier keys (MoCo, He et al. 2020).

    ValueError for shapes that do not fit, or a temperature that is not positive.

    Args:
        query: (B, d) embeddings of one view, normalized inside.
        key: (B, d) embeddings of the other view from the momentum encoder, normalized inside; no gradient.
        queue: (Q, d) unit rows, keys of earlier batches; no gradient. Q may be 0, and the loss is then 0.
        temperature: divides every cosine before the softmax; unitless, > 0.

    Returns:
        () float32 (float64 for float64 queries), in nats; log(1 + Q) when all cosines are equal.
    """
    check_vectors(query=query, key=key)
    tensors.check_queue(queue, query.shape[1])
    check_positive(temperature=temperature)
    query, key = unit(query), unit(key.detach())
    own = (query * key).sum(dim=1, keepdim=True)                                 # (B, 1)
    logits = torch.cat([own, products(query, queue.detach())], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def sscd_loss(embeddings: Tensor, labels: Tensor, *, temperature: float, entropy_weight: float) -> Tensor:
    """Return the loss of SSCD (Pizzi et al. 2022): InfoNCE in a batch, and a push away from the nearest negative.

    Each pair (i, j) with content in common, i not j, costs -log(x_ij / (x_ij + sum_k x_ik + 1e-6)), x = exp(cosine /
    temperature), k over the rows that have nothing in common with i: other positives do not compete. To it comes
    `entropy_weight` times `spread.entropy_of_nearest` (the paper takes 30; 10 starts safely).
    ValueError for shapes that do not fit, a temperature that is not positive, a negative weight.

    Args:
        embeddings: (B, d), normalized inside. Of several processes: all of their rows, gathered with gradients.
        labels: (B,) whole numbers, rows of one number are copies of one image; pairs are summed and divided by B, which
            weighs images by their number of copies. Or (B, C), the share of each of C images in a row, as mixup and
            cutmix make them: whatever share two rows have in common makes them a full positive, as in the
            publishers' training; each row takes the mean over its positives, because a mixed one has many more.
            One-hot rows of two copies each are the same loss in both forms.
        temperature: unitless, > 0. entropy_weight: >= 0.

    Returns:
        () float32 (float64 for float64 embeddings), the mean over all B rows. A row without a positive counts 0 in the
        first part, one without a negative in the second.
    """
    check_vectors(embeddings=embeddings)
    check_positive(temperature=temperature)
    tensors.check_not_negative(entropy_weight=entropy_weight)
    count, mixed = len(embeddings), labels.dim() == 2
    if mixed and len(labels) == count:
        share = (labels > 0).float()                    # by sign first: products of small shares could vanish
        related = products(share, share) > 0
    else:
        tensors.check_labels(labels, count)
        related = labels.unsqueeze(1) == labels.unsqueeze(0)
    own = torch.eye(count, dtype=torch.bool, device=embeddings.device)
    positives, negatives = related & ~own, ~(related | own)
    vectors = unit(embeddings)
    similarity = products(vectors, vectors)
    logits = similarity / temperature
    floor = logits.new_full((count, 1), math.log(PARTITION_FLOOR))
    log_negatives = torch.cat([logits.masked_fill(~negatives, -math.inf), floor], dim=1).logsumexp(dim=1, keepdim=True)
    # -log of the share, from logarithms: exp(1 / temperature) leaves float32's range at a temperature of 0.011
    cost = (torch.logaddexp(logits, log_negatives) - logits).masked_fill(~positives, 0).sum(dim=1)       # (B,)
    if mixed:
        cost = cost / positives.sum(dim=1).clamp_min(1)
    return cost.mean() + entropy_weight * entropy_of_nearest(similarity, negatives)
