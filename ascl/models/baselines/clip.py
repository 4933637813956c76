"""Two towers trained like CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language", 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ascl.models.base import TextEncoder
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.encoded import EncodedImages, EncodedTexts

LARGEST_SCALE = 100.0       # of the logits; larger ones made training unstable (section 2.5 of the paper)


class Clip(TwoTower):
    """`TwoTower` with a learned temperature for InfoNCE in both directions (section 2.3 and figure 3 of the paper).

    Its towers use the precomputed features and the text encoder that all models here share, not pixels.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 temperature: float = 0.07, standardize: bool = False) -> None:
        """
        Args:
            temperature: initial value of the learned temperature, and what the loss divides scores by; in
                [1 / 100, inf), 0.07 in the paper.

        Raises:
            ValueError: temperature is out of range.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        if not 1 / LARGEST_SCALE <= temperature < math.inf:
            raise ValueError(f"the learned temperature must start at {1 / LARGEST_SCALE} or above, got {temperature}")
        self.temperature = temperature
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def training_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Return the cosines times learned scale and `temperature`; the loss divides by the latter.

        Initially these are the plain cosines. The scale is clamped to 100 in place before use, as if after each step: a
        clamp inside the graph would give a larger scale no gradient, and it would never come back.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        return self.pair_scores(images, texts) * (self.log_scale.exp() * self.temperature)
