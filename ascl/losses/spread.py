"""Spread over the sphere: losses that push descriptors away from their nearest negatives, and uniformity."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.tensors import check_queue, check_vectors, products, unit

DISTANCE_FLOOR = 1e-3           # least 1 - cosine in RDCD's loss
SQUARED_DISTANCE_FLOOR = 1e-6   # least squared distance in SSCD's loss


def hard_negative_loss(query: Tensor, queue: Tensor, *, others: Tensor | None = None) -> Tensor:
    """Return the mean of -log max(1 - max_j cos(query_i, queue_j), 1e-3) (the HN loss of RDCD).

    It pushes each query away from its nearest negative. Raises ValueError if the shapes do not match.

    Args:
        query: (B, d) embeddings, normalized inside.
        queue: (Q, d) unit rows, keys of other images; no gradient. The loss is 0 for Q = 0.
        others: (B, Q) bool, True = row j shows another image than query i and counts; None = all count.

    Returns:
        () float32 (float64 for float64 queries), in [-log 2, 6.91]; raw cosines, no temperature. A query within
        1e-3 of its nearest negative is at the floor and has no gradient. A query without negatives counts 0.

    Example:
        >>> query, queue = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
        >>> hard_negative_loss(query, queue)                                        # nearest cosine 0.6: -log 0.4
        tensor(0.9163)
        >>> hard_negative_loss(query, queue, others=torch.tensor([[False, True]]))      # cosine -1: -log 2
        tensor(-0.6931)
    """
    check_vectors(query=query)
    check_queue(queue, query.shape[1])
    if others is not None and others.shape != (len(query), len(queue)):
        raise ValueError(f"others must be ({len(query)}, {len(queue)}), got {tuple(others.shape)}")
    query = unit(query)
    if len(queue) == 0:
        return 0 * query.sum()
    cosine = products(query, queue.detach())
    if others is not None:
        cosine = cosine.masked_fill(~others, -1)
    cost = -(1 - cosine.max(dim=1).values).clamp_min(DISTANCE_FLOOR).log()
    return cost.mean() if others is None else cost.masked_fill(~others.any(dim=1), 0).mean()


def entropy_of_nearest(similarity: Tensor, negatives: Tensor) -> Tensor:
    """Return the mean of -log of each row's distance to its nearest negative (SSCD; Sablayrolles et al. 2019).

    This is the Kozachenko-Leonenko estimate of differential entropy over the negatives, up to sign and constants.

    Args:
        similarity: (B, N) cosines. negatives: (B, N) bool, True = another image.

    Returns:
        () in the dtype of `similarity`, in [-log 2, 6.91]. A row without negatives counts 0.
    """
    nearest = similarity.masked_fill(~negatives, -1).max(dim=1).values
    squared = (2 - 2 * nearest).clamp_min(SQUARED_DISTANCE_FLOOR)
    return -0.5 * squared.log().masked_fill(~negatives.any(dim=1), 0).mean()


def pair_distances(vectors: Tensor, groups: Tensor | None = None, *, rows: int = 256) -> Iterator[Tensor]:
    """Yield the squared Euclidean distances of all pairs from different groups, each pair once: (P,) float64 in [0, 4].

    Args:
        vectors: (N, d), normalized inside.
        groups: (N,) integers on the CPU; None = each vector is a group of its own.
        rows: vectors per block; a block holds their distances to all later vectors.
    """
    vectors = F.normalize(vectors.double(), dim=1)
    groups = torch.arange(len(vectors)) if groups is None else groups
    for start in range(0, len(vectors), rows):
        block = slice(start, start + rows)
        squared = (2 - 2 * vectors[block] @ vectors[start:].T).clamp_(min=0)
        later = torch.ones(squared.shape, dtype=torch.bool).triu(diagonal=1)
        yield squared[(later & (groups[block, None] != groups[start:])).to(squared.device)]


def uniformity(vectors: Tensor, groups: Tensor | None = None, *, rows: int = 256) -> float:
    """Return the log of the mean of exp(-2 distance^2) over pairs of unit vectors (Wang and Isola 2020).

    In [-8, 0]; lower means more evenly spread. Random directions in high dimension give about -4. Takes the arguments
    of `pair_distances`, and needs at least two groups.
    """
    total, pairs = 0.0, 0
    for squared in pair_distances(vectors, groups, rows=rows):
        total += float(torch.exp(-2 * squared).sum())
        pairs += len(squared)
    return math.log(total / pairs)
