"""Triplet losses: hardest negative with a way past its bad start, soft over Euclidean distances, and over norms."""

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

    With the hardest negative alone, training from scratch often collapses at the start: all scores become equal and
    the loss rests at the margin. `hardness` blends from the mean over all negatives (0), which does not
    collapse, to the hardest one (1); a trainer raises it over the first steps.
    ValueError for shapes that do not fit, a negative margin, hardness outside [0, 1].

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal. For B = 1 with no
            further negatives the loss is 0.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; -inf takes no part.
        margin: by which a positive has to exceed its negatives; in units of the score, >= 0.
        hardness: 0 = mean hinge over the negatives, 1 = hinge of the hardest, in between their weighted mean.

    Returns:
        () float32 (float64 for float64 scores); `margin` when all scores are equal.
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
    """Return -log softmax of each row's hardest positive and hardest negative distance, at the negative, averaged.

    That is log(1 + exp(p - n)): a triplet with margin 0 whose hinge is soft, as the baseline of ASL takes it (Bag of
    Tricks, Wang et al. 2021). ValueError for shapes that do not fit.

    Args:
        features: (B, D), taken as they are: distances are Euclidean, in the features' units, and grow with the norm.
        labels: (B,) whole numbers; rows of one number are positives of each other and of themselves, so a row that
            is alone has the positive distance 0.

    Returns:
        () float32 (float64 for float64 features), in nats; log 2 when all distances are equal. A row without any
        negative counts 0. Equal rows have no gradient between them.
    """
    check_vectors(features=features)
    check_labels(labels, len(features))
    features = at_least_float32(features)
    with torch.autocast(features.device.type, enabled=False):
        # from differences: by inner products, near rows would lose their distance to cancellation
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")      # (B, B)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    positive = distance.masked_fill(~same, 0).max(dim=1).values
    negative = distance.masked_fill(same, math.inf).min(dim=1).values
    return -F.logsigmoid(negative - positive).mean()


def norm_triplet_loss(more: Tensor, less: Tensor, *, margin: float) -> Tensor:
    """Return the mean hinge max(0, margin + |less| - |more|): our reading of the ablation "Triplet" of ASL.

    The paper names it without a definition; it stands where `asymmetry.norm_ratio_loss` does, on the same pairs.
    ValueError for two shapes, or a negative margin.

    Args:
        more, less: (P, D) vectors of what says more and what says less, not normalized.
        margin: in units of the norm, >= 0.

    Returns:
        () float32 (float64 for float64 vectors); 0 without any pair.
    """
    if more.dim() != 2 or more.shape != less.shape:
        raise ValueError(f"more and less must be (P, D) of one shape, got {tuple(more.shape)} and {tuple(less.shape)}")
    check_not_negative(margin=margin)
    norm_more, norm_less = (torch.linalg.vector_norm(at_least_float32(x), dim=1) for x in (more, less))
    return (margin + norm_less - norm_more).clamp_min(0).sum() / max(1, len(more))
