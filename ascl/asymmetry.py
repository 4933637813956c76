"""The direction of similarity, shared by image-text retrieval and copy detection: one side of a pair may say more.

The norm of a vector measures how much its image or text says (ASL, Wang et al. 2023): an edited copy shows part of its
original, and a truncated caption says part of the whole one.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

NORM_FLOOR = 1e-12      # least denominator, as in torch's `normalize`: keeps 0 / 0 and its gradient finite
TIE = 1e-6              # float32 rounding moves a cosine by less than this

Norms = TypeVar("Norms", Tensor, np.ndarray)


class Direction(IntEnum):
    """Who copies whom in a pair (a, b)."""

    A_COPIES_B = -1     # a says less
    UNCLEAR = 0
    B_COPIES_A = 1      # a says more


def keep_generated_negatives(positive: Tensor, negatives: Tensor) -> Tensor:
    """Return which generated negatives count in the loss: those that score no higher than the query's own positive.

    A noised caption can describe the image better than the original; such a sample is not a negative. The mask is
    alpha_n of equations 3 and 4 (AsCL, section 2.4). It selects terms and has no gradient.

    Args:
        positive: (B,) score of each query with its own positive; cosine, unitless.
        negatives: (B, M) score of each query with its M generated negatives.

    Returns:
        (B, M) bool, True = keep. Ties are kept, and so are scores up to 1e-6 higher: a shuffled caption scores like its
        original except for rounding, and must not count in one batch and be left out in another. Rounding in bfloat16
        is larger than 1e-6.
    """
    return negatives.detach() <= positive.detach().unsqueeze(1) + TIE


def norm_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return the ratio |a| / |b| of each pair of vectors.

    Args:
        a, b: (..., D) vectors of one shape, not normalized. Half precision is raised to float32.

    Returns:
        (...) >= 0, unitless. A norm |b| below 1e-12 counts as 1e-12, so that zero vectors give finite ratios: 0 where
        both are zero, very large where only `b` is.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape or a.dim() == 0:
        raise ValueError(f"vectors to compare must have one shape (..., D), got {tuple(a.shape)} and {tuple(b.shape)}")
    over, under = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
                   for x in (a, b))
    return over / under.clamp_min(NORM_FLOOR)


def norm_ratio_loss(more: Tensor, less: Tensor) -> Tensor:
    """Return the mean of exp(1 - |more| / |less|) over pairs: the norm-ratio loss of ASL (Wang et al. 2023).

    It makes the norm grow with the information. A pair in the right order costs less than 1, a pair in the wrong order
    more than 1. A vector against itself costs exactly 1 and has no gradient. There is no margin and no weight, and
    gradients flow into both sides.

    Args:
        more: (P, D) vectors of what says more, not normalized. Half precision is raised to float32.
        less: (P, D) vectors of what says less, row by row.

    Returns:
        () in [0, e], unitless; 0 if P is 0. Values and gradients are finite for zero vectors too. A pair costs 0 if
        only `less` is zero, and e if `more` or both are. A zero vector gets no gradient, because its norm has no
        direction in which to grow.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> whole, part = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.5]])      # norms 5 and 2.5
        >>> norm_ratio_loss(more=whole, less=part)                                    # right order: exp(1 - 2)
        tensor(0.3679)
        >>> norm_ratio_loss(more=part, less=whole)                                    # wrong order: exp(1 - 0.5)
        tensor(1.6487)
    """
    ratio = norm_ratio(more, less)
    return torch.exp(1 - ratio).sum() / max(1, ratio.numel())


def direction(norm_a: Norms, norm_b: Norms, *, margin: float = 0.0) -> Norms:
    """Return who copies whom in each matching pair: the image or text with the smaller norm copies the other.

    The published test of ASL (Wang et al. 2023) rejects a candidate (query a, reference b) if |a| / |b| > 1 and keeps
    it at exactly 1. It rejects what is `B_COPIES_A` here at margin 0. Ratios within [1 / (1 + margin), 1 + margin] are
    unclear. Swapping a and b swaps the answer. The function takes norms, not vectors, because an index stores norms.

    Args:
        norm_a, norm_b: norms >= 0, tensors or numpy arrays of shapes that broadcast: (P,) and (P,) for P pairs,
            (Q, 1) and (R,) for all pairs.
        margin: relative difference of norms that is still unclear; unitless, >= 0.

    Returns:
        Integers of `Direction` in the broadcast shape: -1 a copies b, 0 unclear, 1 b copies a. Equal norms (also two
        zeros) and NaN are unclear.

    Raises:
        ValueError: the margin is negative or not finite.

    Example:
        >>> direction(torch.tensor([2.0, 5.0, 3.0]), torch.tensor([4.0, 1.0, 3.0]))   # a copies b, b copies a, unclear
        tensor([-1,  1,  0])
        >>> direction(np.array([1.01, 1.10]), np.array([1.0, 1.0]), margin=0.02)      # 1% is too little to tell
        array([0, 1])
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be finite and >= 0, got {margin}")
    return 1 * (norm_a > norm_b * (1 + margin)) - 1 * (norm_b > norm_a * (1 + margin))
