"""Any Faster R-CNN of detectron2's model zoo: regions from its box head, with boxes, scores and classes.

detectron2 is on no package registry and is imported only when a backend is made. It supplies the network and reads the
checkpoints. This module chooses the boxes that become regions: detectron2's own inference drops all boxes below a
score, so it cannot give a fixed number of regions.

Sources: Y. Wu et al., Detectron2, https://github.com/facebookresearch/detectron2 (2019);
S. Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NeurIPS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from ascl.core.errors import DataError
from ascl.features.detectors import detectron2_network
from ascl.features.detectors.selection import first_survivors, padded_rows
from ascl.images.backbones import Precision, autocast

FIRST_CANDIDATES = 32  # for NMS, per requested region


@dataclass(frozen=True)
class ShortestEdgePixels:
    """Scaling of an image to a short side of `min_size` pixels, or to a long side of `max_size` if that is smaller.

    It has the rule and the rounding of detectron2's `ResizeShortestEdge`; `min_size` 0 leaves the image as it is.
    """

    min_size: int
    max_size: int

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the scaled image, in pixels, each at least 1."""
        if not self.min_size:
            return width, height
        scale = float(self.min_size) / min(width, height)
        # The short side is set, not multiplied: the product may round to another whole number of pixels.
        sides = [float(self.min_size) if side == min(width, height) else scale * side for side in (width, height)]
        if max(sides) > self.max_size:
            scale = float(self.max_size) / max(sides)
            sides = [side * scale for side in sides]
        # A strip of 1 x 5000 pixels would have no width left.
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the scaled RGB image as (h, w, 3) uint8, bilinear with antialiasing."""
        return np.asarray(image.resize(self.scaled(*image.size), Image.Resampling.BILINEAR))


class Detectron2Backend:
    """A `Backend`: the best boxes of a detectron2 Faster R-CNN, each with its feature, score and class.

    A region's feature is the box head's output for its proposal, from which class and box are predicted. For a C4
    network that is the mean over the map of the last stage (2048-d for a ResNet-50), for an FPN or DC5 network the
    output of the last fully connected layer (1024-d). A proposal that scores well as two classes gives two regions with
    the same feature. `dim` is the length of the feature, `model` the detectron2 network on the device.
    """

    def __init__(
        self, config: str, weights: str = "default", *, options: Sequence[str] = (), max_regions: int = 36,
        min_size: int | None = None, max_size: int | None = None, nms_threshold: float | None = None,
        score_threshold: float = 0.0, precision: Precision = "float32", device: str = "cpu",
    ) -> None:
        """Build the network and load its weights.

        Args:
            config: a name in the model zoo (`COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml`) or the path of a yaml
                of that kind. Mask and keypoint R-CNNs count as Faster R-CNNs: their other heads are not used.
            weights: `default` (the zoo's checkpoint, which detectron2 downloads to its cache on first use),
                `random:SEED` (see `settle_batch_norm`), or the path of a checkpoint of exactly this network. No
                code in it is run.
            options: further settings in detectron2's form, key and value: ("MODEL.ROI_HEADS.NUM_CLASSES", "20").
            max_regions: K, regions per image, >= 1. Boxes fill them in the order of their scores, however low.
            min_size: of the short side in pixels, 0 = images as they are; None = the config's `MIN_SIZE_TEST`.
            max_size: limit of the long side in pixels; None = the config's `MAX_SIZE_TEST`.
            nms_threshold: IoU in [0, 1] above which the worse of two boxes of one class is dropped; None = the
                config's.
            score_threshold: in [0, 1]; boxes that score less are dropped, except an image's best one. 0.0 keeps all:
                the config's own threshold, which is meant for display, is not applied.
            precision: of the convolutions and the box head (autocast). Pooling, scores and boxes stay float32.
            device: a torch device.

        Raises:
            DataError: a number is out of range; detectron2 is not installed; config, options or weights do not fit
                (every wrong key is listed).
        """
        for name, value, least, most, remedy in (
            ("max_regions", max_regions, 1, math.inf, "give at least 1"),
            ("min_size", min_size, 0, math.inf, "give pixels, or 0 for images as they are"),
            ("max_size", max_size, 1, math.inf, "give at least 1 pixel"),
            ("nms_threshold", nms_threshold, 0, 1, "give an IoU between 0 and 1"),
            ("score_threshold", score_threshold, 0, 1, "give a score between 0 and 1"),
        ):
            if value is not None and not least <= value <= most:
                raise DataError(f"{name} {value}: {remedy}")
        detectron2_network.import_detectron2()
        cfg = detectron2_network.read_config(config, options)
        detectron2_network.refuse_other_detectors(cfg, config)
        min_size = cfg.INPUT.MIN_SIZE_TEST if min_size is None else min_size
        max_size = cfg.INPUT.MAX_SIZE_TEST if max_size is None else max_size
        self.prepare = ShortestEdgePixels(min_size, max_size)
        self.max_regions, self.score_threshold = max_regions, score_threshold
        self.precision: Precision = precision
        self.nms_threshold = float(cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST if nms_threshold is None else nms_threshold)
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.device = torch.device(device)
        network, origin = detectron2_network.load_network(cfg, config, weights)
        self.model = network.to(self.device)
        self.dim = self.model.roi_heads.box_predictor.cls_score.in_features
        self.names = detectron2_network.class_names(cfg)
        self.settings = {
            "backend": "detectron2", "config": Path(config).name if Path(config).is_file() else config,
            "config_sha256": detectron2_network.digest_of_config(cfg), "options": list(options), **origin,
            "min_size": min_size, "max_size": max_size, "max_regions": max_regions,
            "nms_threshold": self.nms_threshold, "score_threshold": score_threshold, "precision": precision,
        }

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the regions of a batch, K = max_regions; raise DataError if an image has no box of finite numbers."""
        self.model.eval()  # at every call: batch norm in training mode would drift silently with every batch
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            batch = batch.flip(1) if self.bgr else batch
            images = self.model.preprocess_image([{"image": image.float()} for image in batch])
            with autocast(self.device, self.precision):
                maps = self.model.backbone(images.tensor)
                proposals, _ = self.model.proposal_generator(images, maps, None)
            # Image by image: the proposals of one image fill a GPU, and a C4 network needs about a gigabyte per image.
            rows = [
                self.regions_of({name: value[i : i + 1] for name, value in maps.items()}, proposals[i], sizes[i])
                for i in range(len(pixels))
            ]
        return padded_rows(rows, self.max_regions)

    def regions_of(self, maps: dict[str, Tensor], proposals: Any, size: np.ndarray) -> dict[str, Tensor]:
        """Return one image's regions from its maps (1, C, h, w) by level, its proposals and its original (2,) size."""
        found = None
        if len(proposals):
            features = self.box_features(maps, proposals)  # (N, R)
            predictor = self.model.roi_heads.box_predictor
            predictions = predictor(features)
            (boxes,) = predictor.predict_boxes(predictions, [proposals])  # (N, C * 4), or (N, 4) for all classes
            (probabilities,) = predictor.predict_probs(predictions, [proposals])  # (N, C + 1), background last
            found = best_boxes(
                boxes.unflatten(1, (-1, 4)).expand(-1, probabilities.shape[1] - 1, -1), probabilities[:, :-1],
                proposals.image_size, size, max_regions=self.max_regions, nms_threshold=self.nms_threshold,
                score_threshold=self.score_threshold,
            )
        if found is None or not len(found.scores):
            height, width = proposals.image_size
            image = f"an image of {size[0]}x{size[1]} pixels, scaled to {width}x{height}"
            remedy = "check the weights, enlarge min_size, or use precision float32"
            raise DataError(f"detectron2 finds no box of finite numbers in {image}; {remedy}")
        regions = features[found.proposals]
        return {"regions": regions, "boxes": found.boxes, "scores": found.scores, "class_ids": found.classes}

    def box_features(self, maps: dict[str, Tensor], proposals: Any) -> Tensor:
        """Return (N, R) float32, the box head's output for the N proposals of one image."""
        heads = self.model.roi_heads
        c4 = hasattr(heads, "res5")
        # In float32: detectron2 rounds boxes to the precision of the maps, in bfloat16 by up to 8 pixels.
        levels = [maps[name].float() for name in heads.in_features]
        pooled = (heads.pooler if c4 else heads.box_pooler)(levels, [proposals.proposal_boxes])
        with autocast(self.device, self.precision):
            output = heads.res5(pooled) if c4 else heads.box_head(pooled)
        return output.float().mean(dim=(2, 3)) if c4 else output.float().flatten(1)


class FoundBoxes(NamedTuple):
    """Boxes of one image, by descending score."""

    boxes: Tensor  # (M, 4) x1 y1 x2 y2 in pixels of the original
    scores: Tensor  # (M,) in [0, 1]
    classes: Tensor  # (M,) int64
    proposals: Tensor  # (M,) int64: the proposal that each box was predicted from


def best_boxes(
    boxes: Tensor, scores: Tensor, image_size: tuple[int, int], original: np.ndarray, *, max_regions: int,
    nms_threshold: float, score_threshold: float, first: int = FIRST_CANDIDATES,
) -> FoundBoxes:
    """Return the best boxes of one image after non-maximum suppression within each class.

    Args:
        boxes: (N, C, 4) x1 y1 x2 y2 in pixels of the scaled image: N proposals as each of C classes.
        scores: (N, C) in [0, 1].
        image_size, original: (height, width) of the scaled image, (2,) width and height of the original, in pixels.
        max_regions, nms_threshold, score_threshold: see `Detectron2Backend`.
        first: boxes that NMS looks at first, per requested region.

    Returns at least one box, unless none has finite numbers and a positive area.
    """
    finite = (boxes.isfinite().all(dim=2) & scores.isfinite()).flatten()
    inner, outer = np.tile(image_size[::-1], 2), np.tile(original, 2)  # width, height, width, height
    boxes = clip_boxes_to_image(boxes, image_size).flatten(0, 1)  # (N * C, 4)
    scaled = torch.minimum(boxes * boxes.new_tensor(outer / inner), boxes.new_tensor(outer))
    usable = finite & (scaled[:, 2:] > scaled[:, :2]).all(dim=1)
    flat = scores.flatten()
    order = flat.masked_fill(~usable, -1.0).argsort(descending=True, stable=True)
    above = int((usable & (flat >= score_threshold)).sum())
    order = order[: max(above, min(1, int(usable.sum())))]  # (M,) indices of usable boxes, best first
    classes, candidates = scores.shape[1], (boxes[order].double(), flat[order].double())
    best = first_survivors(*candidates, order % classes, nms_threshold, max_regions, first=first * max_regions)
    kept = order[best]
    return FoundBoxes(scaled[kept], flat[kept], kept % classes, kept // classes)
