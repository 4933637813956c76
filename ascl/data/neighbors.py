"""Which images of a split look alike, for batches of neighbors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ascl.data.stores.base import FeatureStore

_BLOCK = 1024       # images at a time
_ROUNDING = 1e-6    # relative deviation up to which a dimension counts as constant


def nearest(vectors: Tensor, count: int) -> np.ndarray:
    """Return the `count` nearest of N vectors to each of them.

    Each dimension is standardized over the vectors, because what all of them share says nothing of who is like whom;
    then cosines count. Takes N * N * G multiplications, and memory for 1,024 rows of scores.

    Args:
        vectors: (N, G), on any device. count: from 1 to N.

    Returns:
        (N, count) int32, the nearest first; an image is a neighbor of itself.

    Example:
        >>> nearest(torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.2], [5.0, 0.3]]), 2).tolist()
        [[0, 2], [1, 3], [2, 0], [3, 1]]
    """
    mean, deviation = vectors.double().mean(0), vectors.double().std(0)
    varies = deviation > _ROUNDING * mean.abs()         # else what differs is rounding
    scaled = functional.normalize(((vectors - mean) / deviation)[:, varies].to(vectors.dtype), dim=1)
    return torch.cat([(block @ scaled.T).topk(count).indices.int().cpu() for block in scaled.split(_BLOCK)]).numpy()


def nearest_images(store: FeatureStore, image_ids: Sequence[str], count: int, *,
                   device: torch.device | str = "cpu") -> np.ndarray:
    """Return the `count` images that are nearest to each by their whole-image features, (N, count) int32."""
    rows, read = store.rows(image_ids), []
    for part in np.array_split(rows, range(_BLOCK, len(rows), _BLOCK)):
        vectors = store.read(part).globals
        assert vectors is not None                                          # checked by `build_split`
        read.append(torch.from_numpy(vectors))
    return nearest(torch.cat(read).to(device), min(count, len(rows)))
