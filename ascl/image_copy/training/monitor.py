"""The collapse monitor: does a descriptor use its dimensions, and are copies nearer than the nearest other images?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.tensors import unit
from ascl.losses.spread import uniformity

TOLERANCE = 0.01  # share of the largest singular value of the covariance above which the others count for the rank
LOWEST_RPR = 0.5  # share of the usable dimensions below which the monitor warns
LOWEST_NORM_SPREAD = 1e-3  # standard deviation of the content norms over their mean
UNIFORMITY_PAIRS = 2048  # number of images whose pairs give the uniformity


@dataclass(frozen=True)
class Spectrum:
    """The singular values of descriptors, and how many dimensions they use."""

    singular_values: Tensor  # (d,) of the covariance, largest first
    rank: int  # number of values above `tolerance` times the largest
    tolerance: float
    vectors: int  # number of descriptors; the rank is below d if there are at most d

    @property
    def rpr(self) -> float:
        """Return the rank preserving ratio of RDCD (section 5.3): rank / d."""
        return self.rank / len(self.singular_values)


def spectrum(vectors: Tensor, *, tolerance: float = TOLERANCE) -> Spectrum:
    """Return the spectrum of the covariance of (N, d) descriptors, in float64.

    The paper divides "the rank" by the dimension but does not say which singular values count; here those above
    `tolerance` times the largest do. Descriptors that are all equal have rank 0.

    Raises:
        DataError: fewer than two vectors, values that are not finite, or a tolerance outside (0, 1).
    """
    if vectors.dim() != 2 or len(vectors) < 2 or not bool(vectors.isfinite().all()):
        raise DataError(f"a spectrum needs at least two finite descriptors (N, d), got {tuple(vectors.shape)}")
    if not 0 < tolerance < 1:
        raise DataError(f"tolerance {tolerance}: must be between 0 and 1")
    centered = vectors.double() - vectors.double().mean(dim=0)
    values = torch.linalg.svdvals(centered.T @ centered / (len(vectors) - 1))
    # variation below the rounding of float32 descriptors counts as none
    noise = float(vectors.double().square().mean()) * torch.finfo(torch.float32).eps ** 2
    rank = int((values > max(tolerance * float(values[0]), noise)).sum())
    return Spectrum(values, rank, tolerance, len(vectors))


class Health(NamedTuple):
    """The monitor's findings about a descriptor: metrics for the log, and warnings, empty if all is well."""

    metrics: dict[str, float]
    warnings: list[str]


def health(
    queries: Tensor, references: Tensor, content_norms: Tensor | None = None, *, tolerance: float = TOLERANCE
) -> Health:
    """Return metrics and warnings for the descriptors of edited copies and their originals.

    Args:
        queries, references: (N, d) descriptors; row i of one is a copy of row i of the other, no other pair matches.
        content_norms: (M,) of any of these images; None = do not check them.
        tolerance: for the spectrum of the references.

    Raises:
        DataError: as `spectrum`.
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
            f"dimensional collapse: the descriptor uses {seen.rank} of {possible} dimensions that {seen.vectors} "
            f"images can show (less than {LOWEST_RPR:.0%}; singular values above {tolerance:g} of the largest; RPR "
            f"{seen.rpr:.2f}). A larger weight of the hard-negative or entropy loss spreads the descriptor"
        )
    if not metrics["gap"] > 0:
        warnings.append(
            f"copies are no nearer than other images: mean cosine of copies {metrics['positive_cosine']:.3f}, of the "
            f"nearest other image {metrics['hardest_negative_cosine']:.3f}. A smaller weight of the hard-negative or "
            "entropy loss, a smaller learning rate, or weaker augmentation may help"
        )
    if content_norms is not None:
        mean = float(content_norms.double().mean())
        spread = float(content_norms.double().std()) / max(mean, 1e-30)
        metrics |= {"content_norm": mean, "content_norm_spread": spread}
        if not spread > LOWEST_NORM_SPREAD:
            warnings.append(f"the content norms have collapsed: {mean:.4g} with a relative spread of {spread:.1e}; "
                            "they cannot show a direction")
    return Health(metrics, warnings)
