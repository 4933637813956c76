"""Which of a detector's proposals become the regions of an image: the rules of the published extractors.

Every rule gives the best region first; among equals the earlier proposal comes first, so the choice is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ascl.features.detectors.boxes import nms, overlaps


def surviving_confidence(
    boxes: Sequence[Tensor], probabilities: Sequence[Tensor], threshold: float, legacy: bool
) -> list[Tensor]:
    """Return for each proposal its largest probability among the classes whose suppression it survives.

    For each class, greedy suppression goes through an image's proposals by that class's probability. All classes of
    all images take their steps together, with one matrix of overlaps per image: it serves every class, because the
    proposals are compared and not the regressed boxes.

    Args:
        boxes: B tensors (N_i, 4), the proposals of an image, in pixels of the original.
        probabilities: B tensors (N_i, C) in [0, 1], without the background.
        threshold, legacy: of the overlap, in [0, 1], and its convention; see `boxes.nms`.

    Returns B tensors (N_i,) in [0, 1]; 0 for a proposal that survives for no class.
    Source: P. Anderson et al., Bottom-Up and Top-Down Attention, CVPR 2018, and its extraction code (0.3).
    """
    scores = pad_sequence(list(probabilities), batch_first=True, padding_value=-1.0)  # padding is last in every order
    count, longest, _ = scores.shape
    overlapping = scores.new_zeros((count, longest, longest), dtype=torch.bool)
    for image, corners in enumerate(boxes):
        overlapping[image, : len(corners), : len(corners)] = overlaps(corners, legacy) > threshold
    overlapping &= ~torch.eye(longest, dtype=torch.bool, device=overlapping.device)  # no box suppresses itself
    by_class = scores.transpose(1, 2)  # (B, C, N)
    order = by_class.argsort(dim=2, descending=True, stable=True)
    suppressed = torch.zeros_like(order, dtype=torch.bool)
    image_index = torch.arange(count, device=order.device)[:, None]
    for rank in range(longest):
        best = order[:, :, rank]  # (B, C): the box whose turn it is
        stays = ~suppressed.gather(2, best[:, :, None])  # (B, C, 1)
        # Boxes that had their turn do not change: one that stayed and overlaps this box would have suppressed it.
        suppressed |= overlapping[image_index, best] & stays
    confidence = by_class.masked_fill(suppressed, 0).amax(dim=1)  # (B, N)
    return [row[: len(corners)] for row, corners in zip(confidence, boxes, strict=True)]


def select_by_confidence(confidence: Tensor, minimum: int, maximum: int, threshold: float) -> Tensor:
    """Return the proposals with a confidence of at least `threshold`, at least `minimum` and at most `maximum` of them.

    With minimum = maximum the threshold does not matter (36 fixed); 10 to 100 is the adaptive variant.

    (N,) from `surviving_confidence` -> (K,) int64 indices, most confident first; K < minimum only if N < minimum.
    Source: as for `surviving_confidence`; its files keep the adaptive variant in the order of the proposals.
    """
    order = confidence.argsort(descending=True, stable=True)
    above = int((confidence >= threshold).sum())
    return order[: min(max(above, minimum), maximum)]


def raised_thresholds(first: float) -> tuple[float, ...]:
    """Return `first` and its increases by tenths, all below 1: (0.3, 0.4, ... 0.9)."""
    return tuple(round(first + step / 10, 6) for step in range(10) if first + step / 10 < 1 - 1e-6)


def select_by_raising_nms(
    boxes: Tensor, scores: Tensor, minimum: int, maximum: int, thresholds: Sequence[float], legacy: bool
) -> Tensor:
    """Suppress over all classes at once, with rising thresholds, until at least `minimum` boxes survive.

    Args:
        boxes, scores: (N, 4), each regressed for its own best class; (N,) probability of that class.
        thresholds: of the overlap, tried in this order; the result of the last one counts even with fewer boxes. With
            one threshold this is plain class-agnostic suppression.
        legacy: the convention of overlaps, see `boxes`.

    Returns (K,) int64 indices, best first, K <= maximum.
    Source: the extraction code of H. Tan and M. Bansal, LXMERT, EMNLP 2019 (0.3, 0.4 ... 0.9).
    """
    keep = torch.arange(0, device=boxes.device)
    for threshold in thresholds:
        keep = nms(boxes, scores, threshold, legacy)
        if len(keep) >= minimum:
            break
    return keep[:maximum]


def first_survivors(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float, wanted: int, *, first: int
) -> Tensor:
    """Return the best boxes that survive non-maximum suppression within each class.

    A worse box never suppresses a better one, so the first survivors among the best candidates are those among all.
    With a thousand classes, looking at all candidates at once would cost a GPU more than the network.

    Args:
        boxes: (N, 4) x1 y1 x2 y2, best first; float64, because torchvision separates classes by shifting boxes by many
            image widths, where float32 loses its digits.
        scores, classes: (N,) descending; (N,).
        threshold, wanted: of the overlap, in [0, 1]; most boxes to return.
        first: candidates to look at first; four times as many in each further round while too few survive.

    Returns (K,) int64 indices in ascending order, K <= wanted.
    """
    while True:
        kept = torchvision.ops.batched_nms(boxes[:first], scores[:first], classes[:first], threshold)
        if len(kept) >= wanted or first >= len(scores):
            return kept.sort().values[:wanted]  # of equal scores, the first in `boxes` comes first
        first *= 4


def in_originals(boxes: np.ndarray, width: int, height: int, sizes: np.ndarray) -> np.ndarray:
    """Return (B, K, 4) boxes of (width, height) images in pixels of their originals, whose (B, 2) sizes are given."""
    edges = np.tile(sizes, 2)[:, None].astype(np.float32)
    scaled = boxes * (edges / np.array([width, height] * 2, dtype=np.float32))
    return np.clip(scaled, 0, edges)  # rounding may exceed the edge


def padded_rows(images: Sequence[dict[str, Tensor]], count: int) -> dict[str, np.ndarray]:
    """Return `region_count` and the B images' arrays as (B, count, ...): float32 padded with 0, ids int32 with -1."""
    rows = {"region_count": np.array([len(image["boxes"]) for image in images], dtype=np.int32)}
    for name, first in images[0].items():
        dtype, padding = (np.int32, -1) if name.endswith("_ids") else (np.float32, 0)
        rows[name] = np.full((len(images), count, *first.shape[1:]), padding, dtype=dtype)
        for row, image in zip(rows[name], images, strict=True):
            row[: len(image[name])] = image[name].cpu().numpy()
    return rows
