"""SSCD (Pizzi et al. 2022): the model that is trained, and its training step.

A step has the signature that `ascl.training.loop.fit` expects: (model, batch, step, generator) -> metrics with "loss".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.distributed import rows_of_all, rows_of_all_with_gradient
from ascl.core.tensors import check_not_negative, check_positive
from ascl.image_copy.descriptors.descriptor import Descriptor, DescriptorSettings
from ascl.image_copy.edits.mixup import mixed_images
from ascl.image_copy.training.batch import ViewBatch
from ascl.losses import sscd_loss


class SscdModel(nn.Module):
    """A student."""

    def __init__(self, settings: DescriptorSettings) -> None:
        super().__init__()
        self.student = Descriptor(settings)


@dataclass(frozen=True)
class SscdObjective:
    """SSCD: the two views of an image against all other images in the batches of all processes."""

    temperature: float  # see `sscd_loss`, as for the next
    entropy_weight: float
    mixup: float = 0.0  # probability that an image is mixed with another

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)
        check_not_negative(entropy_weight=self.entropy_weight)
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup {self.mixup}: a probability must be between 0 and 1")

    def __call__(self, model: SscdModel, batch: ViewBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = batch.pixels.to(generator.device, non_blocking=True)
        count = pixels.shape[1]
        if self.mixup:
            mixed = [mixed_images(view, generator, probability=self.mixup) for view in pixels]
            images, shares = (torch.cat(parts) for parts in zip(*mixed, strict=True))
            # (2B, B) shares of this process -> (processes * 2B, processes * B), because no image is in two processes
            labels = torch.block_diag(*rows_of_all(shares).split(len(shares)))
        else:
            images, labels = pixels.flatten(0, 1), rows_of_all(batch.items.to(generator.device).repeat(2))
        embeddings = model.student(images).embeddings
        everything = rows_of_all_with_gradient(embeddings)
        loss = sscd_loss(everything, labels, temperature=self.temperature, entropy_weight=self.entropy_weight)
        return {"loss": loss, "positive_cosine": mean_cosine(embeddings[:count], embeddings[count:])}


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean cosine between the rows of (B, d) and (B, d), for the log."""
    with torch.no_grad():
        return F.cosine_similarity(a.float(), b.float(), dim=1).mean()
