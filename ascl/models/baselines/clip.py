"""Two towers trained as CLIP is (Radford et al., "Learning Transferable Visual Models From Natural Language", 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ascl.models.base import TextEncoder
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.encoded import EncodedImages, EncodedTexts

LARGEST_SCALE = 100.0       # of the logits: more made the training unstable (section 2.5 of the paper)


class Clip(TwoTower):
    """`TwoTower` with a learned temperature for InfoNCE in both directions (section 2.3 and figure 3 of the paper).

    Its towers read the precomputed features and the text encoder that all models here share, not pixels.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 temperature: float = 0.07, standardize: bool = False) -> None:
        """
        Args:
            temperature: what the loss divides scores by, in [1 / 100, inf): the learned one starts there (0.07 in
                the paper).
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        if not 1 / LARGEST_SCALE <= temperature < math.inf:
            raise ValueError(f"the learned temperature has to start at {1 / LARGEST_SCALE} or above, got {temperature}")
        self.temperature = temperature
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def training_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Cosines times the learned scale, in units of `temperature`: the loss divides by that, and the scale stays.

        At the start they are the cosines. The scale is brought back to 100 before its use, as if after each step: a
        clamp in the graph would give a scale beyond it no gradient, and it would stay there.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        return self.pair_scores(images, texts) * (self.log_scale.exp() * self.temperature)
