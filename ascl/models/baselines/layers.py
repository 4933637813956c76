"""Layers that several baselines share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.core.tensors import at_least_float32


def xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear map with Xavier's uniform start and a bias of 0, as published for the projection of images."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization of each dimension over the real tokens of all items of a batch.

    In training, an item's tokens depend on the other items of its batch; in evaluation they do not, because the
    running statistics are used. Several processes have each their own statistics.
    """

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize (N, S, D), at least float32; mask (N, S) bool, True = real, None = all. Padding becomes 0."""
        if mask is None:
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        normalized = super().forward(at_least_float32(tokens[mask]))
        return normalized.new_zeros(tokens.shape).masked_scatter(mask.unsqueeze(-1), normalized)
