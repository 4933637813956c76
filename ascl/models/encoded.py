"""What a model makes of images and of texts, before any of them meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class EncodedImages:
    """N images.

    regions: (N, K, D) projected regions, globals: (N, D) projected whole image,
    mask: (N, K) bool, True = a real region, or None when all are.
    """

    regions: Tensor
    globals: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: slice | Tensor) -> EncodedImages:
        return EncodedImages(self.regions[index], self.globals[index], None if self.mask is None else self.mask[index])

    def to(self, *args, **kwargs) -> EncodedImages:
        regions = self.regions.to(*args, **kwargs)
        mask = None if self.mask is None else self.mask.to(regions.device)
        return EncodedImages(regions, self.globals.to(*args, **kwargs), mask)

    @staticmethod
    def cat(parts: list[EncodedImages]) -> EncodedImages:
        """Join blocks of images with the same number of regions."""
        mask = None
        if any(part.mask is not None for part in parts):
            all_real = [torch.ones(p.regions.shape[:2], dtype=torch.bool, device=p.regions.device) for p in parts]
            mask = torch.cat([real if p.mask is None else p.mask for p, real in zip(parts, all_real, strict=True)])
        return EncodedImages(torch.cat([p.regions for p in parts]), torch.cat([p.globals for p in parts]), mask)


@dataclass
class EncodedTexts:
    """N texts.

    words: (N, L, D) projected words, mask: (N, L) bool, True = a real word.
    """

    words: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: slice | Tensor) -> EncodedTexts:
        return EncodedTexts(self.words[index], self.mask[index])

    def to(self, *args, **kwargs) -> EncodedTexts:
        words = self.words.to(*args, **kwargs)
        return EncodedTexts(words, self.mask.to(words.device))
