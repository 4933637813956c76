"""Classification of training images by their identity, as baselines of copy detection are trained."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import at_least_float32, check_labels, check_vectors


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Return the cross-entropy against (1 - smoothing) on the label plus smoothing spread evenly over all C classes.

    Source: Szegedy et al. 2016, section 7; the baseline of ASL takes 10 times it with smoothing 0.1. ValueError for
    shapes that do not fit, or smoothing outside [0, 1).

    Args:
        logits: (B, C). labels: (B,) whole numbers in [0, C).
        smoothing: share that is spread, in [0, 1); the label's own class gets its part of it too.

    Returns:
        () float32 (float64 for float64 logits), in nats; log C when all logits are equal.
    """
    check_vectors(logits=logits)
    check_labels(labels, len(logits))
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    return F.cross_entropy(at_least_float32(logits), labels.long(), label_smoothing=smoothing)
