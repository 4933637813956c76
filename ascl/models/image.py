"""Image encoder: project region and whole-image features into the joint space (AsCL, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scale_tokens(tokens: Tensor, norm: float | None) -> Tensor:
    """Scale every token of (..., D) to L2 norm `norm`; None leaves tokens unchanged.

    This changes attention logits but not cosines: query . key of two tokens of this norm is norm^2 times their
    cosine, divided by the root of the head's dimension.
    """
    return tokens if norm is None else F.normalize(tokens, dim=-1) * norm


class Standardize(nn.Module):
    """Scale features to mean 0 and variance 1, with statistics of training images.

    Pooled features after a ReLU share a large mean, above all those of an untrained backbone. All regions then have
    cosines near 1 until the projection has learned to subtract that mean.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, sample: Tensor) -> None:
        """Fit mean and standard deviation to (N, dim); a constant feature is only centered."""
        deviation = sample.std(dim=0)
        self.mean.copy_(sample.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> Tensor:
        """Standardize (..., dim)."""
        return (features - self.mean) * self.scale


class ImageEncoder(nn.Module):
    """Two linear projections, one of the K regions and one of the whole image."""

    def __init__(self, region_dim: int, global_dim: int, embed_dim: int, *, region_norm: float | None) -> None:
        super().__init__()
        self.regions = nn.Linear(region_dim, embed_dim)
        self.globals = nn.Linear(global_dim, embed_dim)
        self.region_norm = region_norm

    def forward(self, regions: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor]:
        """Project (N, K, region_dim), (N, global_dim) -> (N, K, D), (N, D)."""
        return scale_tokens(self.regions(regions), self.region_norm), self.globals(globals_)
