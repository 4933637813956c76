"""A small in-memory benchmark of held-out images, with which a run selects its best model and detects collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ascl.core.tensors import unit
from ascl.image_copy.edits.augment import reduced, to_tensor
from ascl.image_copy.edits.edits import EDITS, random_chain, sample_rng
from ascl.image_copy.evaluation.metrics import micro_average_precision
from ascl.image_copy.training.data import Others, Photos
from ascl.image_copy.training.monitor import Health, health
from ascl.images.read import SquarePixels
from ascl.index.exact import nearest_references

STRENGTHS = (0.15, 0.5, 0.85)  # of the edits, in turn
CROP_STRENGTHS = (0.2, 0.5, 0.8)
NEIGHBOURS = 10
SHOWS_LESS = 0.9  # content scale below which a copy counts for `ordered_copies`


class ValidationSet(NamedTuple):
    """Held-out originals, with an edited copy and a crop of each; row i of all tensors comes from photo i."""

    references: Tensor  # (N, 3, S, S) uint8, as the next two
    queries: Tensor
    crops: Tensor
    scales: Tensor  # (N,) float64 content scale of the queries


@dataclass(frozen=True)
class _Copies(Dataset):
    images: Photos
    mixed_in: Photos
    prepare: SquarePixels
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, float]:
        photo = reduced(self.images[index], 4 * self.prepare.size)
        rng = sample_rng(self.seed, index)
        edited = random_chain(photo, STRENGTHS[index % len(STRENGTHS)], rng, Others(self.mixed_in, index, rng))
        crop = EDITS["crop"](photo, CROP_STRENGTHS[index % len(CROP_STRENGTHS)], rng)
        shown, copy, part = (to_tensor(self.prepare(image)) for image in (photo, edited.image, crop.image))
        return shown, copy, part, edited.content_scale


def make_validation_set(
    images: Photos, mixed_in: Photos, prepare: SquarePixels, *, seed: int, workers: int
) -> ValidationSet:
    """Return the validation set of held-out photos; it depends on the images and the seed, not on the workers.

    Args:
        images: held-out photos, at least two.
        mixed_in: photos for overlays and collages. None of them may be in `images`: a query that shows two references
            would make a true pair count as false.
        prepare: scales an image to the square that the descriptor takes.
    """
    loader = DataLoader(_Copies(images, mixed_in, prepare, seed), batch_size=16, num_workers=workers)
    return ValidationSet(*map(torch.cat, zip(*loader, strict=True)))


def validate(
    describe: Callable[[Tensor], tuple[Tensor, Tensor]], data: ValidationSet, *, device: torch.device, tolerance: float,
    batch_size: int = 128,
) -> Health:
    """Return the metrics of a descriptor on a validation set, with those of the collapse monitor.

    Args:
        describe: (B, 3, S, S) pixels on the device -> vectors (B, d) and content norms (B,).
        tolerance: for the rank, see `monitor.spectrum`.

    Returns:
        `Health`. Its metrics add to the monitor's: `muap` and `recall_at_1` in [0, 1], with the 10 nearest references
        of each query as candidates; `ordered_crops` and `ordered_copies`, the share of crops, and of copies that show
        less than 0.9 of their original, whose norm is smaller than the original's.
    """
    def described(images: Tensor) -> tuple[Tensor, Tensor]:
        vectors, norms = map(torch.cat, zip(*(describe(x.to(device)) for x in images.split(batch_size)), strict=True))
        return unit(vectors.float()).cpu(), norms.float().cpu()

    (references, norms), (queries, query_norms) = described(data.references), described(data.queries)
    _, crop_norms = described(data.crops)
    seen = health(queries, references, norms, tolerance=tolerance)
    found, score = nearest_references(queries.numpy(), references.numpy(), NEIGHBOURS, metric="ip")
    own = np.arange(len(references))
    precision = micro_average_precision(np.repeat(own, found.shape[1]), found.ravel(), score.ravel(), own, own)
    ordered_copies = (query_norms < norms)[data.scales < SHOWS_LESS]
    metrics = {
        "muap": precision.muap, "recall_at_1": precision.recall_rank1,
        "ordered_crops": float((crop_norms < norms).float().mean()),
        "ordered_copies": float(ordered_copies.float().mean()) if len(ordered_copies) else 0.0,
    }
    return Health(metrics | seen.metrics, seen.warnings)
