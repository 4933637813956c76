"""Mix the images of a batch, with labels that say how much of which image a row shows (SSCD's mixup)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def mixed_images(
    pixels: Tensor, generator: torch.Generator, *, probability: float, alpha: float = 2.0, cut_share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return a batch in which some images are blended with another (mixup) or get a rectangle of another (cutmix).

    Source: Pizzi et al. 2022, section 4.3; Zhang et al. 2018; Yun et al. 2019.

    Args:
        pixels: (B, C, H, W), any range; integers become float32.
        generator: of torch, for all draws.
        probability: that an image is mixed; in [0, 1].
        alpha: of Beta(alpha, alpha), the distribution of the share that an image keeps; > 0.
        cut_share: share of the mixed images that get a rectangle instead of a blend; in [0, 1].

    Returns:
        (B, C, H, W) floating, and (B, B) float32 shares: [i, j] is how much of image j row i shows; rows sum to 1.

    Raises:
        ValueError: shares or alpha are out of range, or pixels have another shape.
    """
    if pixels.dim() != 4:
        raise ValueError(f"pixels must be (B, C, H, W), got {tuple(pixels.shape)}")
    if not (0 <= probability <= 1 and 0 <= cut_share <= 1 and alpha > 0):
        raise ValueError(f"probability {probability} and cut_share {cut_share} must be in [0, 1], alpha {alpha} > 0")
    count, _, height, width = pixels.shape
    mixed = pixels.clone() if pixels.is_floating_point() else pixels.float()
    source = mixed.clone()
    shares = torch.eye(count, device=pixels.device)
    # one draw of the step's generator seeds numpy's, because torch's Beta does not take a generator
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
    for row in range(count if count > 1 else 0):
        if rng.random() >= probability:
            continue
        other = (row + int(rng.integers(1, count))) % count
        kept = float(rng.beta(alpha, alpha))
        if rng.random() < cut_share:
            side = math.sqrt(1 - kept)
            cut_height, cut_width = round(side * height), round(side * width)
            top, left = (int(rng.integers(0, most + 1)) for most in (height - cut_height, width - cut_width))
            area = (slice(None), slice(top, top + cut_height), slice(left, left + cut_width))
            mixed[row][area] = source[other][area]
            kept = 1 - cut_height * cut_width / (height * width)
        else:
            mixed[row] = kept * source[row] + (1 - kept) * source[other]
        shares[row] *= kept
        shares[row, other] += 1 - kept
    return mixed, shares
