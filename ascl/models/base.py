"""The interface that AsCL and its rivals share: encode each item alone, then score pairs of encoded items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ascl.models.encoded import EncodedImages, EncodedTexts


class TextEncoder(nn.Module, ABC):
    """What a model reads texts with. dim: of a word."""

    dim: int

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N texts -> hidden (N, L, dim) and mask (N, L) bool, True = a real word."""


class RetrievalModel(nn.Module, ABC):
    """A model whose items are encoded alone; which of them belong together is never known to it."""

    text: TextEncoder | None
    region_dim: int
    global_dim: int

    @abstractmethod
    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """Precomputed features (N, K, region_dim), (N, global_dim), (N, K) bool or None -> N images."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """N captions -> N texts."""

    @abstractmethod
    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """(N_images, N_texts) scores, differentiable."""
