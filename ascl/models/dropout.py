"""Dropout of what a model takes in: features, whole regions and whole words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InputDropout(nn.Module):
    """In training, leave out parts of the image features and of the text encoder's words; nothing in evaluation.

    It draws from torch's global generator, as `nn.Dropout` does.
    """

    def __init__(self, features: float = 0.0, regions: float = 0.0, words: float = 0.0) -> None:
        """
        Args:
            features: probability that an element of an image feature or word vector is set to zero; the others are
                scaled up (Srivastava et al. 2014).
            regions, words: probability that a token is left out; at least one of each item is kept.

        Raises:
            ValueError: a probability is not in [0, 1).
        """
        super().__init__()
        for name, value in (("dropout", features), ("region_dropout", regions), ("word_dropout", words)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 0 and below 1")
        self.features, self.regions, self.words = features, regions, words

    def of_features(self, features: Tensor) -> Tensor:
        """Drop elements of (..., dim)."""
        return F.dropout(features, self.features, self.training)

    def of_regions(self, regions: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask (N, K) of the regions (N, K, dim) that remain; None = all."""
        if not self.training or not self.regions:
            return mask
        return kept(mask if mask is not None else regions.new_ones(regions.shape[:2], dtype=torch.bool), self.regions)

    def of_words(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Drop elements of the words (N, L, dim), and words from their mask (N, L)."""
        return self.of_features(hidden), kept(mask, self.words) if self.training and self.words else mask


def kept(mask: Tensor, rate: float) -> Tensor:
    """Leave out real tokens of mask (N, S) bool with probability `rate`, but never all of an item."""
    draws = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1)
    return mask & ((draws >= rate) | (draws == draws.amax(dim=1, keepdim=True)))
