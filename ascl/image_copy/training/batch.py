"""What the workers hand to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each image."""

    pixels: Tensor  # (2, B, 3, S, S) uint8
    items: Tensor  # (B,) int64 rows of the training images
    ids: Sequence[str]  # of these


@dataclass(frozen=True)
class IdentityBatch:
    """P identities of K images, the images of one after the other."""

    pixels: Tensor  # (P * K, 3, S, S) uint8
    items: Tensor  # (P,) int64, the training image of each identity
    scales: Tensor  # (P, K) float64 content scales
    kinds: Tensor  # (P, K) int64 of `ImageKind`
