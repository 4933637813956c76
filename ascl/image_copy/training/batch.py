"""What the workers hand to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each image.

    Attributes:
        pixels: (2, B, 3, S, S) uint8. items: (B,) int64 rows of the training images. ids: their B ids.
    """

    pixels: Tensor
    items: Tensor
    ids: Sequence[str]


@dataclass(frozen=True)
class IdentityBatch:
    """P identities of K images, the images of one after the other.

    Attributes:
        pixels: (P * K, 3, S, S) uint8. items: (P,) int64, the training image of each identity.
        scales: (P, K) float64 content scales. kinds: (P, K) int64 of `ImageKind`.
    """

    pixels: Tensor
    items: Tensor
    scales: Tensor
    kinds: Tensor
