"""ASL on its baseline: the model that is trained, and its training step.

A step has the signature that `ascl.training.loop.fit` expects: (model, batch, step, generator) -> metrics with "loss".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ascl.asymmetry import norm_ratio, norm_ratio_loss
from ascl.core.tensors import check_not_negative
from ascl.image_copy.descriptors.descriptor import Descriptor, DescriptorSettings
from ascl.image_copy.training.batch import IdentityBatch
from ascl.image_copy.training.sampler import PairSelection, draw_pairs
from ascl.losses import norm_triplet_loss, smoothed_cross_entropy, soft_triplet_loss


class AslModel(nn.Module):
    """A student, and the classifier of the training images, which is saved only for a resume."""

    def __init__(self, settings: DescriptorSettings, classes: int) -> None:
        super().__init__()
        self.student = Descriptor(settings)
        self.classifier = nn.Linear(self.student.dim, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)


@dataclass(frozen=True)
class AslObjective:
    """ASL on its baseline: smoothed cross-entropy of the descriptor, soft triplet of the feature, norm ratio."""

    classification_weight: float
    smoothing: float
    triplet_weight: float
    norm_ratio_weight: float  # 0 = the baseline alone
    reading: PairSelection | Literal["triplet"]  # see `draw_pairs`; "triplet" = all pairs, by a margin instead of ratio
    margin: float  # for the reading "triplet"

    def __post_init__(self) -> None:
        names = ("classification_weight", "triplet_weight", "norm_ratio_weight")
        check_not_negative(**{name: getattr(self, name) for name in (*names, "margin")})
        if not any(getattr(self, name) for name in names):
            raise ValueError("all weights of asl are 0, so nothing would be trained; set at least one above 0")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing {self.smoothing}: must be in [0, 1)")

    def __call__(
        self, model: AslModel, batch: IdentityBatch, step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        device = generator.device
        described = model.student(batch.pixels.to(device, non_blocking=True))
        labels = batch.items.to(device).repeat_interleave(batch.scales.shape[1])
        selection: PairSelection = "all" if self.reading == "triplet" else self.reading
        pairs = draw_pairs(batch.scales.to(device), generator, kinds=batch.kinds.to(device), selection=selection)
        more, less = described.content[pairs.more], described.content[pairs.less]
        if self.reading == "triplet":
            order = norm_triplet_loss(more, less, margin=self.margin)
        else:
            order = norm_ratio_loss(more, less)
        logits = model.classifier(described.embeddings)
        metrics = {
            "classification": smoothed_cross_entropy(logits, labels, smoothing=self.smoothing),
            "triplet": soft_triplet_loss(described.features, labels), "norm_ratio": order,
        }
        weights = (self.classification_weight, self.triplet_weight, self.norm_ratio_weight)
        terms = [weight * term for weight, term in zip(weights, metrics.values(), strict=True) if weight]
        with torch.no_grad():
            ordered = (norm_ratio(more, less) > 1) & ~pairs.tied
            metrics["ordered_pairs"] = ordered.sum() / (~pairs.tied).sum().clamp_min(1)
            metrics["tied_pairs"] = pairs.tied.float().mean()
        return {"loss": torch.stack(terms).sum(), **metrics}
