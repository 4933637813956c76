"""What is trained and by which loss: SSCD, RDCD and ASL, each a model of saved parts and a step.

A step's signature is that of `ascl.training.loop.fit`: (model, batch, step, generator) -> figures, among them "loss".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.asymmetry import norm_ratio, norm_ratio_loss
from ascl.core.distributed import rows_of_all, rows_of_all_with_gradient
from ascl.core.errors import DataError
from ascl.core.tensors import check_positive
from ascl.image_copy.descriptors.descriptor import Descriptor, DescriptorSettings
from ascl.image_copy.descriptors.teachers import Teacher
from ascl.image_copy.edits.mixup import mixed_images
from ascl.image_copy.training.momentum import momentum_update
from ascl.image_copy.training.queue import EmbeddingQueue
from ascl.image_copy.training.sampler import Reading, draw_pairs
from ascl.losses import (
    feature_distillation_loss,
    hard_negative_loss,
    info_nce_queue,
    norm_triplet_loss,
    relational_distillation_loss,
    smoothed_cross_entropy,
    soft_triplet_loss,
    sscd_loss,
)

Contrastive = Literal["moco", "simclr"]
Distillation = Literal["rsd", "seed", "fkd", "none"]


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each image.

    Attributes:
        pixels: (2, B, 3, S, S) uint8. items: (B,) int64 rows of the training images. ids: their B ids.
    """

    pixels: Tensor
    items: Tensor
    ids: Sequence[str]


@dataclass(frozen=True)
class IdentityBatch:
    """P identities of K images, the images of one after the other.

    Attributes:
        pixels: (P * K, 3, S, S) uint8. items: (P,) int64, the training image of each identity.
        scales: (P, K) float64 content scales. kinds: (P, K) int64 of `ImageKind`.
    """

    pixels: Tensor
    items: Tensor
    scales: Tensor
    kinds: Tensor


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows of length 1 in float32, without gradients, as a queue takes them.

    A zero vector has no direction; it becomes the first axis, because a queue of unit rows cannot hold it.
    """
    vectors = F.normalize(vectors.detach().float(), dim=1)
    axis = torch.zeros_like(vectors)
    axis[:, 0] = 1
    return torch.where((vectors == 0).all(dim=1, keepdim=True), axis, vectors)


# SSCD


class SscdModel(nn.Module):
    """A student and nothing else."""

    def __init__(self, settings: DescriptorSettings) -> None:
        super().__init__()
        self.student = Descriptor(settings)


@dataclass(frozen=True)
class SscdObjective:
    """SSCD: the two views of an image against all other images of the batch, of all processes together.

    Attributes:
        temperature, entropy_weight: see `sscd_loss`.
        mixup: probability of each image to be mixed with another.
    """

    temperature: float
    entropy_weight: float
    mixup: float = 0.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)
        _check_weights(entropy_weight=self.entropy_weight)
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup {self.mixup}: a probability lies between 0 and 1")

    def __call__(
        self, model: SscdModel, batch: ViewBatch, step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        pixels = batch.pixels.to(generator.device, non_blocking=True)
        count = pixels.shape[1]
        if self.mixup:
            views, shares = zip(
                *(mixed_images(view, generator, probability=self.mixup) for view in pixels), strict=True
            )
            embeddings = model.student(torch.cat(views)).embeddings
            labels = _shares_of_all(torch.cat(shares))
        else:
            embeddings = model.student(pixels.flatten(0, 1)).embeddings
            labels = rows_of_all(batch.items.to(generator.device).repeat(2))
        loss = sscd_loss(
            rows_of_all_with_gradient(embeddings), labels, temperature=self.temperature,
            entropy_weight=self.entropy_weight,
        )
        return {"loss": loss, "positive_cosine": _cosine(embeddings[:count], embeddings[count:])}


def _shares_of_all(shares: Tensor) -> Tensor:
    """(2B, B) shares of this process's images -> (processes * 2B, processes * B): no image is in two processes."""
    gathered = rows_of_all(shares)
    blocks = gathered.split(len(shares))
    return torch.block_diag(*blocks) if len(blocks) > 1 else gathered


# RDCD


class RdcdModel(nn.Module):
    """Student, its momentum encoder where there is one, and the queues; all of it is saved.

    Attributes:
        key_queue: embeddings of the momentum encoder. teacher_queue: vectors of the teacher.
        bridge: to the teacher's dimension, for FKD with a student of another.
    """

    def __init__(
        self,
        settings: DescriptorSettings,
        *,
        contrastive: Contrastive,
        distillation: Distillation,
        queue_size: int,
        teacher_dim: int | None,
    ) -> None:
        """
        Raises:
            DataError: distillation without a teacher, or by relations with a student of another dimension.
        """
        super().__init__()
        self.student = Descriptor(settings)
        self.key: Descriptor | None = None
        self.key_queue: EmbeddingQueue | None = None
        self.teacher_queue: EmbeddingQueue | None = None
        self.bridge: nn.Linear | None = None
        if contrastive == "moco":
            self.key = Descriptor(settings, initialise=False).requires_grad_(False)
            self.restart_key()
            self.key_queue = EmbeddingQueue(queue_size, self.student.dim)
        if distillation == "none":
            return
        if teacher_dim is None:
            raise DataError(f"distillation {distillation} needs a teacher: give one, or set distillation to none")
        if distillation == "fkd":
            if teacher_dim != self.student.feature_dim:
                self.bridge = nn.Linear(self.student.feature_dim, teacher_dim)
            return
        if teacher_dim != self.student.feature_dim:
            raise DataError(
                f"the teacher's vectors have {teacher_dim} dimensions and the student's feature "
                f"{self.student.feature_dim}: they have to be equal; leave model.feature_dim out to take the teacher's"
            )
        self.teacher_queue = EmbeddingQueue(queue_size, teacher_dim)

    def restart_key(self) -> None:
        """The key encoder as the student is now."""
        if self.key is not None:
            self.key.load_state_dict(self.student.state_dict())


@dataclass(frozen=True)
class RdcdObjective:
    """RDCD: a contrastive loss on the descriptor, distillation on the feature, and the hard-negative loss.

    Order of a step: the key encoder follows the student, keys are made, losses are taken against the old queues, the
    batch's rows (of all processes) are enqueued. The hard-negative loss looks at the key queue; with SimCLR, which has
    none, at the keys of the other images of the batch.

    Attributes:
        teacher: sees the first view, as the student; None with distillation "none".
        contrastive_weight, distillation_weight, hard_negative_weight: of the sum.
        temperature: of the contrastive loss. student_temperature, teacher_temperature: of RSD.
        momentum: of the key encoder. entropy_weight: of SimCLR's loss, which is SSCD's.
    """

    teacher: Teacher | None
    contrastive: Contrastive
    distillation: Distillation
    contrastive_weight: float
    distillation_weight: float
    hard_negative_weight: float
    temperature: float
    student_temperature: float
    teacher_temperature: float
    momentum: float
    entropy_weight: float

    def __post_init__(self) -> None:
        check_positive(
            temperature=self.temperature, student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        _check_weights(
            contrastive_weight=self.contrastive_weight, distillation_weight=self.distillation_weight,
            hard_negative_weight=self.hard_negative_weight, entropy_weight=self.entropy_weight,
        )
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum {self.momentum}: has to lie between 0 and 1")

    def __call__(
        self, model: RdcdModel, batch: ViewBatch, step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        first, second = batch.pixels.to(generator.device, non_blocking=True)
        figures: dict[str, Tensor] = {}
        keys = None
        if model.key is not None:
            with torch.no_grad():
                momentum_update(model.key, model.student, self.momentum)
                keys = unit_rows(model.key(second).embeddings)
            query = model.student(first)
            figures |= self._moco(model, query.embeddings, keys)
        else:
            both = model.student(torch.cat([first, second]))
            query = type(both)(*(part[: len(first)] for part in both))
            figures |= self._simclr(both.embeddings, batch.items.to(generator.device))
        loss = self.contrastive_weight * figures["contrastive"]
        loss = loss + self.hard_negative_weight * figures["hard_negative"]
        rows = None
        if self.teacher is not None and self.distillation != "none":
            vectors = self.teacher.embed(first, batch.ids)
            figures["distillation"] = self._distil(model, query.features, vectors)
            loss = loss + self.distillation_weight * figures["distillation"]
            rows = unit_rows(vectors)
        if model.key_queue is not None and keys is not None:
            model.key_queue.enqueue(rows_of_all(keys))
        if model.teacher_queue is not None and rows is not None:
            model.teacher_queue.enqueue(rows_of_all(rows))
        return {"loss": loss, **figures}

    def _moco(self, model: RdcdModel, embeddings: Tensor, keys: Tensor) -> dict[str, Tensor]:
        assert model.key_queue is not None
        queue = model.key_queue.rows
        return {
            "contrastive": info_nce_queue(embeddings, keys, queue, temperature=self.temperature),
            "hard_negative": hard_negative_loss(embeddings, queue),
            "positive_cosine": _cosine(embeddings, keys),
        }

    def _simclr(self, embeddings: Tensor, items: Tensor) -> dict[str, Tensor]:
        everything = rows_of_all_with_gradient(embeddings)
        labels = rows_of_all(items.repeat(2))
        own, other = embeddings.chunk(2)
        return {
            "contrastive": sscd_loss(
                everything, labels, temperature=self.temperature, entropy_weight=self.entropy_weight
            ),
            "hard_negative": _hard_negatives_of_batch(own, everything, items, labels),
            "positive_cosine": _cosine(own, other),
        }

    def _distil(self, model: RdcdModel, features: Tensor, vectors: Tensor) -> Tensor:
        if self.distillation == "fkd":
            return feature_distillation_loss(features if model.bridge is None else model.bridge(features), vectors)
        assert model.teacher_queue is not None
        return relational_distillation_loss(
            features, vectors, model.teacher_queue.rows, student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature, own_column=self.distillation == "seed",
        )


def _hard_negatives_of_batch(own: Tensor, everything: Tensor, items: Tensor, labels: Tensor) -> Tensor:
    """The hard-negative loss where each query has its own negatives: the rows of other images."""
    everything = unit_rows(everything)
    rows = [hard_negative_loss(own[i : i + 1], everything[labels != items[i]]) for i in range(len(own))]
    return torch.stack(rows).mean()


# ASL


class AslModel(nn.Module):
    """A student, and the classifier of the training images, which is saved for the resume alone."""

    def __init__(self, settings: DescriptorSettings, classes: int) -> None:
        super().__init__()
        self.student = Descriptor(settings)
        self.classifier = nn.Linear(self.student.dim, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)


@dataclass(frozen=True)
class AslObjective:
    """ASL on its baseline: smoothed cross-entropy of the descriptor, soft triplet of the feature, norm ratio.

    Attributes:
        classification_weight, smoothing, triplet_weight: of the baseline.
        norm_ratio_weight: 0 = the baseline alone.
        reading: which pairs are ordered, see `draw_pairs`; "triplet" orders all by a margin instead of the ratio.
        margin: of the reading "triplet".
    """

    classification_weight: float
    smoothing: float
    triplet_weight: float
    norm_ratio_weight: float
    reading: Reading | Literal["triplet"]
    margin: float

    def __post_init__(self) -> None:
        weights = {
            "classification_weight": self.classification_weight, "triplet_weight": self.triplet_weight,
            "norm_ratio_weight": self.norm_ratio_weight,
        }
        _check_weights(**weights, margin=self.margin)
        if not any(weights.values()):
            raise ValueError("all weights of asl are 0: nothing would be trained")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing {self.smoothing}: has to lie in [0, 1)")

    def __call__(
        self, model: AslModel, batch: IdentityBatch, step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        device = generator.device
        described = model.student(batch.pixels.to(device, non_blocking=True))
        images = batch.scales.shape[1]
        labels = batch.items.to(device).repeat_interleave(images)
        pairs = draw_pairs(
            batch.scales.to(device), generator, kinds=batch.kinds.to(device),
            reading="all" if self.reading == "triplet" else self.reading,
        )
        more, less = described.content[pairs.more], described.content[pairs.less]
        order = norm_triplet_loss(more, less, margin=self.margin) if self.reading == "triplet" else norm_ratio_loss(
            more, less
        )
        figures = {
            "classification": smoothed_cross_entropy(
                model.classifier(described.embeddings), labels, smoothing=self.smoothing
            ),
            "triplet": soft_triplet_loss(described.features, labels),
            "norm_ratio": order,
        }
        weights = {
            "classification": self.classification_weight, "triplet": self.triplet_weight,
            "norm_ratio": self.norm_ratio_weight,
        }
        loss = torch.stack([weight * figures[name] for name, weight in weights.items() if weight]).sum()
        with torch.no_grad():
            ordered = (norm_ratio(more, less) > 1) & ~pairs.tied
            figures["ordered_pairs"] = ordered.sum() / (~pairs.tied).sum().clamp_min(1)
            figures["tied_pairs"] = pairs.tied.float().mean()
        return {"loss": loss, **figures}


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} is {weight}: has to be at least 0")


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of rows, for the log."""
    with torch.no_grad():
        return F.cosine_similarity(a.float(), b.float(), dim=1).mean()
