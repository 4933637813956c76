"""What image-text retrieval and copy detection share: similarity has a direction, one side may say more.

The norm of a vector carries how much its image or text says (ASL, Wang et al. 2023): an edited copy shows part of its
original, a truncated caption part of the whole one.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

NORM_FLOOR = 1e-12      # of a denominator, as in torch's `normalize`: keeps 0 / 0 and its gradient finite
TIE = 1e-6              # cosines that differ by rounding in float32 differ by less

Norms = TypeVar("Norms", Tensor, np.ndarray)


class Direction(IntEnum):
    """Who copies whom in a pair (a, b)."""

    A_COPIES_B = -1     # a says less
    UNCLEAR = 0
    B_COPIES_A = 1      # a says more


def keep_generated_negatives(positive: Tensor, negatives: Tensor) -> Tensor:
    """Return which generated negatives count in the loss: those that score no higher than the query's own positive.

    A noised caption can end up a better description than the original; such a sample is no negative. This is
    alpha_n of equations 3 and 4 (AsCL, section 2.4), a choice of terms without gradient.

    Args:
        positive: (B,) score of each query with its own positive; cosine, unitless.
        negatives: (B, M) score of each query with its M generated negatives.

    Returns:
        (B, M) bool, True = keep. A tie is kept, and so is what lies less than 1e-6 above: a shuffled caption scores as
        its original but for rounding, and the same caption must not count in one batch and be left out in another.
        Scores made in bfloat16 differ by more than that.
    """
    return negatives.detach() <= positive.detach().unsqueeze(1) + TIE


def norm_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return |a| / |b| (...) >= 0 of vectors a, b (..., D) of one shape, not normalized; ValueError for two shapes.

    Half precision is raised to float32. A norm |b| below 1e-12 counts as 1e-12, so that zero vectors give a finite
    number: 0 for two of them, a very large one for a zero `b` alone.
    """
    if a.shape != b.shape or a.dim() == 0:
        raise ValueError(f"vectors to compare must have one shape (..., D), got {tuple(a.shape)} and {tuple(b.shape)}")
    over, under = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
                   for x in (a, b))
    return over / under.clamp_min(NORM_FLOOR)


def norm_ratio_loss(more: Tensor, less: Tensor) -> Tensor:
    """Return the mean of exp(1 - |more| / |less|), which orders norms by information (the norm-ratio loss of ASL).

    A pair in the right order costs less than 1, one in the wrong order more, a vector against itself exactly 1 and
    has no gradient. There is no margin, no weight and no stop of the gradient: both sides move.

    Args:
        more, less: (P, D) vectors of what says more and what says less, not normalized, of one shape (else ValueError).
            Half precision is raised to float32.

    Returns:
        () in [0, e], unitless. 0 without any pair. Values and gradients are finite for zero vectors too: where `less`
        is zero the pair counts as satisfied (0), where `more` alone or both are it costs e; a zero vector gets no
        gradient, as its norm has no direction in which to grow.
    """
    ratio = norm_ratio(more, less)
    return torch.exp(1 - ratio).sum() / max(1, ratio.numel())


def direction(norm_a: Norms, norm_b: Norms, *, margin: float = 0.0) -> Norms:
    """Return who copies whom in each pair that matches: what has the smaller norm shows part of the other.

    The published test of ASL rejects a candidate (query a, reference b) if |a| / |b| > 1 and keeps it at exactly 1:
    that is `B_COPIES_A` at margin 0. Ratios within [1 / (1 + margin), 1 + margin] are unclear; swapping a and b swaps
    the answer. Norms are taken and not vectors, because an index stores them; tensors and numpy arrays alike.

    Args:
        norm_a, norm_b: norms >= 0, of shapes that broadcast: (P,) and (P,) for pairs, (Q, 1) and (R,) for all.
        margin: relative, unitless, >= 0 and finite (else ValueError).

    Returns:
        Integers of `Direction`: -1 a copies b, 0 unclear, 1 b copies a. Equal norms (two zeros too) and NaN are
        unclear.
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and >= 0, got {margin}")
    return 1 * (norm_a > norm_b * (1 + margin)) - 1 * (norm_b > norm_a * (1 + margin))
