"""Images as the bottom-up-attention detector wants them: B G R, the mean subtracted, short side 600, long at most 1000.

Ports agree on that and differ in how they resize: `opencv` subtracts the mean, then interpolates with the exact factor
although the size is rounded (Caffe's extraction code); `pillow` filters the 8-bit image with antialiasing and rounds
to 8 bits again (detectron2); `torch` interpolates between the nearest pixels with the factor of the rounded sizes
(Hugging Face). The two latter subtract the mean afterwards. Hugging Face's example hands R G B to the network where an
image comes from a file and B G R where it comes from an address; the weights want B G R, so that is what they get here.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_BGR = (102.9801, 115.9465, 122.7717)
SMALLEST_SIDE = 16  # of a resized image: one cell of the map


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

    A side that would come out below `SMALLEST_SIDE` (a strip of 1 x 10,000 pixels) is stretched to it, which the ports
    do not do: they fail there.
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
    """Resize images of one shape and subtract the mean.

    Args:
        pixels: (B, H, W, 3) uint8 RGB.
        size: from `resized_size`.

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
