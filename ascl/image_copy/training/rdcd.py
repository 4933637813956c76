"""RDCD: the model that is trained (student, momentum encoder, queues), and its training step with a frozen teacher.

A step has the signature that `ascl.training.loop.fit` expects: (model, batch, step, generator) -> metrics with "loss".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl import losses
from ascl.core.distributed import rows_of_all, rows_of_all_with_gradient
from ascl.core.errors import DataError
from ascl.core.tensors import check_not_negative, check_positive
from ascl.image_copy.descriptors.descriptor import Descriptor, DescriptorSettings
from ascl.image_copy.descriptors.teachers import Teacher
from ascl.image_copy.training.batch import ViewBatch
from ascl.image_copy.training.queue import EmbeddingQueue
from ascl.image_copy.training.sscd import mean_cosine

Contrastive = Literal["moco", "simclr"]
Distillation = Literal["rsd", "seed", "fkd", "none"]


class RdcdModel(nn.Module):
    """The student, with MoCo its momentum encoder, and the queues; all of it is saved.

    `bridge` projects to the teacher's dimension, for FKD with a student of another dimension.
    """

    def __init__(
        self, settings: DescriptorSettings, *, contrastive: Contrastive, distillation: Distillation, queue_size: int,
        teacher_dim: int | None,
    ) -> None:
        """Build the parts that the two losses need.

        Raises:
            DataError: distillation without a teacher, or relational distillation to a student of another dimension.
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
            raise DataError(f"distillation {distillation} needs a teacher; give one, or set distillation to none")
        of_student = self.student.feature_dim
        if distillation != "fkd":
            if teacher_dim != of_student:
                raise DataError(f"the teacher's vectors have {teacher_dim} dimensions and the student's feature "
                                f"{of_student}: leave model.feature_dim out to use the teacher's")
            self.teacher_queue = EmbeddingQueue(queue_size, teacher_dim)
        elif teacher_dim != of_student:
            self.bridge = nn.Linear(of_student, teacher_dim)

    def restart_key(self) -> None:
        """Set the key encoder to the student's current state."""
        if self.key is not None:
            self.key.load_state_dict(self.student.state_dict())


@dataclass(frozen=True)
class RdcdObjective:
    """RDCD: a contrastive loss on the descriptor, distillation on the feature, and the hard-negative loss.

    A step updates the key encoder, computes the keys, computes the losses against the old queues, and then enqueues the
    rows of the batch (of all processes). The hard-negative loss uses the key queue; SimCLR has no queue, so there it
    uses the other images of the batch.
    """

    teacher: Teacher | None  # sees the first view, like the student; None with distillation "none"
    contrastive: Contrastive
    distillation: Distillation
    contrastive_weight: float
    distillation_weight: float
    hard_negative_weight: float
    temperature: float  # of the contrastive loss
    student_temperature: float  # of RSD, as the next
    teacher_temperature: float
    momentum: float  # of the key encoder
    entropy_weight: float  # of SimCLR's loss, which is SSCD's

    def __post_init__(self) -> None:
        check_positive(**{name: value for name, value in vars(self).items() if name.endswith("temperature")})
        check_not_negative(**{name: value for name, value in vars(self).items() if name.endswith("_weight")})
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum {self.momentum}: must be between 0 and 1")

    def __call__(self, model: RdcdModel, batch: ViewBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        first, second = batch.pixels.to(generator.device, non_blocking=True)
        metrics: dict[str, Tensor] = {}
        keys = None
        if model.key is not None:
            with torch.no_grad():
                momentum_update(model.key, model.student, self.momentum)
                keys = unit_rows(model.key(second).embeddings)
            query = model.student(first)
            metrics |= self._moco(model, query.embeddings, keys)
        else:
            both = model.student(torch.cat([first, second]))
            query = type(both)(*(part[: len(first)] for part in both))
            metrics |= self._simclr(both.embeddings, batch.items.to(generator.device))
        loss = self.contrastive_weight * metrics["contrastive"] + self.hard_negative_weight * metrics["hard_negative"]
        if self.teacher is not None and self.distillation != "none":
            vectors = self.teacher.embed(first, batch.ids)
            metrics["distillation"] = self._distil(model, query.features, vectors)
            loss = loss + self.distillation_weight * metrics["distillation"]
            if model.teacher_queue is not None:
                model.teacher_queue.enqueue(rows_of_all(unit_rows(vectors)))
        if model.key_queue is not None and keys is not None:
            model.key_queue.enqueue(rows_of_all(keys))
        return {"loss": loss, **metrics}

    def _moco(self, model: RdcdModel, embeddings: Tensor, keys: Tensor) -> dict[str, Tensor]:
        assert model.key_queue is not None
        queue = model.key_queue.rows
        return {
            "contrastive": losses.info_nce_queue(embeddings, keys, queue, temperature=self.temperature),
            "hard_negative": losses.hard_negative_loss(embeddings, queue),
            "positive_cosine": mean_cosine(embeddings, keys),
        }

    def _simclr(self, embeddings: Tensor, items: Tensor) -> dict[str, Tensor]:
        everything = rows_of_all_with_gradient(embeddings)
        labels = rows_of_all(items.repeat(2))
        own, other = embeddings.chunk(2)
        weights = {"temperature": self.temperature, "entropy_weight": self.entropy_weight}
        return {
            "contrastive": losses.sscd_loss(everything, labels, **weights),
            "hard_negative": losses.hard_negative_loss(own, unit_rows(everything), others=items[:, None] != labels),
            "positive_cosine": mean_cosine(own, other),
        }

    def _distil(self, model: RdcdModel, features: Tensor, vectors: Tensor) -> Tensor:
        if self.distillation == "fkd":
            bridged = features if model.bridge is None else model.bridge(features)
            return losses.feature_distillation_loss(bridged, vectors)
        assert model.teacher_queue is not None
        return losses.relational_distillation_loss(
            features, vectors, model.teacher_queue.rows, student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature, own_column=self.distillation == "seed",
        )


def unit_rows(vectors: Tensor) -> Tensor:
    """Return rows of length 1 in float32, without gradients, for a queue; a zero vector becomes the first axis."""
    vectors = F.normalize(vectors.detach().float(), dim=1)
    axis = torch.zeros_like(vectors)
    axis[:, 0] = 1
    return torch.where((vectors == 0).all(dim=1, keepdim=True), axis, vectors)


@torch.no_grad()
def momentum_update(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """Set key <- momentum * key + (1 - momentum) * query for every parameter, in place (MoCo, equation 2).

    Buffers do not change: the key encoder's batch norm follows the keys that it sees itself. Both modules have the same
    architecture. Raises ValueError for a momentum outside [0, 1].
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
        slow.lerp_(fast.detach().to(slow), 1 - momentum)
