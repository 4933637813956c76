"""Triplet losses: on the hardest negative with a warm-up, soft over Euclidean distances, and over norms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import at_least_float32, check_labels, check_not_negative, check_vectors
from ascl.losses.contrastive import check_square


def hardest_triplet(scores: Tensor, extra_negatives: Tensor | None = None, *, margin: float,
                    hardness: float = 1.0) -> Tensor:
    """Return the hinge on the hardest negative of each query, averaged (VSE++, Faghri et al. 2018, equation 6).

    With the hardest negative alone, training from scratch often collapses early: all scores become equal and the loss
    stays at the margin. The mean over all negatives (hardness 0) does not collapse, so a trainer raises `hardness`
    from 0 to 1 over the first steps.
    Raises ValueError if the shapes do not match, the margin is negative, or hardness is outside [0, 1].

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal. The loss is 0 for
            B = 1 without extra negatives.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; entries of -inf are ignored.
        margin: by which a positive must exceed its negatives; in units of the score, >= 0.
        hardness: 0 = mean hinge over the negatives, 1 = hinge of the hardest, between them their weighted mean.

    Returns:
        () float32 (float64 for float64 scores); `margin` when all scores are equal.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
        >>> hardest_triplet(scores, margin=0.2)             # hinges 0.2 + 0.8 - 0.9 and 0
        tensor(0.0500)
        >>> hardest_triplet(torch.zeros(3, 3), margin=0.2)
        tensor(0.2000)
    """
    check_square(scores, extra_negatives)
    if margin < 0 or not 0 <= hardness <= 1:
        raise ValueError(f"margin must be >= 0 and hardness in [0, 1], got {margin} and {hardness}")
    scores = at_least_float32(scores)
    candidates = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -math.inf)
    if extra_negatives is not None:
        candidates = torch.cat([candidates, extra_negatives.to(scores.dtype)], dim=1)
    hinge = (margin + candidates - scores.diagonal().unsqueeze(1)).clamp_min(0)         # (B, B + M); 0 where left out
    hardest = hinge.max(dim=1).values
    counted = candidates.isfinite().sum(dim=1).clamp_min(1)
    return (hardness * hardest + (1 - hardness) * hinge.sum(dim=1) / counted).mean()


def soft_triplet_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(p - n)), p the distance to the hardest positive, n to the hardest negative.

    It is a triplet loss with margin 0 and a soft hinge. The baseline of ASL uses it (Bag of Tricks, Wang et al. 2021).
    Raises ValueError if the shapes do not match.

    Args:
        features: (B, D), not normalized here: distances are Euclidean, in the units of the features.
        labels: (B,) integers; rows with the same number are positives of each other and of themselves, so p = 0 for
            the only row of a number.

    Returns:
        () float32 (float64 for float64 features), in nats; log 2 when all distances are equal. A row without negatives
        counts 0. Equal rows have no gradient between them.

    Example:
        >>> labels = torch.tensor([0, 0, 1])
        >>> soft_triplet_loss(torch.tensor([[0.0], [1.0], [4.0]]), labels)      # p - n = 1 - 4, 1 - 3, 0 - 3
        tensor(0.0747)
        >>> soft_triplet_loss(torch.ones(3, 2), labels)
        tensor(0.6931)
    """
    check_vectors(features=features)
    check_labels(labels, len(features))
    features = at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        # from differences: with inner products, cancellation would lose small distances
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")      # (B, B)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    positive = distance.masked_fill(~same, 0).max(dim=1).values
    negative = distance.masked_fill(same, math.inf).min(dim=1).values
    return -F.logsigmoid(negative - positive).mean()


def norm_triplet_loss(more: Tensor, less: Tensor, *, margin: float) -> Tensor:
    """Return the mean hinge max(0, margin + |less| - |more|): our reading of the ablation "Triplet" of ASL.

    The paper names this loss but does not define it. It replaces `asymmetry.norm_ratio_loss`, on the same pairs.
    Raises ValueError if the shapes differ or the margin is negative.

    Args:
        more, less: (P, D) vectors of what says more and what says less, not normalized.
        margin: in units of the norm, >= 0.

    Returns:
        () float32 (float64 for float64 vectors); 0 for P = 0.

    Example:
        >>> original, crop = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]])     # norms 5 and 3
        >>> norm_triplet_loss(original, crop, margin=1.0)
        tensor(0.)
        >>> norm_triplet_loss(crop, original, margin=1.0)                               # wrong order: 1 + 5 - 3
        tensor(3.)
    """
    if more.dim() != 2 or more.shape != less.shape:
        raise ValueError(f"more and less must be (P, D) of one shape, got {tuple(more.shape)} and {tuple(less.shape)}")
    check_not_negative(margin=margin)
    norm_more, norm_less = (torch.linalg.vector_norm(at_least_float32(x), dim=1) for x in (more, less))
    return (margin + norm_less - norm_more).clamp_min(0).sum() / max(1, len(more))
