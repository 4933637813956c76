"""Triplet loss with the hardest negative (VSE++, Faghri et al. 2018, equation 6), with a way past its bad start."""

from __future__ import annotations

import torch
from torch import Tensor

from ascl.losses.contrastive import at_least_float32, check_square


def hardest_triplet(
    scores: Tensor, extra_negatives: Tensor | None = None, *, margin: float, hardness: float = 1.0
) -> Tensor:
    """Hinge on the hardest negative of each query, averaged over the batch.

    With the hardest negative alone, training from scratch often collapses at the start: all scores become equal and
    the loss rests at the margin. `hardness` blends from the mean over all negatives (0), which does not
    collapse, to the hardest one (1); a trainer raises it over the first steps.

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal. For B = 1 with no
            further negatives the loss is 0.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; -inf takes no part.
        margin: by which a positive has to exceed its negatives; in units of the score, >= 0.
        hardness: 0 = mean hinge over the negatives, 1 = hinge of the hardest, in between their weighted mean.

    Returns:
        () float32 (float64 for float64 scores); `margin` when all scores are equal.

    Raises:
        ValueError: shapes that do not fit, a negative margin, hardness outside [0, 1].
    """
    check_square(scores, extra_negatives)
    if margin < 0 or not 0 <= hardness <= 1:
        raise ValueError(f"margin must be >= 0 and hardness in [0, 1], got {margin} and {hardness}")
    scores = at_least_float32(scores)
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    candidates = scores.masked_fill(own, float("-inf"))
    if extra_negatives is not None:
        candidates = torch.cat([candidates, extra_negatives.to(scores.dtype)], dim=1)
    hinge = (margin + candidates - scores.diagonal().unsqueeze(1)).clamp_min(0)         # (B, B + M); 0 where left out
    hardest = hinge.max(dim=1).values
    counted = candidates.isfinite().sum(dim=1).clamp_min(1)
    return (hardness * hardest + (1 - hardness) * hinge.sum(dim=1) / counted).mean()
