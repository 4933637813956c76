"""Region features of torchvision's COCO-trained Faster R-CNN (`fasterrcnn_resnet50_fpn_v2`): 1024-d, 91 classes.

torchvision's forward returns boxes, scores and labels but not the features behind them, so this module calls the parts
of the model one by one.

Sources: S. Ren et al., Faster R-CNN, NeurIPS 2015; Y. Li et al., Benchmarking Detection Transfer Learning with Vision
Transformers, 2021 (the recipe of version 2); torchvision's `models/detection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from ascl.core.errors import DataError
from ascl.features.detectors.selection import first_survivors, in_originals, padded_rows
from ascl.images.backbones import Precision, autocast, load_torchvision

MODEL = "fasterrcnn_resnet50_fpn_v2"
SMALLEST_BOX = 1e-2  # pixels on a side, as in torchvision's selection
FIRST_CANDIDATES = 2048


@dataclass(frozen=True)
class DetectorPixels:
    """Reduction of an image to the size that the network looks at; cheap to send to a worker process.

    The network's own transform scales every image so that its short side is `short_side`, or less if the long side
    would exceed `long_side`. It does not antialias, which is right for COCO's photographs of 640 pixels, because it
    enlarges all of them. Larger images are reduced here instead, with antialiasing, to the same size. The device
    enlarges smaller ones.
    """

    short_side: int
    long_side: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the RGB image as (h, w, 3) uint8, reduced if it is larger."""
        width, height = image.size
        scale = min(self.short_side / min(width, height), self.long_side / max(width, height))
        if scale < 1:  # a 10000x1 strip keeps its one row
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image)


class Detections(NamedTuple):
    """The detections of one image, best first."""

    boxes: Tensor  # (N, 4) in pixels of the network's input
    scores: Tensor  # (N,)
    labels: Tensor  # (N,)


class TorchvisionDetectorBackend:
    """A `Backend`: up to `max_regions` detections per image, best first, with the features of their boxes.

    The features are pooled at the detected boxes (after class-wise regression), which are the boxes stored, and not at
    the proposals. So a feature and its box describe the same pixels, and two classes found from one proposal have
    different features. Users of detectron2 do the same; bottom-up attention stores the proposals.
    """

    def __init__(
        self, weights: str = "default", *, max_regions: int = 36, score_threshold: float = 0.0,
        nms_threshold: float = 0.5, short_side: int = 800, long_side: int = 1333, precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        """Load the network.

        Args:
            weights: see `load_torchvision`; `default` was trained on COCO.
            max_regions: detections to keep; fewer only if there are no more.
            score_threshold: detections with this probability or less are dropped, except the best one. 0 keeps the best
                `max_regions` at any probability; torchvision itself drops 0.05 and less.
            nms_threshold: intersection over union above which the weaker of two boxes of one class is dropped.
            short_side: pixels to which the short side is scaled, unless the long side would exceed `long_side`.
            precision: of the backbone and the box head (autocast). Everything that computes coordinates is float32:
                above 256, a bfloat16 pixel coordinate is off by a pixel or more.
            device: a torch device.

        Raises:
            DataError: numbers are out of range, or the weights cannot be loaded or do not fit.
        """
        if max_regions < 1 or not 1 <= short_side <= long_side:
            given = f"max_regions {max_regions}, short_side {short_side}, long_side {long_side}"
            raise DataError(f"{given}: expected at least 1 each, and short_side at most long_side")
        if not (0 <= score_threshold < 1 and 0 <= nms_threshold <= 1):
            given = f"score_threshold {score_threshold} and nms_threshold {nms_threshold}"
            raise DataError(f"{given}: give numbers between 0 and 1")
        self.model, origin = load_detector(weights)
        self.model.transform.min_size, self.model.transform.max_size = (short_side,), long_side
        fix_pooling_scales(self.model)
        self.device = torch.device(device)
        self.model.to(self.device)
        self.prepare = DetectorPixels(short_side, long_side)
        self.precision: Precision = precision
        self.max_regions, self.score_threshold, self.nms_threshold = max_regions, score_threshold, nms_threshold
        self.dim: int = self.model.roi_heads.box_predictor.cls_score.in_features
        self.names = {"class_names": list(get_model_weights(MODEL).DEFAULT.meta["categories"])}
        self.settings = {
            "backend": "torchvision_detector", "model": MODEL, **origin, "max_regions": max_regions,
            "score_threshold": score_threshold, "nms_threshold": nms_threshold, "short_side": short_side,
            "long_side": long_side, "precision": precision,
        }

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the detections of a batch and their features (1024), K = max_regions; see `Backend.extract`."""
        self.model.eval()  # at every call: batch norm in training mode would drift silently with every batch
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
            images, _ = self.model.transform(list(batch.permute(0, 3, 1, 2).float() / 255))
            with autocast(self.device, self.precision):
                maps = self.model.backbone(images.tensors)
            maps = {name: values.float() for name, values in maps.items()}
            proposals, _ = self.model.rpn(images, maps)
            logits, deltas = self.model.roi_heads.box_predictor(self._box_features(maps, proposals, images.image_sizes))
            boxes = self.model.roi_heads.box_coder.decode(deltas, proposals)  # (all proposals, classes, 4)
            counts = [len(of_image) for of_image in proposals]
            size = images.image_sizes[0]  # (height, width) of the network's input
            found = [
                select_detections(candidates, scores, size, self.max_regions, self.score_threshold, self.nms_threshold)
                for candidates, scores in zip(boxes.split(counts), logits.softmax(dim=1).split(counts), strict=True)
            ]
            features = self._box_features(maps, [image.boxes for image in found], images.image_sizes)
        vectors = features.split([len(image.boxes) for image in found])
        regions = [
            {"regions": of_image, "boxes": image.boxes, "scores": image.scores, "class_ids": image.labels}
            for image, of_image in zip(found, vectors, strict=True)
        ]
        rows = padded_rows(regions, self.max_regions)
        return rows | {"boxes": in_originals(rows["boxes"], size[1], size[0], sizes)}

    def _box_features(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Return (all boxes of all images, 1024) float32, the box head's output for each."""
        pooled = self.model.roi_heads.box_roi_pool(maps, boxes, sizes)
        with autocast(self.device, self.precision):
            return self.model.roi_heads.box_head(pooled).float()


def select_detections(
    boxes: Tensor, probabilities: Tensor, size: tuple[int, int], max_regions: int, score_threshold: float,
    nms_threshold: float, *, first: int = FIRST_CANDIDATES,
) -> Detections:
    """Select the best detections of one image after suppression within each class, as torchvision does.

    There is always a detection, because attention needs at least one region: the best one if no score exceeds the
    threshold, and the whole image, as background with score 0, if there is no box at all.

    Args:
        boxes, probabilities: (P, C, 4), (P, C) of each proposal for each class; class 0 is the background.
        size: height and width of the network's input; boxes are in its pixels and are clipped to it.
        max_regions, score_threshold, nms_threshold: see `TorchvisionDetectorBackend`. first: see `first_survivors`.
    """
    boxes = clip_boxes_to_image(boxes, size)[:, 1:].reshape(-1, 4)
    scores = probabilities[:, 1:].reshape(-1)
    labels = torch.arange(1, probabilities.shape[1], device=scores.device).repeat(len(probabilities))
    order = scores.argsort(descending=True, stable=True)
    order = order[remove_small_boxes(boxes[order], SMALLEST_BOX)]
    if not len(order):
        return Detections(boxes.new_tensor([[0, 0, *size[::-1]]]), scores.new_zeros(1), labels.new_zeros(1))
    order = order[: max(1, int((scores[order] > score_threshold).sum()))]
    best = first_survivors(boxes[order], scores[order], labels[order], nms_threshold, max_regions, first=first)
    kept = order[best]
    return Detections(boxes[kept], scores[kept], labels[kept])


def load_detector(weights: str) -> tuple[FasterRCNN, dict[str, str]]:
    """Return the detector in evaluation mode, and the provenance of its weights; see `load_torchvision`."""
    return load_torchvision(MODEL, weights, weights_backbone=None)  # else the backbone's would be downloaded first


def fix_pooling_scales(model: FasterRCNN) -> None:
    """Fix the strides of the RoI pooling at 4, 8, 16 and 32 for its maps.

    It keeps those of the first image that it sees. Maps are padded to 32 pixels, so after a strip of one row it would
    read every later image at wrong positions.
    """
    pool = model.roi_heads.box_roi_pool
    maps = {name: torch.zeros(1, 1, side, side) for name, side in zip(pool.featmap_names, (64, 32, 16, 8), strict=True)}
    pool(maps, [torch.zeros(1, 4)], [(256, 256)])
