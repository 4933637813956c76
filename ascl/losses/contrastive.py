"""Contrastive losses over scores (AsCL, section 2.4, equations 3 to 5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.asymmetry import keep_generated_negatives


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_square(scores: Tensor, extra_negatives: Tensor | None) -> None:
    """ValueError unless `scores` is (B, B) with B >= 1 and `extra_negatives` is None or (B, M)."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise ValueError(f"scores must be (B, B) with the positives on the diagonal, got {tuple(scores.shape)}")
    if extra_negatives is not None and (extra_negatives.dim() != 2 or len(extra_negatives) != len(scores)):
        raise ValueError(f"extra_negatives must be ({len(scores)}, M), got {tuple(extra_negatives.shape)}")


def info_nce(scores: Tensor, extra_negatives: Tensor | None = None, *, temperature: float) -> Tensor:
    """Cross-entropy of each query against its own positive, averaged over the batch.

    Args:
        scores: (B, B) cosine; [i, j] is query i against candidate j, positives on the diagonal.
        extra_negatives: (B, M) cosine of query i against its own M generated negatives; an entry of -inf takes no part.
        temperature: divides every score before the softmax; unitless, > 0.

    Returns:
        () float32 (float64 for float64 scores), in nats; log(B + M) when all scores are equal.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    check_square(scores, extra_negatives)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = scores if extra_negatives is None else torch.cat([scores, extra_negatives], dim=1)
    logits = at_least_float32(logits) / temperature                      # (B, B + M)
    return F.cross_entropy(logits, torch.arange(len(scores), device=scores.device))


def asymmetry_loss(scores: Tensor, negatives: Tensor | None, contrast: Callable[..., Tensor]) -> Tensor:
    """One asymmetry term: captions choose among images, images among captions and generated negatives.

    Equation 3 with `scores` of the original captions, equation 4 with those of the generated positives.

    Args:
        scores: (B, B); [i, j] is image i against caption j (or generated positive j), true pairs on the diagonal.
        negatives: (B, M); [i, n] is image i against generated negative n, or None. Those that exceed the image's
            positive are left out of the sum (alpha = 0), which is not the same as a score of 0.
        contrast: `info_nce` or `hardest_triplet` with its settings bound: (scores, extra_negatives) -> scalar.

    Returns:
        () sum of the two directions.
    """
    check_square(scores, negatives)
    if negatives is not None:
        keep = keep_generated_negatives(scores.diagonal(), negatives)
        negatives = negatives.masked_fill(~keep, float("-inf"))
    return contrast(scores.T, None) + contrast(scores, negatives)


def ascl_loss(
    scores: Tensor,
    negatives: Tensor | None = None,
    positive_scores: Tensor | None = None,
    positive_negatives: Tensor | None = None,
    *,
    temperature: float,
    contrast: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Total loss of AsCL (equation 5): the mean of the terms for Asymmetry-I and for Asymmetry-II and III.

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
