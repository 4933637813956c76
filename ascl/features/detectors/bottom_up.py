"""Backend: the regions of the bottom-up-attention detector, with classes, attributes and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.reading import read_text
from ascl.features.detectors import selection as rules
from ascl.features.detectors.input import ResizedSize, network_input, resized_size
from ascl.features.detectors.network import BottomUpDetector, DetectorShape, Proposals
from ascl.features.detectors.weights import Kind, load_detector
from ascl.images.backbones import Precision

Selection = Literal["fixed", "adaptive", "raise-nms", "single-nms"]
DEFAULT_SELECTION: dict[Kind, Selection] = {"caffe": "fixed", "detectron2": "raise-nms", "huggingface": "single-nms"}
BACKGROUND, NO_ATTRIBUTE = "__background__", "__no_attribute__"  # as the original extraction code names index 0


class BottomUpBackend:
    """A `Backend`: the regions that a Faster R-CNN trained on Visual Genome proposes (36 of 2048-d, or 10 to 100).

    The selection rules, all in `selection`:

    * `fixed`, `adaptive`: per-class suppression of the proposals as they are; a proposal's confidence is the largest
      class probability that survives; the boxes stored are the proposals. The published 36-region and 10-to-100
      features.
    * `raise-nms`: boxes regressed for their best class, suppressed over all classes with a threshold that rises from
      `nms_threshold` by tenths until `min_regions` survive. The features of LXMERT.
    * `single-nms`: the same with one threshold, as in Hugging Face's LXMERT example. Like that example it uses no score
      threshold; unlike there, an image with fewer than `min_regions` is not an error.
    """

    def __init__(
        self, weights: str, *, selection: Selection | None = None, min_regions: int | None = None,
        max_regions: int | None = None, score_threshold: float = 0.2, nms_threshold: float | None = None,
        short_side: int = 600, long_side: int = 1000, class_names: str | None = None,
        attribute_names: str | None = None, precision: Precision = "float32", device: str = "cpu",
        shape: DetectorShape | None = None,
    ) -> None:
        """Load the weights and fill in the defaults.

        Args:
            weights: path of a published checkpoint (the module `weights` lists them) or `random:SEED`.
            selection: None = the rule of the checkpoint's publisher: `fixed`, `raise-nms` or `single-nms`.
            min_regions, max_regions: fewest and most regions per image; None = 36, or 10 and 100 for `adaptive`.
            score_threshold: least confidence at which `adaptive` keeps a proposal, in [0, 1].
            nms_threshold: overlap above which a box is suppressed, in (0, 1); None = 0.3, or 0.6 for `single-nms`.
            short_side: pixels to which the short side is scaled, unless the long side would exceed `long_side`. The
                published features were made with 600 and 1000; notebooks of the second port use 800 and 1333.
            class_names, attribute_names: paths of the publisher's objects_vocab.txt and attributes_vocab.txt, one name
                per line, synonyms after commas; without them the ids have no names.
            precision: of the convolutions; outputs are float32. device: a torch device.
            shape: sizes of the network; None = the published ones.

        Raises:
            DataError: the weights do not fit, a vocabulary has another length, or settings are out of range.
        """
        detector, self.kind, origin = load_detector(weights, shape or DetectorShape())
        # Otherwise half-precision convolutions on a GPU, and oneDNN's on a CPU, reorder every activation.
        self.detector: BottomUpDetector = detector.to(device).to(memory_format=torch.channels_last)
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.selection: Selection = selection or DEFAULT_SELECTION[self.kind]
        least, most = (10, 100) if self.selection == "adaptive" else (36, 36)
        self.min_regions = least if min_regions is None else min_regions
        self.max_regions = most if max_regions is None else max_regions
        self.score_threshold = score_threshold
        default_nms = 0.6 if self.selection == "single-nms" else 0.3
        self.nms_threshold = default_nms if nms_threshold is None else nms_threshold
        self.short_side, self.long_side = short_side, long_side
        shape = self.detector.shape
        if not 1 <= self.min_regions <= self.max_regions <= shape.proposals:
            given = f"min_regions {self.min_regions} and max_regions {self.max_regions}"
            limit = f"{shape.proposals}, the number of proposals"
            raise DataError(f"{given}: expected 1 <= min_regions <= max_regions <= {limit}")
        if self.selection == "fixed" and self.min_regions != self.max_regions:
            counts = f"{self.min_regions} to {self.max_regions}"
            raise DataError(f"selection fixed gives one number of regions, not {counts}; use selection adaptive")
        if not 0 <= score_threshold <= 1:
            raise DataError(f"score_threshold {score_threshold} is not a probability; give one in [0, 1]")
        if not 0 < self.nms_threshold < 1:
            raise DataError(f"nms_threshold {self.nms_threshold} is not an overlap; give one between 0 and 1")
        if not 16 <= short_side <= long_side:
            raise DataError(f"short_side {short_side}, long_side {long_side}: expected 16 <= short <= long")
        self.dim = shape.region_dim
        self.prepare = np.asarray  # the image at its size: the network resizes on its own device
        self.names: dict[str, list[str]] = {}
        if class_names is not None:
            self.names["class_names"] = read_names(class_names, shape.classes, BACKGROUND)
        if attribute_names is not None:
            if not shape.attributes:
                raise DataError(f"{weights} predicts no attributes; leave out the attribute names {attribute_names}")
            self.names["attribute_names"] = read_names(attribute_names, shape.attributes, NO_ATTRIBUTE)
        sizes = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(shape).items()}
        self.settings: dict[str, Any] = {
            "backend": "bottom-up", **origin, "kind": self.kind, "shape": sizes, "selection": self.selection,
            "min_regions": self.min_regions, "max_regions": self.max_regions, "precision": precision,
            "score_threshold": score_threshold, "nms_threshold": self.nms_threshold, "short_side": short_side,
            "long_side": long_side,
        }

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the regions of a batch, K = max_regions, with attributes if predicted; see `Backend.extract`.

        A score is the probability of the likeliest class that is not the background; ids start at 1.
        """
        self.detector.eval()
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
            height, width = batch.shape[1:3]
            resize = self.detector.convention.resize
            size = resized_size(height, width, self.short_side, self.long_side, resize)
            # The smallest side of a proposal is in pixels of the original, which may have been larger than the array.
            scales = np.minimum(size.scale_x * width / sizes[:, 0], size.scale_y * height / sizes[:, 1]).tolist()
            # One by one: a batch of large originals would take gigabytes in float32.
            images = torch.cat([network_input(image[None], size, resize) for image in batch])
            proposals = self.detector(images, scales, self.precision)
            chosen = self.select(proposals, size)
        regions = [described(*image) for image in zip(proposals, *chosen, strict=True)]
        arrays = rules.padded_rows(regions, self.max_regions)
        return arrays | {"boxes": rules.in_originals(arrays["boxes"], width, height, sizes)}

    def select(self, proposals: Sequence[Proposals], size: ResizedSize) -> tuple[list[Tensor], list[Tensor]]:
        """Return for every image the indices of the chosen proposals, and all boxes in pixels of the prepared image."""
        factors = torch.tensor([size.scale_x, size.scale_y] * 2, device=self.device)
        legacy, limits = self.detector.convention.legacy, (self.min_regions, self.max_regions)
        if self.selection in ("fixed", "adaptive"):
            boxes = [image.boxes / factors for image in proposals]
            probabilities = [image.class_probabilities[:, 1:] for image in proposals]
            confidences = rules.surviving_confidence(boxes, probabilities, self.nms_threshold, legacy)
            return [rules.select_by_confidence(one, *limits, self.score_threshold) for one in confidences], boxes
        thresholds: tuple[float, ...] = (self.nms_threshold,)
        if self.selection == "raise-nms":
            thresholds = rules.raised_thresholds(self.nms_threshold)
        regressed = [self.detector.regressed(image, size.height, size.width) for image in proposals]
        indices = [rules.select_by_raising_nms(*image, *limits, thresholds, legacy) for image in regressed]
        return indices, [corners / factors for corners, _ in regressed]


def described(image: Proposals, index: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Return everything about one image's regions, which are the proposals at `index`."""
    scores, classes = image.class_probabilities[index, 1:].max(dim=1)
    row = {"regions": image.features[index], "boxes": boxes[index], "scores": scores, "class_ids": classes + 1}
    if image.attribute_ids is not None and image.attribute_scores is not None:
        row |= {"attribute_ids": image.attribute_ids[index], "attribute_scores": image.attribute_scores[index]}
    return row


def read_names(path: str, count: int, first: str) -> list[str]:
    """Return `first` as the name of id 0, and the names of a vocabulary: one per line, synonyms after commas."""
    text = read_text(path, "a vocabulary", "use the publisher's file")
    names = [line.split(",")[0].strip().lower() for line in text.splitlines()]
    if len(names) != count:
        raise DataError(f"{path}: {len(names)} lines, but the weights have {count} names; use the publisher's file")
    if "" in names:
        raise DataError(f"{path}: line {names.index('') + 1} has no name; use the publisher's file")
    return [first, *names]
