"""Input of the bottom-up-attention detector: B G R, the mean subtracted, short side 600, long side at most 1000.

The ports agree on that but resize differently:

* `opencv` (Caffe's extraction code) subtracts the mean, then interpolates with the exact factor, although the size is
  rounded.
* `pillow` (detectron2) filters the 8-bit image with antialiasing, rounds to 8 bits again, and subtracts the mean.
* `torch` (Hugging Face) interpolates between the nearest pixels with the factor of the rounded sizes, and subtracts the
  mean.

Hugging Face's example gives the network R G B for an image from a file and B G R for one from a URL. The weights expect
B G R, which is what they get here.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_BGR = (102.9801, 115.9465, 122.7717)
SMALLEST_SIDE = 16  # pixels of a resized image: one cell of the map


class ResizedSize(NamedTuple):
    """Size of a resized image, and the factors by which it was resized (those of the interpolation)."""

    height: int
    width: int
    scale_y: float
    scale_x: float


def resized_size(
    height: int, width: int, short_side: int, long_side: int, resize: Literal["opencv", "pillow", "torch"]
) -> ResizedSize:
    """Return the size of a (height, width) image with its short side at `short_side` or its long one at `long_side`.

    A side that would be below `SMALLEST_SIDE` (a strip of 1 x 10,000 pixels) is stretched to it; the ports fail there.
    """
    scale = short_side / min(height, width)
    if resize == "opencv":
        if round(scale * max(height, width)) > long_side:
            scale = long_side / max(height, width)
        rows, columns = round(height * scale), round(width * scale)
        factors = [scale, scale]
    else:
        scale *= min(1.0, long_side / (scale * max(height, width)))
        rows, columns = math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
        factors = [rows / height, columns / width]
    if rows < SMALLEST_SIDE:
        rows, factors[0] = SMALLEST_SIDE, SMALLEST_SIDE / height
    if columns < SMALLEST_SIDE:
        columns, factors[1] = SMALLEST_SIDE, SMALLEST_SIDE / width
    return ResizedSize(rows, columns, *factors)


def network_input(pixels: Tensor, size: ResizedSize, resize: Literal["opencv", "pillow", "torch"]) -> Tensor:
    """Return images of one shape resized, with the mean subtracted.

    Args:
        pixels: (B, H, W, 3) uint8 RGB.
        size: from `resized_size`.
        resize: the port whose way to follow; see the module.

    Returns:
        (B, 3, height, width) float32 B G R, in about [-123, 153].
    """
    images = pixels.flip(3).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN_BGR, device=pixels.device).view(3, 1, 1)
    if resize == "opencv":
        return torch.ops.aten.upsample_bilinear2d((images - mean).contiguous(), size[:2], False, *size[2:])
    if resize == "torch":
        return F.interpolate(images, size[:2], mode="bilinear") - mean
    # Pillow keeps 8 bits between its two passes, and rounds halves up.
    for shape in ((images.shape[2], size.width), size[:2]):
        images = (F.interpolate(images, shape, mode="bilinear", antialias=True) + 0.5).floor()
    return images - mean
