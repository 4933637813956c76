"""Losses by which a small network learns from a large frozen one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import check_positive, check_queue, check_vectors, products, unit


def relational_distillation_loss(student: Tensor, teacher: Tensor, queue: Tensor, *, student_temperature: float,
                                 teacher_temperature: float, own_column: bool = False) -> Tensor:
    """Return the KL divergence between what teacher and student find similar to an image, averaged (RDCD's RSD).

    Both compare with the teacher's embeddings of earlier images: KL(softmax(t Q^T / T_t) || softmax(s Q^T / T_s)).
    ValueError for shapes that do not fit, or a temperature that is not positive.

    Args:
        student: (B, d) features of the student, of the teacher's dimension, normalized inside.
        teacher: (B, d) features of the teacher for the same images, normalized inside; no gradient.
        queue: (Q, d) unit rows, the teacher's features of earlier images; no gradient. Q may be 0 (the loss is then 0).
        student_temperature, teacher_temperature: T_s and T_t, unitless, > 0 (the paper: 0.07 and 0.04).
        own_column: put the image's own teacher feature before the queue as column 0, as SEED does (Fang et al. 2021):
            it draws the student to the teacher's very position.

    Returns:
        () float32 (float64 for float64 students), in nats, >= 0; the mean over the batch.
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
    """Return the mean squared error between unit features, over rows and dimensions (FKD, RDCD's comparison).

    ValueError for shapes that do not fit; a student of another dimension needs a projection first.

    Args:
        student: (B, d), normalized inside. teacher: (B, d), normalized inside; no gradient.

    Returns:
        () float32 (float64 for float64 students), in [0, 4 / d]: (2 - 2 cosine) / d on average.
    """
    check_vectors(student=student, teacher=teacher)
    student = unit(student)
    return F.mse_loss(student, unit(teacher.detach()).to(student.dtype))
