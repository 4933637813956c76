"""Images: region and whole-image features into the joint space (AsCL, section 2.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def scale_tokens(tokens: Tensor, norm: float | None) -> Tensor:
    """Give every token of (..., D) the L2 norm `norm`; None leaves them as they are.

    Cosines do not change; the attention's logits do: query . key of two tokens of this norm is norm^2 times their
    cosine, divided by the root of the head's dimension.
    """
    return tokens if norm is None else F.normalize(tokens, dim=-1) * norm


class ImageEncoder(nn.Module):
    """Two linear projections: of K regions, and of the whole image."""

    def __init__(self, region_dim: int, global_dim: int, embed_dim: int, *, region_norm: float | None) -> None:
        super().__init__()
        self.regions = nn.Linear(region_dim, embed_dim)
        self.globals = nn.Linear(global_dim, embed_dim)
        self.region_norm = region_norm

    def forward(self, regions: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, region_dim), (N, global_dim) -> (N, K, D), (N, D)."""
        return scale_tokens(self.regions(regions), self.region_norm), self.globals(globals_)
