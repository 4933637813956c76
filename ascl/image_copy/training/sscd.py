"""SSCD (Pizzi et al. 2022): what is trained, and its step.

A step's signature is that of `ascl.training.loop.fit`: (model, batch, step, generator) -> metrics, among them "loss".
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
    """A student and nothing else."""

    def __init__(self, settings: DescriptorSettings) -> None:
        super().__init__()
        self.student = Descriptor(settings)


@dataclass(frozen=True)
class SscdObjective:
    """SSCD: the two views of an image against all other images of the batch, of all processes together."""

    temperature: float  # see `sscd_loss`, also for the next
    entropy_weight: float
    mixup: float = 0.0  # probability of each image to be mixed with another

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)
        check_not_negative(entropy_weight=self.entropy_weight)
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup {self.mixup}: a probability lies between 0 and 1")

    def __call__(self, model: SscdModel, batch: ViewBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = batch.pixels.to(generator.device, non_blocking=True)
        count = pixels.shape[1]
        if self.mixup:
            mixed = [mixed_images(view, generator, probability=self.mixup) for view in pixels]
            images, shares = (torch.cat(parts) for parts in zip(*mixed, strict=True))
            # (2B, B) shares of this process's images -> (processes * 2B, processes * B): no image is in two processes
            labels = torch.block_diag(*rows_of_all(shares).split(len(shares)))
        else:
            images, labels = pixels.flatten(0, 1), rows_of_all(batch.items.to(generator.device).repeat(2))
        embeddings = model.student(images).embeddings
        everything = rows_of_all_with_gradient(embeddings)
        loss = sscd_loss(everything, labels, temperature=self.temperature, entropy_weight=self.entropy_weight)
        return {"loss": loss, "positive_cosine": mean_cosine(embeddings[:count], embeddings[count:])}


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean cosine of the rows of (B, d) and (B, d), for the log."""
    with torch.no_grad():
        return F.cosine_similarity(a.float(), b.float(), dim=1).mean()
