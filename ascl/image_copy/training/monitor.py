"""The collapse monitor: does a descriptor use its dimensions, and are copies nearer than the nearest strangers?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.tensors import unit
from ascl.losses.spread import uniformity

TOLERANCE = 0.01  # singular values of the covariance above this share of the largest count for the rank
LOWEST_RPR = 0.5  # share of the dimensions that could be used, below which the monitor warns
LOWEST_NORM_SPREAD = 1e-3  # standard deviation of the content norms over their mean
UNIFORMITY_PAIRS = 2048  # of the first images, for the uniformity: all of their pairs


@dataclass(frozen=True)
class Spectrum:
    """How many dimensions descriptors use."""

    singular_values: Tensor  # (d,) of the covariance, largest first
    rank: int  # how many of them exceed `tolerance` times the largest
    tolerance: float
    vectors: int  # how many were looked at; with no more than d of them the rank cannot be d

    @property
    def rpr(self) -> float:
        """Rank preserving ratio of RDCD (section 5.3): rank / d."""
        return self.rank / len(self.singular_values)


def spectrum(vectors: Tensor, *, tolerance: float = TOLERANCE) -> Spectrum:
    """Spectrum of the covariance of (N, d) descriptors, in float64.

    The paper divides "the rank" by the dimension and leaves open from where on a singular value counts; here it counts
    above `tolerance` times the largest. Descriptors that are all equal have rank 0.

    Raises:
        DataError: fewer than two vectors, values that are not finite, or a tolerance outside (0, 1).
    """
    if vectors.dim() != 2 or len(vectors) < 2 or not bool(vectors.isfinite().all()):
        raise DataError(f"a spectrum takes at least two finite descriptors (N, d), got {tuple(vectors.shape)}")
    if not 0 < tolerance < 1:
        raise DataError(f"tolerance {tolerance}: between 0 and 1")
    centred = vectors.double() - vectors.double().mean(dim=0)
    values = torch.linalg.svdvals(centred.T @ centred / (len(vectors) - 1))
    # below the rounding of float32 descriptors nothing varies at all
    noise = float(vectors.double().square().mean()) * torch.finfo(torch.float32).eps ** 2
    rank = int((values > max(tolerance * float(values[0]), noise)).sum())
    return Spectrum(values, rank, tolerance, len(vectors))


class Health(NamedTuple):
    """What the monitor says of a descriptor: metrics for the log, and warnings, none where all is well."""

    metrics: dict[str, float]
    warnings: list[str]


def health(
    queries: Tensor, references: Tensor, content_norms: Tensor | None = None, *, tolerance: float = TOLERANCE
) -> Health:
    """Look at edited copies and their originals.

    Args:
        queries, references: (N, d) descriptors, row i of the one a copy of row i of the other; no other pair matches.
        content_norms: (M,) of any images of these; None = not looked at.
        tolerance: see `spectrum`, whose errors come too; it is taken of the references.
    """
    unit_references = unit(references.double())
    seen = spectrum(unit_references, tolerance=tolerance)
    cosine = unit(queries.double()) @ unit_references.T
    positive = cosine.diagonal()
    negative = cosine.masked_fill(torch.eye(len(cosine), dtype=torch.bool, device=cosine.device), -math.inf).amax(1)
    values, dim = seen.singular_values.tolist(), len(seen.singular_values)
    metrics = {
        "rpr": seen.rpr, "rpr_tolerance": tolerance, "singular_largest": values[0], "singular_median": values[dim // 2],
        "singular_smallest": values[-1], "uniformity": uniformity(references[:UNIFORMITY_PAIRS]),
        "positive_cosine": float(positive.mean()), "hardest_negative_cosine": float(negative.mean()),
        "gap": float((positive - negative).mean()),
    }
    warnings = []
    possible = min(dim, seen.vectors - 1)  # few images cannot show every dimension, which is no collapse
    if seen.rank < LOWEST_RPR * possible:
        warnings.append(
            f"dimensional collapse: {seen.rank} of {possible} dimensions that {seen.vectors} images can show are used "
            f"(less than {LOWEST_RPR:.0%}; singular values above {tolerance:g} of the largest; RPR {seen.rpr:.2f}). A "
            "larger weight of the hard-negative or entropy loss spreads the descriptor"
        )
    if not metrics["gap"] > 0:
        warnings.append(
            f"copies are no nearer than strangers: mean cosine of copies {metrics['positive_cosine']:.3f}, of the "
            f"nearest stranger {metrics['hardest_negative_cosine']:.3f}. A smaller weight of the hard-negative or "
            "entropy loss, a smaller learning rate, or weaker augmentation may help"
        )
    if content_norms is not None:
        mean = float(content_norms.double().mean())
        spread = float(content_norms.double().std()) / max(mean, 1e-30)
        metrics |= {"content_norm": mean, "content_norm_spread": spread}
        if not spread > LOWEST_NORM_SPREAD:
            warnings.append(f"the content norms have collapsed: {mean:.4g} with a relative spread of {spread:.1e}; no "
                            "direction can be told from them")
    return Health(metrics, warnings)
