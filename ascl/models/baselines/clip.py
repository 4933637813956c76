"""Two towers trained like CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language", 2021)."""

from __future__ import annotations

from ascl.models.base import TextEncoder
from ascl.models.baselines.two_tower import TwoTower


class Clip(TwoTower):
    """`TwoTower` with a learned temperature for InfoNCE in both directions (section 2.3 and figure 3 of the paper).

    Its towers use the precomputed features and the text encoder that all models here share, not pixels.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 temperature: float = 0.07, standardize: bool = False) -> None:
        """
        Args:
            temperature: initial value of the learned temperature, in [0.01, inf); 0.07 in the paper.

        Raises:
            ValueError: temperature is out of range.
        """
        super().__init__(region_dim, global_dim, text, embed_dim, standardize=standardize)
        self.learn_temperature(temperature)
