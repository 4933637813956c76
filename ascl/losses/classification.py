"""Classification of training images by identity, which trains the baselines of copy detection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import at_least_float32, check_labels, check_vectors


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Return the cross-entropy against smoothed labels, averaged over the batch.

    The target puts smoothing / C on every class and another 1 - smoothing on the label. Source: Szegedy et al. 2016,
    section 7. The baseline of ASL uses 10 times this loss, with smoothing 0.1.
    Raises ValueError if the shapes do not match or smoothing is outside [0, 1).

    Args:
        logits: (B, C). labels: (B,) integers in [0, C).
        smoothing: share of the target that is spread over all C classes, in [0, 1).

    Returns:
        () float32 (float64 for float64 logits), in nats; log C when all logits are equal.

    Example:
        >>> import torch
        >>> labels = torch.arange(4)
        >>> smoothed_cross_entropy(torch.zeros(4, 4), labels, smoothing=0.1)        # equal logits: log 4
        tensor(1.3863)
        >>> smoothed_cross_entropy(20 * torch.eye(4), labels, smoothing=0.1)        # right but too sure: 0.1 * 3/4 * 20
        tensor(1.5000)
    """
    check_vectors(logits=logits)
    check_labels(labels, len(logits))
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    return F.cross_entropy(at_least_float32(logits), labels.long(), label_smoothing=smoothing)
