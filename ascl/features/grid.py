"""Region features without a detector: a convolutional map pooled to a grid of equal cells.

Source: H. Jiang et al., In Defense of Grid Features for Visual Question Answering, CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch.nn.functional as F

from ascl.core.errors import DataError
from ascl.images.backbones import Backbone, Normalize, Precision


class GridBackend:
    """A `Backend`: grid * grid regions an image, row by row from the top left, with the boxes that they cover."""

    names: dict[str, list[str]] = {}

    def __init__(
        self,
        backbone: str = "resnet152",
        weights: str = "default",
        layer: str | None = None,
        *,
        grid: int = 6,
        input_size: int = 224,
        resize: Literal["squash", "crop"] = "squash",
        normalize: Normalize = "imagenet",
        same_padding: bool = False,
        precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        """Load the backbone.

        Args:
            backbone: name of any torchvision classifier.
            weights: `default` (torchvision's own, downloaded at the first use), `random:SEED`, or the path of a state
                dict.
            layer: torchvision's name of a layer, or of a part of the model; None = the last spatial map.
            grid: cells on a side; 6 gives 36 regions.
            input_size: side in pixels of the square that goes in.
            resize: `squash` scales the whole image to the square; `crop` scales its short side to 256/224 of the input
                size and keeps the center.
            normalize: what the weights were trained with: `imagenet` mean and std, `half` = [-1, 1], `none` = [0, 1].
            same_padding: pad stride-2 convolutions as TensorFlow does, for weights from there.
            precision: of the network (autocast); the features are float32.
            device: a torch device.

        Raises:
            DataError: see `Backbone`; a layer without a map, or with too small a one.
        """
        self.backbone = Backbone(
            backbone, weights, layer, input_size=input_size, resize=resize, normalize=normalize,
            same_padding=same_padding, precision=precision, device=device,
        )
        self.grid = grid
        self.prepare = self.backbone.prepare
        self.settings = {"backend": "grid", **self.backbone.settings, "grid": grid}
        if len(self.backbone.shape) != 3:
            raise DataError(f"layer {self.backbone.layer} of {backbone} gives a vector, no map; name an earlier layer")
        self.dim, *self.map_size = self.backbone.shape
        if min(self.map_size) < grid:
            raise DataError(
                f"layer {self.backbone.layer} of {backbone} gives a {self.map_size[0]}x{self.map_size[1]} map of a "
                f"{input_size}x{input_size} image: too small for {grid}x{grid} regions; enlarge the input size, "
                "name an earlier layer or take a smaller grid"
            )

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `regions`, each the mean over its cell of the map, and `boxes`; see `Backend.extract`.

        Where the grid does not divide the map (7x7 to 6x6) cells and boxes overlap: a box covers exactly the places
        that were averaged.
        """
        maps = F.adaptive_avg_pool2d(self.backbone(pixels), self.grid)  # (B, C, grid, grid)
        regions = maps.flatten(2).transpose(1, 2).float().cpu().numpy()
        cells = grid_boxes(self.grid, *self.map_size)
        return {"regions": regions, "boxes": boxes_in_view(cells, self.prepare.view, sizes)}


def grid_boxes(grid: int, height: int, width: int) -> np.ndarray:
    """Return (grid * grid, 4) x1 y1 x2 y2 in [0, 1]: the part of a (height, width) map that each cell averages."""
    index = np.arange(grid)
    top, bottom = index * height // grid / height, -(-(index + 1) * height // grid) / height
    left, right = index * width // grid / width, -(-(index + 1) * width // grid) / width
    y1, x1 = np.meshgrid(top, left, indexing="ij")
    y2, x2 = np.meshgrid(bottom, right, indexing="ij")
    return np.stack([x1, y1, x2, y2], axis=-1).reshape(-1, 4)


def boxes_in_view(
    cells: np.ndarray, view: Callable[[int, int], tuple[float, float, float, float]], sizes: np.ndarray
) -> np.ndarray:
    """Return (B, K, 4) float32 boxes in pixels of the originals.

    Args:
        cells: (K, 4) x1 y1 x2 y2, in [0, 1] of the part that is shown.
        view: width and height of an original -> that part of it, x1 y1 x2 y2 in its pixels.
        sizes: (B, 2) width and height of the originals.
    """
    views = np.array([view(int(width), int(height)) for width, height in sizes])  # (B, 4)
    corners, extents = views[:, :2], views[:, 2:] - views[:, :2]
    boxes = np.tile(corners, 2)[:, None] + cells[None] * np.tile(extents, 2)[:, None]
    return np.clip(boxes, 0, np.tile(sizes, 2)[:, None]).astype(np.float32)  # a sum may be over by the last digit
