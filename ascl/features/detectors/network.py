"""The bottom-up-attention Faster R-CNN (ResNet-101 C4, Visual Genome) on torch's and torchvision's operators.

Parameters have the names of the PyTorch port that keeps Caffe's arithmetic, so the checkpoint of that port is the
network's own state dict; `weights` reads it and the others. The ports differ in more than names: see `Convention`.

Source: P. Anderson et al., Bottom-Up and Top-Down Attention for Image Captioning and VQA, CVPR 2018; S. Ren et al.,
Faster R-CNN, NeurIPS 2015; K. He et al., Deep Residual Learning, CVPR 2016.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ascl.features.detectors.boxes import anchors_of_map, caffe_anchors, centered_anchors, clip_boxes, decode_boxes, nms
from ascl.images.backbones import Precision, autocast

STRIDE = 16  # pixels of the image for one cell of the map
PROPOSALS_AT_ONCE = 128  # through res5, for any batch size: a few activations of 0.2 GB each in float32


@dataclass(frozen=True)
class DetectorShape:
    """Sizes of the network; the defaults are the published ones."""

    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)  # bottlenecks in res2, res3, res4 and res5
    width: int = 64  # channels of the stem; res2 to res5 give 4, 8, 16 and 32 times as many
    rpn_channels: int = 512  # of the hidden layer of the region proposal network
    anchor_scales: tuple[float, ...] = (4, 8, 16, 32)  # sides of the square anchors, in strides: 64 to 512 pixels
    classes: int = 1600  # without the background
    attributes: int = 400  # without the background; 0 = no attribute head
    class_embedding: int = 256  # width in the attribute head
    attribute_hidden: int = 512  # width in the attribute head
    pool_size: int = 14  # cells on a side of the pooled region
    proposals_before_nms: int = 6000  # most proposals before suppression
    proposals: int = 300  # most proposals after it

    @property
    def region_dim(self) -> int:
        return 32 * self.width


@dataclass(frozen=True)
class Convention:
    """How a port computes, apart from its weights. The layers of the network are the same in all ports."""

    legacy: bool  # boxes hold both end pixels (see `boxes`)
    minimum_side: float  # of a proposal, in pixels of the image before it was resized
    filter_first: bool  # drop small proposals before taking the best `proposals_before_nms`, not after
    box_weights: tuple[float, float, float, float]  # factors of the box regression in training
    background_attribute: bool  # the attributes' softmax counts the background, which is then ignored; else it does not
    resize: Literal["opencv", "pillow", "torch"]  # how the image is resized: see `input`

    def anchors(self, shape: DetectorShape) -> Tensor:
        """Return (A, 4) float32 anchors, for checkpoints without anchors."""
        make = caffe_anchors if self.legacy else centered_anchors
        return make(shape.anchor_scales, STRIDE)


CAFFE = Convention(True, 16, True, (1, 1, 1, 1), True, "opencv")
DETECTRON2 = Convention(False, 0, False, (10, 10, 5, 5), False, "pillow")
HUGGING_FACE = Convention(False, 0, False, (10, 10, 5, 5), False, "torch")


@dataclass(frozen=True)
class Proposals:
    """Everything the network says about the N proposals of one image, float32, best objectness first."""

    boxes: Tensor  # (N, 4) in pixels of the resized image
    features: Tensor  # (N, 32 * width), `pool5_flat`
    class_probabilities: Tensor  # (N, 1 + classes), background first
    box_deltas: Tensor  # (N, 1 + classes, 4), regression for each class
    attribute_ids: Tensor | None  # (N,) int64 from 1 (0 is "no attribute"), None without that head
    attribute_scores: Tensor | None  # (N,) in [0, 1], None without that head


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """Batch norm with constant statistics, in training mode too; uses torch's kernel, which is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class NormalizedConv2d(nn.Conv2d):
    """A convolution without bias, followed by the batch norm `norm`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        self.norm = FrozenBatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the first 1x1 has the stride, as in the original ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = None if inputs == outputs else NormalizedConv2d(inputs, outputs, 1, stride)
        self.conv1 = NormalizedConv2d(inputs, outputs // 4, 1, stride)
        self.conv2 = NormalizedConv2d(outputs // 4, outputs // 4, 3, 1, dilation)
        self.conv3 = NormalizedConv2d(outputs // 4, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return F.relu_(self.conv3(x) + shortcut)


def stage(blocks: int, inputs: int, outputs: int, stride: int, dilation: int = 1) -> nn.Sequential:
    first = Bottleneck(inputs, outputs, stride, dilation)
    return nn.Sequential(first, *(Bottleneck(outputs, outputs, 1, dilation) for _ in range(blocks - 1)))


class Stem(nn.Module):
    """7x7 convolution, then 3x3 max pooling, both of stride 2; the pooling's last window may pass the edge."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = NormalizedConv2d(3, width, 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=0, ceil_mode=True)


def c4(shape: DetectorShape) -> nn.Sequential:
    """Return the layers from an image to a map of stride 16: the stem and res2 to res4."""
    width = shape.width
    return nn.Sequential(OrderedDict(
        stem=Stem(width), res2=stage(shape.blocks[0], width, 4 * width, 1),
        res3=stage(shape.blocks[1], 4 * width, 8 * width, 2), res4=stage(shape.blocks[2], 8 * width, 16 * width, 2),
    ))


class ProposalHead(nn.Module):
    """Objectness and box regression of every anchor; outputs are float32 for maps of any precision."""

    def __init__(self, shape: DetectorShape) -> None:
        super().__init__()
        self.anchors = 3 * len(shape.anchor_scales)
        self.conv = nn.Conv2d(16 * shape.width, shape.rpn_channels, 3, padding=1)
        # All backgrounds, then all objects: a 2-way softmax for each anchor over channels a and anchors + a.
        self.objectness_logits = nn.Conv2d(shape.rpn_channels, 2 * self.anchors, 1)
        self.anchor_deltas = nn.Conv2d(shape.rpn_channels, 4 * self.anchors, 1)

    def forward(self, feature_map: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
        """Return (B, H * W * A) objectness and (B, H * W * A, 4) deltas of (B, C, H, W) maps, anchors innermost."""
        with autocast(feature_map.device, precision):
            hidden = F.relu_(self.conv(feature_map))
        hidden = hidden.float()  # half precision has too few digits to rank thousands of anchors
        background, foreground = self.objectness_logits(hidden).split(self.anchors, dim=1)
        # The order of the softmax, without the ties from its rounding near 0 and 1.
        objectness = (foreground - background).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return objectness, deltas


class BoxPredictor(nn.Module):
    """Classes, boxes and attributes of a region from its feature vector; the background has index 0 in each."""

    def __init__(self, shape: DetectorShape) -> None:
        super().__init__()
        self.cls_score = nn.Linear(shape.region_dim, 1 + shape.classes)
        self.bbox_pred = nn.Linear(shape.region_dim, 4 * (1 + shape.classes))
        if shape.attributes:
            self.cls_embed = nn.Embedding(1 + shape.classes, shape.class_embedding)
            self.attr_linear1 = nn.Linear(shape.region_dim + shape.class_embedding, shape.attribute_hidden)
            self.attr_linear2 = nn.Linear(shape.attribute_hidden, 1 + shape.attributes)

    def attribute_logits(self, features: Tensor, class_logits: Tensor) -> Tensor:
        """Return (N, 1 + attributes) for (N, D) and (N, 1 + classes), given the likeliest class or background."""
        embedded = self.cls_embed(class_logits.argmax(dim=1))
        return self.attr_linear2(F.relu(self.attr_linear1(torch.cat([features, embedded], dim=1))))


class BottomUpDetector(nn.Module):
    """The detector: from images of one size to proposals with features, classes, boxes and attributes."""

    def __init__(self, shape: DetectorShape, convention: Convention) -> None:
        super().__init__()
        self.shape, self.convention = shape, convention
        self.backbone = c4(shape)
        levels = nn.Module()  # one map, so one level: the (A, 4) float32 anchors of the cell at (0, 0)
        levels.register_buffer("0", convention.anchors(shape))
        anchors = nn.ModuleDict({"cell_anchors": levels})
        self.proposal_generator = nn.ModuleDict({"rpn_head": ProposalHead(shape), "anchor_generator": anchors})
        # Stride 1 with dilation 2 sees as much of the image as the classifier's stride 2, at twice the resolution.
        res5 = stage(shape.blocks[3], 16 * shape.width, 32 * shape.width, stride=1, dilation=2)
        self.roi_heads = nn.ModuleDict({"res5": res5, "box_predictor": BoxPredictor(shape)})

    def forward(self, images: Tensor, scales: Sequence[float], precision: Precision = "float32") -> list[Proposals]:
        """Return the proposals of each image.

        Args:
            images: (B, 3, H, W) float32 from `input.network_input`: B G R, the mean subtracted; H, W >= 3.
            scales: B factors, side of these images over side of the originals; for the smallest side of a proposal.
            precision: of the convolutions; everything else is float32.

        Returns:
            B `Proposals`, each with at least one: the whole image if all are smaller than the smallest side, as in an
            image of 10 pixels. The ports give no region there.
        """
        feature_map = self.feature_map(images, precision)
        boxes = self.propose(feature_map, images.shape[2], images.shape[3], scales, precision)
        features = self.region_features(feature_map, boxes, precision)
        return [self.describe(corners, rows) for corners, rows in zip(boxes, features, strict=True)]

    def feature_map(self, images: Tensor, precision: Precision) -> Tensor:
        with autocast(images.device, precision):
            return self.backbone(images)

    def propose(
        self, feature_map: Tensor, height: int, width: int, scales: Sequence[float], precision: Precision
    ) -> list[Tensor]:
        """Return B tensors (N_i, 4), best objectness first, for a (B, C, h, w) map of (height, width) images."""
        objectness, deltas = self.proposal_generator["rpn_head"](feature_map, precision)
        cell_anchors = self.get_buffer("proposal_generator.anchor_generator.cell_anchors.0")
        anchors = anchors_of_map(cell_anchors, feature_map.shape[2], feature_map.shape[3], STRIDE)
        legacy = self.convention.legacy
        boxes = clip_boxes(decode_boxes(anchors, deltas, (1, 1, 1, 1), legacy), height, width, legacy)
        whole = boxes.new_tensor([[0, 0, width - legacy, height - legacy]])
        best = [self.best_boxes(*image) for image in zip(boxes, objectness, scales, strict=True)]
        return [corners if len(corners) else whole for corners in best]

    def best_boxes(self, boxes: Tensor, objectness: Tensor, scale: float) -> Tensor:
        """Return the (N, 4) boxes of (M, 4) that are large enough and not suppressed, best first."""
        legacy, minimum = self.convention.legacy, self.convention.minimum_side * scale
        order = objectness.argsort(descending=True, stable=True)
        if not self.convention.filter_first:
            order = order[: self.shape.proposals_before_nms]
        boxes, objectness = boxes[order], objectness[order]
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = ((sides > 0) & (sides + legacy > minimum)).all(dim=1).nonzero()[:, 0]
        kept = kept[: self.shape.proposals_before_nms]
        boxes, objectness = boxes[kept], objectness[kept]
        return boxes[nms(boxes, objectness, 0.7, legacy)[: self.shape.proposals]]

    def region_features(self, feature_map: Tensor, boxes: list[Tensor], precision: Precision) -> list[Tensor]:
        """Return `pool5_flat` of every box: B (N_i, D) float32 for B (N_i, 4) in pixels of the images."""
        rows = torch.cat([F.pad(corners, (1, 0), value=image) for image, corners in enumerate(boxes)])
        feature_map = feature_map.float()  # torchvision cannot pool half precision on a CPU; a maximum loses nothing
        features = []
        for part in rows.split(PROPOSALS_AT_ONCE):
            pooled = torchvision.ops.roi_pool(feature_map, part, self.shape.pool_size, 1 / STRIDE)
            with autocast(pooled.device, precision):
                features.append(self.roi_heads["res5"](pooled).mean(dim=(2, 3), dtype=torch.float32))
        return list(torch.cat(features).split([len(corners) for corners in boxes]))

    def describe(self, boxes: Tensor, features: Tensor) -> Proposals:
        predictor: Any = self.roi_heads["box_predictor"]
        class_logits = predictor.cls_score(features)
        deltas = predictor.bbox_pred(features).unflatten(1, (-1, 4))
        attribute_ids = attribute_scores = None
        if self.shape.attributes:
            logits = predictor.attribute_logits(features, class_logits)
            with_background = self.convention.background_attribute
            likelihood = logits.softmax(dim=1)[:, 1:] if with_background else logits[:, 1:].softmax(dim=1)
            attribute_scores, attribute_ids = likelihood.max(dim=1)
            attribute_ids = attribute_ids + 1
        return Proposals(boxes, features, class_logits.softmax(dim=1), deltas, attribute_ids, attribute_scores)

    def regressed(self, proposals: Proposals, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return each proposal regressed for its best class, (N, 4) clipped, and (N,) the probability of that class."""
        scores, best = proposals.class_probabilities[:, 1:].max(dim=1)
        deltas = proposals.box_deltas[torch.arange(len(best), device=best.device), best + 1]
        legacy = self.convention.legacy
        boxes = decode_boxes(proposals.boxes, deltas, self.convention.box_weights, legacy)
        return clip_boxes(boxes, height, width, legacy), scores


def initialize(detector: BottomUpDetector, seed: int) -> None:
    """Draw weights that keep every activation near 1 through all blocks, in place; for tests and timing.

    Convolutions keep the variance (He), the stem's norm scales pixels (about 70) to 1, and each block adds little to
    its shortcut: 33 blocks that doubled the variance would overflow half precision.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
                continue
            deviation = (2 / parameter[0].numel()) ** 0.5
            if "proposal_generator" in name or "box_predictor" in name:
                deviation = 0.001 if "bbox_pred" in name else 0.01
            parameter.normal_(0, deviation, generator=generator)
    for module in detector.modules():
        if isinstance(module, Stem):
            module.conv1.norm.weight.fill_(1 / 70)
        elif isinstance(module, Bottleneck):
            module.conv3.norm.weight.fill_(0.2)
