"""Distillation losses: a small network learns from a large frozen one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import check_positive, check_queue, check_vectors, products, unit


def relational_distillation_loss(student: Tensor, teacher: Tensor, queue: Tensor, *, student_temperature: float,
                                 teacher_temperature: float, own_column: bool = False) -> Tensor:
    """Return the KL divergence between the similarities that teacher and student see, averaged (RSD of RDCD).

    Both compare an image with the teacher's features of earlier images: KL(softmax(t Q^T / T_t) || softmax(s Q^T /
    T_s)). Raises ValueError if the shapes do not match or a temperature is not positive.

    Args:
        student: (B, d) features of the student, in the teacher's dimension, normalized inside.
        teacher: (B, d) features of the teacher for the same images, normalized inside; no gradient.
        queue: (Q, d) unit rows, the teacher's features of earlier images; no gradient. The loss is 0 for Q = 0.
        student_temperature, teacher_temperature: T_s and T_t, unitless, > 0 (the paper: 0.07 and 0.04).
        own_column: put the image's own teacher feature before the queue as column 0, as SEED does (Fang et al. 2021).
            It pulls the student toward the teacher's feature itself.

    Returns:
        () float32 (float64 for float64 students), in nats, >= 0; the mean over the batch.

    Example:
        >>> teacher, queue = torch.eye(4)[:2], torch.eye(4)
        >>> relational_distillation_loss(teacher, teacher, queue, student_temperature=0.04, teacher_temperature=0.04)
        tensor(0.)
        >>> student = torch.ones(2, 4)          # as near to each of 4 features, the teacher to one: log 4
        >>> relational_distillation_loss(student, teacher, queue, student_temperature=0.07, teacher_temperature=0.04)
        tensor(1.3863)
    """
    check_vectors(student=student, teacher=teacher)
    check_queue(queue, student.shape[1])
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    student, teacher, queue = unit(student), unit(teacher.detach()), queue.detach()

    def log_shares(features: Tensor, temperature: float) -> Tensor:
        similar = products(features, queue)                                                  # (B, Q)
        if own_column:
            similar = torch.cat([(features * teacher).sum(dim=1, keepdim=True), similar], dim=1)
        return (similar / temperature).log_softmax(dim=1)

    return F.kl_div(log_shares(student, student_temperature), log_shares(teacher, teacher_temperature),
                    log_target=True, reduction="batchmean")


def feature_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error between unit features, over rows and dimensions (FKD, a baseline of RDCD).

    Raises ValueError if the shapes differ; project a student of another dimension first.

    Args:
        student: (B, d), normalized inside. teacher: (B, d), normalized inside; no gradient.

    Returns:
        () float32 (float64 for float64 students), in [0, 4 / d]: the mean of (2 - 2 cosine) / d.

    Example:
        >>> teacher = torch.eye(4)
        >>> feature_distillation_loss(2 * teacher, teacher)         # only the direction counts
        tensor(0.)
        >>> feature_distillation_loss(-teacher, teacher)            # opposite: 4 / d
        tensor(1.)
    """
    check_vectors(student=student, teacher=teacher)
    student = unit(student)
    return F.mse_loss(student, unit(teacher.detach()).to(student.dtype))
