"""The floor that any fusion has to clear: one vector an image, one vector a text, their cosine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.models.ascl import masked_mean
from ascl.models.base import RetrievalModel, TextEncoder
from ascl.models.encoded import EncodedImages, EncodedTexts


def _projector(input_dim: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))


class TwoTower(RetrievalModel):
    """Mean region and whole-image feature through one two-layer projection, mean word through another.

    The same inputs and the same interface as `AsCL`, without any meeting of image and text before the cosine.
    Encoded images have one region and encoded texts one word: the vector itself.
    """

    def __init__(
        self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *, standardize: bool = False
    ) -> None:
        super().__init__(region_dim, global_dim, standardize=standardize)
        self.text: TextEncoder = text
        self.image = _projector(region_dim + global_dim, embed_dim)
        self.words = _projector(text.dim, embed_dim)

    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """(N, K, region_dim), (N, global_dim), (N, K) bool or None -> N vectors."""
        regions, globals_ = self.standardized(regions, globals_)
        vectors = self.image(torch.cat([masked_mean(regions, mask), globals_], dim=-1))
        return EncodedImages(vectors.unsqueeze(1), vectors)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """N texts -> N vectors."""
        hidden, mask = self.text(list(texts))
        vectors = self.words(masked_mean(hidden, mask)).unsqueeze(1)
        return EncodedTexts(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """(N, D) the vectors whose directions the score compares."""
        return texts.words[:, 0]

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Cosines (N_images, N_texts)."""
        return F.normalize(images.globals, dim=-1) @ F.normalize(self.text_vectors(texts), dim=-1).T
