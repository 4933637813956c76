"""Encoded images and texts: what a model computes for each item on its own, before scoring pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class EncodedImages:
    """N encoded images, the result of `encode_images`. Supports len, slicing, indexing by a tensor, and `to`.

    Attributes:
        regions: (N, K, D) projected regions. globals: (N, D) projected whole-image features.
        mask: (N, K) bool, True = a real region, False = padding; None = all are real.
        student: (N, P) unit vectors of the model's student; None = it has none.

    Example:
        >>> import torch
        >>> images = EncodedImages(torch.randn(4, 36, 8), torch.randn(4, 8))     # 4 images of 36 regions, D = 8
        >>> len(images), images[:2].regions.shape
        (4, torch.Size([2, 36, 8]))
        >>> len(EncodedImages.cat([images, images[:1]]))
        5
    """

    regions: Tensor
    globals: Tensor
    mask: Tensor | None = None
    student: Tensor | None = None

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: slice | Tensor) -> EncodedImages:
        return EncodedImages(self.regions[index], self.globals[index], *(
            None if rows is None else rows[index] for rows in (self.mask, self.student)))

    def to(self, *args, **kwargs) -> EncodedImages:
        """Return a copy on another device or in another dtype; arguments as for `Tensor.to`. The mask stays bool."""
        regions = self.regions.to(*args, **kwargs)
        mask = None if self.mask is None else self.mask.to(regions.device)
        student = None if self.student is None else self.student.to(*args, **kwargs)
        return EncodedImages(regions, self.globals.to(*args, **kwargs), mask, student)

    @staticmethod
    def cat(parts: list[EncodedImages]) -> EncodedImages:
        """Concatenate blocks of images that have the same number of regions; missing masks become all True."""
        mask = None
        if any(part.mask is not None for part in parts):
            all_real = [torch.ones(p.regions.shape[:2], dtype=torch.bool, device=p.regions.device) for p in parts]
            mask = torch.cat([real if p.mask is None else p.mask for p, real in zip(parts, all_real, strict=True)])
        return EncodedImages(torch.cat([p.regions for p in parts]), torch.cat([p.globals for p in parts]), mask,
                             cat_students(parts))


@dataclass
class EncodedTexts:
    """N encoded texts, the result of `encode_texts`. Supports len, slicing, indexing by a tensor, and `to`.

    Attributes:
        words: (N, L, D) projected words. mask: (N, L) bool, True = a real word, False = padding.
        student: (N, P) unit vectors of the model's student; None = it has none.

    Example:
        >>> import torch
        >>> mask = torch.arange(6) < torch.tensor([[6], [3]])          # the second text has 3 words and 3 padded places
        >>> texts = EncodedTexts(torch.randn(2, 6, 8), mask)
        >>> len(texts), texts[1:].mask.tolist()
        (2, [[True, True, True, False, False, False]])
    """

    words: Tensor
    mask: Tensor
    student: Tensor | None = None

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: slice | Tensor) -> EncodedTexts:
        return EncodedTexts(self.words[index], self.mask[index], None if self.student is None else self.student[index])

    def to(self, *args, **kwargs) -> EncodedTexts:
        """Return a copy on another device or in another dtype; arguments as for `Tensor.to`. The mask stays bool."""
        words = self.words.to(*args, **kwargs)
        student = None if self.student is None else self.student.to(*args, **kwargs)
        return EncodedTexts(words, self.mask.to(words.device), student)


def cat_students(parts: Sequence[EncodedImages] | Sequence[EncodedTexts]) -> Tensor | None:
    """Concatenate the student's vectors of blocks of items; None if the model has no student."""
    vectors = [part.student for part in parts if part.student is not None]
    return torch.cat(vectors) if vectors else None
