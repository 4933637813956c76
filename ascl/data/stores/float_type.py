"""Infer which float type raw bytes hold, where a format does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ascl.data.stores.base import first_absurd

_UNLIKE = 0.4  # distance of two distributions, 0 to 1, that no two halves of an image's features have
_WIDEST = 6.0  # octaves: standard deviation of the magnitudes; features have 1 to 3, misread bytes many times that
_USUAL = (-24.0, 16.0)  # octaves: the median magnitude of features is between 6e-8 and 65,536
_FEWEST = 32  # pairs of values below which distributions are not compared


class _Reading(NamedTuple):
    dtype: np.dtype
    spread: float  # standard deviation of the magnitudes of its values, in octaves
    median: float  # magnitude, in octaves
    alike: bool  # whether every second value is distributed as the others


def float_type(sample: Sequence[bytes], length: int) -> np.dtype | None:
    """Return float32, float64 or float16 (little-endian), whichever explains the bytes; None if none does.

    Numbers read in another type than their own betray themselves. As a narrower type, each second one is made of a
    number's last digits: it is zero, or random and mostly absurd. As a wider type, digits become part of the exponent:
    the magnitudes spread over eight times as many octaves.

    Args:
        sample: whole regions of some images.
        length: bytes of a region.
    """
    found = {size: reading for size in (4, 8, 2) if length % size == 0 and
             (reading := _reading([np.frombuffer(part, f"<f{size}") for part in sample])) is not None}
    usual = found.pop(4, None)
    others = sorted((one for one in found.values() if one.alike and one.spread <= _WIDEST and
                     _USUAL[0] <= one.median <= _USUAL[1]), key=lambda one: one.spread)
    if usual is not None and (not others or (usual.alike and others[0].spread >= usual.spread / 3)):
        return usual.dtype
    if not others or (len(others) > 1 and others[0].spread > others[1].spread / 3):
        return None
    return others[0].dtype


def _reading(images: list[np.ndarray]) -> _Reading | None:
    """Return what the bytes are as a type; None if that gives values that are not finite, or absurd, in most images."""
    sane = [values for values in images if first_absurd(values) is None]
    if 2 * len(sane) < len(images):  # a few may be damaged
        return None
    values = np.concatenate(sane)
    magnitudes = np.log2(np.abs(values[values != 0]).astype(np.float64))
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2)
    pairs = pairs[(pairs != 0).any(axis=1)]
    alike = len(pairs) < _FEWEST or values.dtype.itemsize == 8 or _distance(*pairs.T) <= _UNLIKE
    spread, median = (magnitudes.std(), np.median(magnitudes)) if len(magnitudes) else (0.0, 0.0)
    return _Reading(values.dtype, float(spread), float(median), alike)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two distributions, in [0, 1] (Kolmogorov and Smirnov)."""
    grid = np.sort(np.concatenate([first, second]))
    shares = (np.searchsorted(np.sort(one), grid, side="right") / len(one) for one in (first, second))
    return float(np.abs(next(shares) - next(shares)).max())
