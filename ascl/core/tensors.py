"""Precision, checks and cosines, shared by the losses over vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_vectors(**vectors: Tensor) -> None:
    """Raise ValueError unless all are (B, d) of one shape with B and d >= 1."""
    shapes = {name: tuple(x.shape) for name, x in vectors.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or 0 in first or any(shape != first for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected vectors (B, d) of one shape with B and d at least 1, got {listed}")


def check_queue(queue: Tensor, dim: int) -> None:
    """Raise ValueError unless the queue is (Q, dim); Q may be 0."""
    if queue.dim() != 2 or queue.shape[1] != dim:
        raise ValueError(f"queue must be (Q, {dim}), one unit row per entry, got {tuple(queue.shape)}")


def check_labels(labels: Tensor, count: int) -> None:
    """Raise ValueError unless the labels are (count,) whole numbers."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(f"labels must be ({count},) whole numbers, got {tuple(labels.shape)} {labels.dtype}")


def check_positive(**values: float) -> None:
    """Raise ValueError unless each is > 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError unless each is >= 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def unit(vectors: Tensor) -> Tensor:
    """Return the rows of (B, d) scaled to length 1, in at least float32; a zero row stays zero."""
    return F.normalize(at_least_float32(vectors), dim=-1)


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the (A, B) inner products of rows of `a` and `b`, without autocast.

    Divided by a small temperature, the rounding of half precision would matter.
    """
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.to(a.dtype).T
