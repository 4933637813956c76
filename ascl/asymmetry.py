"""What image-text retrieval and copy detection share: similarity has a direction, one side may say more."""

from __future__ import annotations

from torch import Tensor


def keep_generated_negatives(positive: Tensor, negatives: Tensor) -> Tensor:
    """Which generated negatives count in the loss: those that score no higher than the query's own positive.

    A noised caption can end up a better description than the original; such a sample is no negative. This is
    alpha_n of equations 3 and 4 (AsCL, section 2.4): 0 where the generated negative's score exceeds the positive's,
    else 1. It is a choice of terms and carries no gradient.

    Args:
        positive: (B,) score of each query with its own positive; cosine, unitless.
        negatives: (B, M) score of each query with its M generated negatives.

    Returns:
        (B, M) bool, True = keep. A tie is kept.
    """
    return negatives.detach() <= positive.detach().unsqueeze(1)
