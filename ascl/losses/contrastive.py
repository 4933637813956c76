"""Contrastive losses over scores (AsCL, section 2.4, equations 3 to 5) and over vectors (MoCo, SSCD)."""

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
    """Raise ValueError unless `scores` is (B, B) with B >= 1 and `extra_negatives` is None or (B, M)."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise ValueError(f"scores must be (B, B) with the positives on the diagonal, got {tuple(scores.shape)}")
    if extra_negatives is not None and (extra_negatives.dim() != 2 or len(extra_negatives) != len(scores)):
        raise ValueError(f"extra_negatives must be ({len(scores)}, M), got {tuple(extra_negatives.shape)}")


def info_nce(scores: Tensor, extra_negatives: Tensor | None = None, *, temperature: float,
             label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each query against its own positive, averaged over the batch.

    Raises ValueError if the shapes do not match, the temperature is not positive, or label_smoothing is out of range.

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; entries of -inf are ignored.
        temperature: divides every score before the softmax; unitless, > 0.
        label_smoothing: share of the target, in [0, 1), that is spread evenly over the candidates that are not ignored,
            the positive among them (Szegedy et al. 2016).

    Returns:
        () float32 (float64 for float64 scores), in nats; log(B + M) when all scores are equal.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])                 # each query scores highest with its own
        >>> info_nce(scores, temperature=0.1)
        tensor(0.0014)
        >>> info_nce(torch.zeros(2, 2), torch.zeros(2, 3), temperature=0.1)     # equal scores: log(2 + 3)
        tensor(1.6094)
    """
    check_square(scores, extra_negatives)
    check_positive(temperature=temperature)
    logits = scores if extra_negatives is None else torch.cat([scores, extra_negatives], dim=1)
    logits = at_least_float32(logits) / temperature                      # (B, B + M)
    if not label_smoothing:
        return F.cross_entropy(logits, torch.arange(len(scores), device=scores.device))
    if not 0 < label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}: it must be at least 0 and below 1")
    cost, used = -logits.log_softmax(dim=1), logits > -math.inf          # torch's own smoothing includes ignored ones
    spread = cost.masked_fill(~used, 0).sum(dim=1) / used.sum(dim=1)
    return ((1 - label_smoothing) * cost.diagonal() + label_smoothing * spread).mean()


def asymmetry_loss(scores: Tensor, negatives: Tensor | None, contrast: Callable[..., Tensor]) -> Tensor:
    """Return the loss of captions against images plus that of images against captions and generated negatives.

    This is equation 3 of AsCL for scores of the original captions, and equation 4 for scores of generated positives.
    Raises ValueError if the shapes do not match.

    Args:
        scores: (B, B); [i, j] is image i against caption j (or generated positive j), true pairs on the diagonal.
        negatives: (B, M); [i, n] is image i against generated negative n, or None. Negatives that score above the
            image's positive are dropped from the sum (alpha = 0); a score of 0 would still count.
        contrast: `info_nce` or `hardest_triplet` with its settings bound: (scores, extra_negatives) -> scalar.

    Returns:
        () in the units of `contrast`.

    Example:
        >>> scores, contrast = torch.tensor([[0.5, 0.1], [0.2, 0.6]]), partial(info_nce, temperature=0.1)
        >>> above = torch.tensor([[0.9], [0.7]])                            # each above its positive: dropped
        >>> torch.equal(asymmetry_loss(scores, above, contrast), asymmetry_loss(scores, None, contrast))
        True
    """
    check_square(scores, negatives)
    if negatives is not None:
        negatives = negatives.masked_fill(~keep_generated_negatives(scores.diagonal(), negatives), -math.inf)
    return contrast(scores.T, None) + contrast(scores, negatives)


def ascl_loss(scores: Tensor, negatives: Tensor | None = None, positive_scores: Tensor | None = None,
              positive_negatives: Tensor | None = None, *, temperature: float,
              contrast: Callable[..., Tensor] | None = None) -> Tensor:
    """Return the total loss of AsCL (equation 5): the mean of the terms for Asymmetry-I and for Asymmetry-II and III.

    Raises ValueError if the shapes do not match, the temperature is not positive, or `positive_negatives` comes
    without `positive_scores`.

    Args:
        scores: (B, B) cosine, image i against caption j.
        negatives: (B, M) image i against noised caption n; None = the ablation "w/o Neg".
        positive_scores: (B, B) image i against generated positive j (concatenated or truncated); None = the ablation
            "w/o Pos", and the total is the first term alone.
        positive_negatives: (B, M) image i against noised generated positive n; needs `positive_scores`.
        temperature: of the softmax, unitless, > 0.
        contrast: replaces the cross-entropy, for the ablation "w triplet loss"; then `temperature` is not used.

    Returns:
        () float32 (float64 for float64 scores), in nats; log(B) + log(B + M) when all scores are equal.

    Example:
        >>> scores = torch.zeros(4, 4)
        >>> ascl_loss(scores, temperature=0.05)                             # no generated samples: log 4 + log 4
        tensor(2.7726)
        >>> ascl_loss(scores, scores, scores, scores, temperature=0.05)     # M = 4 negatives: log 4 + log(4 + 4)
        tensor(3.4657)
    """
    if positive_scores is None and positive_negatives is not None:
        raise ValueError("positive_negatives needs positive_scores: pass both, or neither")
    contrast = contrast or partial(info_nce, temperature=temperature)
    first = asymmetry_loss(scores, negatives, contrast)
    if positive_scores is None:
        return first
    return 0.5 * first + 0.5 * asymmetry_loss(positive_scores, positive_negatives, contrast)


def info_nce_queue(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy of each query against its own key among earlier keys (MoCo, He et al. 2020).

    Raises ValueError if the shapes do not match or the temperature is not positive.

    Args:
        query: (B, d) embeddings of one view, normalized inside.
        key: (B, d) embeddings of the other view from the momentum encoder, normalized inside; no gradient.
        queue: (Q, d) unit rows, keys of earlier batches; no gradient. The loss is 0 for Q = 0.
        temperature: divides every cosine before the softmax; unitless, > 0.

    Returns:
        () float32 (float64 for float64 queries), in nats; log(1 + Q) when all cosines are equal.

    Example:
        >>> query, key, queue = torch.eye(4)[:1], torch.eye(4)[1:2], torch.eye(4)[2:]
        >>> info_nce_queue(query, key, queue, temperature=1.0)              # every cosine is 0: log(1 + 2)
        tensor(1.0986)
        >>> info_nce_queue(query, query, queue, temperature=1.0)            # own cosine 1: log(1 + 2 / e)
        tensor(0.5514)
    """
    check_vectors(query=query, key=key)
    tensors.check_queue(queue, query.shape[1])
    check_positive(temperature=temperature)
    query, key = unit(query), unit(key.detach())
    own = (query * key).sum(dim=1, keepdim=True)                                 # (B, 1)
    logits = torch.cat([own, products(query, queue.detach())], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def sscd_loss(embeddings: Tensor, labels: Tensor, *, temperature: float, entropy_weight: float) -> Tensor:
    """Return the loss of SSCD (Pizzi et al. 2022): InfoNCE within the batch plus a push away from the nearest negative.

    Each pair (i, j) of different rows that share content costs -log(x_ij / (x_ij + sum_k x_ik + 1e-6)). Here
    x = exp(cosine / temperature), and k runs over the rows that share nothing with i: other positives do not compete.
    The second part is `entropy_weight` times `spread.entropy_of_nearest` (30 in the paper; 10 is a safe start).
    Raises ValueError if the shapes do not match, the temperature is not positive, or the weight is negative.

    Args:
        embeddings: (B, d), normalized inside. With several processes: the rows of all, gathered with gradients.
        labels: One of two forms, which give the same loss for one-hot rows with two copies of each image.
            (B,) integers: rows with the same number are copies of one image. The costs of the pairs are summed and
            divided by B, so an image weighs more the more copies it has.
            (B, C): the share of each of C images in a row, from mixup or cutmix. Any shared image makes two rows a full
            positive, as in the publishers' training. Each row takes the mean over its positives, because a mixed row
            has many more of them.
        temperature: unitless, > 0. entropy_weight: >= 0.

    Returns:
        () float32 (float64 for float64 embeddings), the mean over all B rows. A row without a positive counts 0 in the
        first part, a row without a negative 0 in the second.

    Example:
        >>> rows, labels = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])       # two images, two copies each
        >>> sscd_loss(rows, labels, temperature=0.05, entropy_weight=0)
        tensor(0.)
        >>> sscd_loss(torch.ones(4, 2), labels, temperature=0.05, entropy_weight=0)     # all equal: log(1 + 2)
        tensor(1.0986)
    """
    check_vectors(embeddings=embeddings)
    check_positive(temperature=temperature)
    tensors.check_not_negative(entropy_weight=entropy_weight)
    count, mixed = len(embeddings), labels.dim() == 2
    if mixed and len(labels) == count:
        share = (labels > 0).float()                    # signs first: the product of two small shares underflows
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
    # in log space: exp(1 / temperature) overflows float32 at a temperature of 0.011
    cost = (torch.logaddexp(logits, log_negatives) - logits).masked_fill(~positives, 0).sum(dim=1)       # (B,)
    if mixed:
        cost = cost / positives.sum(dim=1).clamp_min(1)
    return cost.mean() + entropy_weight * entropy_of_nearest(similarity, negatives)
