"""Anchors, box decoding, clipping and overlaps of Faster R-CNN, in the two conventions that its ports use.

Boxes are x1 y1 x2 y2. With `legacy` (Caffe) a box holds both of its end pixels, so its width is x2 - x1 + 1 and the
last pixel of an image of width w is w - 1; without it (detectron2) boxes are continuous: width x2 - x1, edge at w.

Source: S. Ren et al., Faster R-CNN, NeurIPS 2015; its Caffe code for the legacy convention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
LOG_SCALE_LIMIT = math.log(1000 / 16)  # for a decoded side: keeps exp() from overflowing, as in both ports


def caffe_anchors(scales: Sequence[float], stride: int = 16) -> Tensor:
    """Return (3 * len(scales), 4) float32 anchors of the cell at (0, 0), legacy boxes; ratio outer, scale inner.

    The cell is the box (0, 0, stride - 1, stride - 1). Its sides at each ratio are rounded to whole pixels (half to
    even) before they are scaled, so areas differ a little between ratios; the weights were trained that way.
    """
    center = (stride - 1) / 2
    anchors = []
    for ratio, scale in itertools.product(ASPECT_RATIOS, scales):
        width = round(math.sqrt(stride * stride / ratio))
        x, y = (width * scale - 1) / 2, (round(width * ratio) * scale - 1) / 2
        anchors.append((center - x, center - y, center + x, center + y))
    return torch.tensor(anchors)


def centered_anchors(scales: Sequence[float], stride: int = 16) -> Tensor:
    """Return (3 * len(scales), 4) float32 continuous anchors around (0, 0), equal areas; scale outer, ratio inner."""
    anchors = []
    for scale, ratio in itertools.product(scales, ASPECT_RATIOS):
        width = scale * stride / math.sqrt(ratio)
        anchors.append((-width / 2, -width * ratio / 2, width / 2, width * ratio / 2))
    return torch.tensor(anchors)


def anchors_of_map(cell_anchors: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return the (height * width * A, 4) anchors of a map, given (A, 4) of one cell; rows outer, anchors inner."""
    y, x = (torch.arange(count, device=cell_anchors.device) * stride for count in (height, width))
    shifts = torch.cartesian_prod(y, x)[:, [1, 0, 1, 0]]  # (height * width, 4)
    return (shifts[:, None] + cell_anchors).reshape(-1, 4)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: tuple[float, float, float, float], legacy: bool) -> Tensor:
    """Return boxes moved and scaled by a regression, not clipped.

    Args:
        boxes: (..., 4).
        deltas: (..., 4), of a shape that broadcasts with `boxes`: shift of the center in widths and heights, logarithm
            of the factors of width and height, each times its weight.
        weights: factors of the deltas in training.
        legacy: see the module. The legacy width counts both end pixels, yet the decoded corner is center + width / 2
            without subtracting 1: Caffe's code does so, and the weights expect it.
    """
    widths = boxes[..., 2] - boxes[..., 0] + legacy
    heights = boxes[..., 3] - boxes[..., 1] + legacy
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x = dx * widths + boxes[..., 0] + 0.5 * widths
    y = dy * heights + boxes[..., 1] + 0.5 * heights
    half_width = 0.5 * widths * dw.clamp(max=LOG_SCALE_LIMIT).exp()
    half_height = 0.5 * heights * dh.clamp(max=LOG_SCALE_LIMIT).exp()
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def clip_boxes(boxes: Tensor, height: int, width: int, legacy: bool) -> Tensor:
    """Return (..., 4) boxes cut at the edges of a (height, width) image: its last pixel if legacy, else its border."""
    return torchvision.ops.clip_boxes_to_image(boxes, (height - legacy, width - legacy))


def continuous(boxes: Tensor, legacy: bool) -> Tensor:
    """Return boxes whose continuous overlaps are those of `boxes`: if legacy, one pixel more to the right and below."""
    return boxes + boxes.new_tensor([0, 0, 1, 1]) if legacy else boxes


def overlaps(boxes: Tensor, legacy: bool) -> Tensor:
    """Return the (N, N) intersection over union of (N, 4) boxes, in [0, 1]."""
    boxes = continuous(boxes, legacy)
    return torchvision.ops.box_iou(boxes, boxes)


def nms(boxes: Tensor, scores: Tensor, threshold: float, legacy: bool) -> Tensor:
    """Suppress greedily: a box is dropped if it overlaps a better box that survives by more than `threshold`.

    Returns (K,) int64 indices of the survivors, best first; of equal scores, the first in `boxes` is the better one.
    Caffe's GPU code, which made the published features, compares with > as here; its CPU code and one port with >=.
    """
    return torchvision.ops.nms(continuous(boxes, legacy), scores, threshold)
