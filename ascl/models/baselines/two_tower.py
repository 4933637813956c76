"""The simplest baseline, which any fusion has to beat: one vector per image, one per text, and their cosine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.models.ascl import masked_mean
from ascl.models.base import TextEncoder
from ascl.models.baselines.one_vector import OneVector


class TwoTower(OneVector):
    """A two-layer projection of mean region and whole-image feature, and another one of the mean word.

    It has the inputs and the interface of `AsCL`, but image and text interact only in the cosine.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 standardize: bool = False) -> None:
        super().__init__(region_dim, global_dim, text, standardize=standardize)
        self.image = self.projection(region_dim + global_dim, embed_dim)
        self.words = self.projection(text.dim, embed_dim)

    @staticmethod
    def projection(input_dim: int, embed_dim: int) -> nn.Module:
        """Return the module that maps one side's mean to the joint space."""
        return nn.Sequential(nn.Linear(input_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """Project mean region and whole-image feature -> (N, D)."""
        return self.image(torch.cat([masked_mean(regions, mask), globals_], dim=-1))

    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Project the mean word -> (N, D)."""
        return self.words(masked_mean(hidden, mask))
