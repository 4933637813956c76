"""Momentum encoders."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum * key + (1 - momentum) * query, parameter by parameter, in place (MoCo, equation 2).

    Buffers are left alone: the key encoder's batch norm follows the keys that it sees itself.

    Args:
        key, query: modules of one architecture. momentum: in [0, 1].

    Raises:
        ValueError: a momentum outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum has to lie in [0, 1], got {momentum}")
    for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
        slow.lerp_(fast.detach().to(slow), 1 - momentum)
