"""Region features without a detector: a convolutional map pooled to a grid of equal cells.

Source: H. Jiang et al., In Defense of Grid Features for Visual Question Answering, CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ascl.core.errors import DataError
from ascl.images.backbones import Backbone, Normalize, Precision


class GridBackend:
    """A `Backend` that makes grid * grid regions per image, row by row from the top left, with their boxes."""

    names: dict[str, list[str]] = {}

    def __init__(
        self, backbone: str = "resnet152", weights: str = "default", layer: str | None = None, *, grid: int = 6,
        input_size: int = 224, resize: Literal["squash", "crop"] = "squash", normalize: Normalize = "imagenet",
        same_padding: bool = False, precision: Precision = "float32", device: str = "cpu",
    ) -> None:
        """Load the backbone.

        Args:
            backbone: name of any torchvision classifier.
            weights: `default` (torchvision's, downloaded on first use), `random:SEED`, or the path of a state dict.
            layer: torchvision's name of a layer or submodule; None = the last spatial map.
            grid: cells on a side; 6 gives 36 regions.
            input_size: side of the square network input, in pixels.
            resize: `squash` scales the whole image to the square; `crop` scales its short side to 256/224 of the input
                size and keeps the center.
            normalize: what the weights were trained with: `imagenet` mean and std, `half` = [-1, 1], `none` = [0, 1].
            same_padding: pad stride-2 convolutions as TensorFlow does, for weights ported from it.
            precision: of the network (autocast); the features are float32. device: a torch device.

        Raises:
            DataError: see `Backbone`; a layer that gives no map, or a map smaller than the grid.
        """
        self.backbone = Backbone(
            backbone, weights, layer, input_size=input_size, resize=resize, normalize=normalize,
            same_padding=same_padding, precision=precision, device=device,
        )
        self.grid = grid
        self.prepare = self.backbone.prepare
        self.settings = {"backend": "grid", **self.backbone.settings, "grid": grid}
        if len(self.backbone.shape) != 3:
            given = f"layer {self.backbone.layer} of {backbone} gives a vector, not a map"
            raise DataError(f"{given}; choose an earlier layer")
        self.dim, *self.map_size = self.backbone.shape
        if min(self.map_size) < grid:
            raise DataError(
                f"layer {self.backbone.layer} of {backbone} gives a {self.map_size[0]}x{self.map_size[1]} map of a "
                f"{input_size}x{input_size} image: too small for {grid}x{grid} regions; choose a larger input size, "
                "an earlier layer or a smaller grid"
            )

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `regions`, each the mean over its cell of the map, and `boxes`; see `Backend.extract`.

        A box covers exactly what its cell averages. Cells overlap if the grid does not divide the map (7x7 to 6x6).
        """
        return grid_regions(self.backbone(pixels), self.grid, self.prepare.view, sizes)


def grid_boxes(grid: int, height: int, width: int) -> np.ndarray:
    """Return (grid * grid, 4) x1 y1 x2 y2 in [0, 1]: the part of a (height, width) map that each cell averages."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    x1, y1 = column * width // grid / width, row * height // grid / height
    x2, y2 = -(-(column + 1) * width // grid) / width, -(-(row + 1) * height // grid) / height
    return np.stack([x1, y1, x2, y2], axis=-1)


def grid_regions(
    maps: Tensor, grid: int, view: Callable[[int, int], tuple[float, float, float, float]], sizes: np.ndarray,
    seen: tuple[float, float] = (1.0, 1.0),
) -> dict[str, np.ndarray]:
    """Return `regions` (B, K, C) float32, the means over K = grid * grid cells, and their `boxes` in the originals.

    Args:
        maps: (B, C, h, w).
        view: maps width and height of an original to the part that the network gets, x1 y1 x2 y2 in its pixels.
        sizes: (B, 2) width and height of the originals.
        seen: shares of that part's height and width that the maps cover.
    """
    regions = F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2).cpu().numpy()
    cells = grid_boxes(grid, maps.shape[2], maps.shape[3]) * np.tile(seen[::-1], 2)  # (K, 4)
    views = np.array([view(int(width), int(height)) for width, height in sizes])  # (B, 4)
    corners, extents = views[:, :2], views[:, 2:] - views[:, :2]
    boxes = np.tile(corners, 2)[:, None] + cells[None] * np.tile(extents, 2)[:, None]
    boxes = np.clip(boxes, 0, np.tile(sizes, 2)[:, None]).astype(np.float32)  # rounding may exceed the edge
    return {"regions": regions, "boxes": boxes}
