"""The batches that a training step gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each image."""

    pixels: Tensor  # (2, B, 3, S, S) uint8
    items: Tensor  # (B,) int64 indices of the training images
    ids: Sequence[str]  # their ids


@dataclass(frozen=True)
class IdentityBatch:
    """P identities of K images each; the images of an identity are consecutive."""

    pixels: Tensor  # (P * K, 3, S, S) uint8
    items: Tensor  # (P,) int64, the training image of each identity
    scales: Tensor  # (P, K) float64 content scales
    kinds: Tensor  # (P, K) int64 of `ImageKind`
